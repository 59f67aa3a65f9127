"""Dual prompts defeat relation leakage: classifiers trained with and without wrong-word prompts."""

from __future__ import annotations

from typing import Any, Final

from attnsteer.world.claims.claim import Claim, Finding, Outcome, Result, absent, more
from attnsteer.world.claims.classifiers import DUAL, SINGLE, Bench, classifier_tasks
from attnsteer.world.claims.figure import Figure, Place
from attnsteer.world.claims.negatives import block_of
from attnsteer.world.claims.pairs import paired
from attnsteer.world.claims.pictures import grid_of
from attnsteer.world.claims.relations import RIGHT, evidence
from attnsteer.world.claims.roster import CLASSIFIED
from attnsteer.world.claims.runs import Drawn
from attnsteer.world.claims.scope import Scope
from attnsteer.world.claims.task import Task

KINDS: Final = (SINGLE, DUAL)
WORDS: Final = {"right": "accuracy, word right", "wrong": "accuracy, word wrong"}
FOLLOWS: Final = "follows a wrong word"


def plan(scope: Scope) -> list[Task]:
    """Maps, two classifiers, and steering with each, for each model that can be steered."""
    return classifier_tasks(scope, ("rendered", "held-out"), KINDS)


def read(scope: Scope) -> Result:
    """Accuracy where the prompt's word is right and where it is wrong, and relations right under steering."""
    figures: list[Figure] = []
    findings: list[Finding] = []
    grids = []
    for model in scope.of(*CLASSIFIED):
        bench = Bench(scope, model)
        drawn = {kind: Drawn.read(scope.work / bench.steering(kind).name, block_of(model)) for kind in KINDS}
        followed = {}
        for kind in KINDS:
            place = drawn[kind].place("steer", f"Steered, trained with {kind}")
            leak = bench.tests(kind)["leakage"]
            figures += test_figures(place, leak)
            figures.append(place.share(RIGHT, drawn[kind].values("steer")))
            followed[kind] = next(figure for figure in reversed(figures) if figure.name == FOLLOWS)
        figures.append(drawn[DUAL].place("none").share(RIGHT, drawn[DUAL].values("none")))
        single, dual = followed[SINGLE], followed[DUAL]
        outcome = Outcome.HOLDS if dual.high < single.low else Outcome.NOT if dual.low > single.high else Outcome.OPEN
        found = f"{dual.text} ({dual.interval}) against {single.text} ({single.interval})"
        statement = f"{block_of(model)}: trained with dual prompts, the classifier follows a wrong word less often"
        findings.append(Finding(statement, outcome, found))
        pair = paired(drawn[SINGLE].values("steer"), drawn[DUAL].values("steer"))
        shares = f"{RIGHT}: {drawn[DUAL].share('steer')} against {drawn[SINGLE].share('steer')}"
        findings.append(more(f"{block_of(model)}: and steers better", pair, shares))
        findings.append(
            more(f"{block_of(model)}: steering with it puts relations right",
                 drawn[DUAL].against("none", "steer"), evidence(drawn[DUAL], "none", "steer"))
        )  # fmt: skip
        grids += [
            grid_of(drawn[kind], f"{block_of(model)}: classifier trained with {kind}", ["none", "steer"], 2)
            for kind in KINDS
        ]
    return Result(figures, findings + absent(scope.missing(*CLASSIFIED)), grids)


def test_figures(place: Place, leakage: dict[str, Any]) -> list[Figure]:
    """Accuracy by the prompt's word, and how often the classifier says what a wrong word says."""
    figures = []
    for word, name in WORDS.items():
        found = leakage["by_word"][word]
        if found["samples"]:
            figures.append(place.share(name, _truths(found["accuracy"], found["samples"])))
    wrong = leakage["by_word"]["wrong"]["samples"]
    if wrong:
        figures.append(place.share(FOLLOWS, _truths(leakage["follows_word"], wrong)))
    return figures


def _truths(share: float, of: int) -> list[bool]:
    right = round(share * of)
    return [True] * right + [False] * (of - right)


CLAIM: Final = Claim(
    "leakage",
    "Dual prompts defeat relation leakage",
    "Yiflach et al. 2026, arXiv:2509.02295",
    "Two classifiers on as many maps of rendered pictures: one saw each picture with its true prompt only, the other"
    " also with a wrong relation word and the same label. Both are tested on the model's own pictures, in which word"
    " and picture are unrelated, and both steer the same prompts. Maps of one picture at several steps count singly in"
    " the intervals of accuracies, which are too narrow by that.",
    plan,
    read,
)
