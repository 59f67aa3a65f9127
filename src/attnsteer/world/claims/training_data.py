"""Rendered pictures and the model's own ones: classifiers trained on either, and on both."""

from __future__ import annotations

from typing import Any, Final

from attnsteer.world.claims.claim import Claim, Finding, Result, absent, more
from attnsteer.world.claims.classifiers import BOTH, DUAL, SAMPLED, Bench, classifier_tasks
from attnsteer.world.claims.figure import Figure
from attnsteer.world.claims.leakage import test_figures
from attnsteer.world.claims.negatives import block_of
from attnsteer.world.claims.pairs import paired
from attnsteer.world.claims.pictures import grid_of
from attnsteer.world.claims.relations import RIGHT
from attnsteer.world.claims.roster import CLASSIFIED
from attnsteer.world.claims.runs import Drawn
from attnsteer.world.claims.scope import Scope
from attnsteer.world.claims.task import Task

KINDS: Final = {DUAL: "rendered pictures", SAMPLED: "the model's own pictures", BOTH: "both"}


def plan(scope: Scope) -> list[Task]:
    """Maps, three classifiers, and steering with each, for each model that can be steered."""
    return classifier_tasks(scope, ("rendered", "sampled", "held-out"), tuple(KINDS))


def read(scope: Scope) -> Result:
    """Accuracy on the model's own pictures, and relations right under steering, by what was trained on."""
    figures: list[Figure] = []
    findings: list[Finding] = []
    grids = []
    for model in scope.of(*CLASSIFIED):
        bench = Bench(scope, model)
        drawn = {kind: Drawn.read(scope.work / bench.steering(kind).name, block_of(model)) for kind in KINDS}
        for kind, words in KINDS.items():
            place, tests = drawn[kind].place("steer", f"Steered, trained on {words}"), bench.tests(kind)
            figures.append(_accuracy(place, tests))
            figures += test_figures(place, tests["leakage"])
            figures.append(place.share(RIGHT, drawn[kind].values("steer")))
            grids.append(grid_of(drawn[kind], f"{block_of(model)}: trained on {words}", ["none", "steer"], 2))
        figures.append(drawn[BOTH].place("none").share(RIGHT, drawn[BOTH].values("none")))
        for other in (DUAL, SAMPLED):
            pair = paired(drawn[other].values("steer"), drawn[BOTH].values("steer"))
            found = f"{RIGHT}: {drawn[BOTH].share('steer')} against {drawn[other].share('steer')}"
            findings.append(more(f"{block_of(model)}: both steer better than {KINDS[other]} alone", pair, found))
    return Result(figures, findings + absent(scope.missing(*CLASSIFIED)), grids)


def _accuracy(place: Any, test: dict[str, Any]) -> Figure:
    right = round(test["accuracy"] * test["samples"])
    figure: Figure = place.share("accuracy", [True] * right + [False] * (test["samples"] - right))
    return figure


CLAIM: Final = Claim(
    "training-data",
    "Rendered and on-policy pictures together beat either",
    "Yiflach et al. 2026, arXiv:2509.02295 (real and synthetic); here rendered and the model's own, labelled by the"
    " detector",
    "Three classifiers: on rendered pictures under noise with dual prompts, on the model's own pictures, on both. All"
    " are tested on the model's own pictures from other seeds, and steer the same prompts.",
    plan,
    read,
)
