"""Several relations in one prompt: how steering degrades from one to three relations among two to four objects."""

from __future__ import annotations

from typing import Final

from attnsteer.world.claims.claim import Claim, Finding, Outcome, Result, absent, more
from attnsteer.world.claims.figure import Figure, Place
from attnsteer.world.claims.negatives import block_of
from attnsteer.world.claims.pairs import paired
from attnsteer.world.claims.pictures import grid_of
from attnsteer.world.claims.relations import RIGHT, presence, relation_figures, relation_task
from attnsteer.world.claims.roster import STEERED
from attnsteer.world.claims.runs import Drawn
from attnsteer.world.claims.scope import Scope
from attnsteer.world.claims.task import EvaluationTask

WANTED: Final = {"2": 0.75, "3": 0.5}
"""Shares that steering shall reach with so many relations, by one of `STEERED_BY`."""
PLAIN, STEERED_BY = "none", ("steer", "steer-3")
METHODS: Final = ",".join((PLAIN, *STEERED_BY))


def plan(scope: Scope) -> list[EvaluationTask]:
    """One run for each model with a classifier."""
    return [relation_task(scope, m, "several", "shapes-chains", METHODS) for m in scope.of(*STEERED)]


def read(scope: Scope) -> Result:
    """Figures by number of objects and relations."""
    figures: list[Figure] = []
    findings: list[Finding] = []
    grids = []
    for model, task in zip(scope.of(*STEERED), plan(scope), strict=True):
        drawn = Drawn.read(scope.work / task.name, block_of(model))
        figures += relation_figures(drawn)
        for kind in drawn.run.kinds:
            own, found = _kind(drawn, kind)
            figures += own
            findings += found
        grids.append(grid_of(drawn, drawn.block, drawn.names))
    return Result(figures, findings + absent(scope.missing(*STEERED)), grids)


def _kind(drawn: Drawn, kind: str) -> tuple[list[Figure], list[Finding]]:
    rows = [number for number, data in enumerate(drawn.run.records) if data["item"]["kind"] == kind]
    block = f"{drawn.block}: {kind}"
    values = {name: [drawn.values(name)[row] for row in rows] for name in drawn.names}
    figures = []
    for name in drawn.names:
        place = Place(block, drawn.title(name), drawn.seeds)
        there = presence(drawn, name)
        figures += [place.share(RIGHT, values[name]), place.share("all objects there", [there[row] for row in rows])]
    plain, *steered = (figure for figure in figures if figure.name == RIGHT)
    found = []
    for name, reached in zip(STEERED_BY, steered, strict=True):
        title = drawn.title(name)
        evidence = f"{RIGHT}: {reached.text} against {plain.text}"
        found.append(more(f"{block}: more right, {title}", paired(values[PLAIN], values[name]), evidence))
        relations = kind.partition(", ")[2][0]
        if relations in WANTED:
            found.append(_reaches(f"{block}: at least {100 * WANTED[relations]:.0f} % right, {title}", reached,
                                  WANTED[relations]))  # fmt: skip
    return figures, found


def _reaches(statement: str, share: Figure, wanted: float) -> Finding:
    outcome = Outcome.HOLDS if share.low >= wanted else Outcome.NOT if share.high < wanted else Outcome.OPEN
    return Finding(statement, outcome, f"{share.text} ({share.interval})")


CLAIM: Final = Claim(
    "several",
    "With several relations, steering degrades gracefully",
    "Yiflach et al. 2026, arXiv:2509.02295, multi-relation prompts; the targets are ours",
    "One to three relations among two to four objects of different colours, every one of which must hold. The world"
    " has four colours, and neither its captions nor its detector tell two objects of one colour apart, so a fifth"
    " object cannot be asked for.",
    plan,
    read,
)
