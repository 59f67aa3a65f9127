"""What the claims about steering share: runs over prompts with relations, and their figures."""

from __future__ import annotations

from typing import Any, Final

from attnsteer.evaluate.settings import Evaluation
from attnsteer.world.claims.figure import Figure
from attnsteer.world.claims.negatives import PICTURE_SECONDS, ROW_SECONDS, START_SECONDS
from attnsteer.world.claims.roster import WorldModel
from attnsteer.world.claims.runs import Drawn
from attnsteer.world.claims.scope import SEED, Scope
from attnsteer.world.claims.task import EvaluationTask

RIGHT: Final = "relations right"
PRESENT: Final = "all objects there"
STEERING_COST: Final = 1.25
"""Time of a steered picture over that of a plain one, about."""


def relation_task(
    scope: Scope, model: WorldModel, name: str, suite: str, methods: str, **settings: Any
) -> EvaluationTask:
    """A run over prompts with relations, with the model's own settings.

    Args:
        scope: What is drawn.
        model: With it.
        name: The claim's, and what sets the run apart.
        suite: As for `Evaluation`.
        methods: Likewise.
        settings: Further settings of `Evaluation`, and `needs`, names of tasks.
    """
    needs = settings.pop("needs", ())
    chains = suite == "shapes-chains"
    count = scope.chains(model) if chains else scope.size.pairs
    evaluation = Evaluation(
        suite, model.name, methods, count=count, seed=SEED, batch=min(scope.size.batch, count),
        nag_scale=model.nag_scale, steps=model.steps, **settings,
    )  # fmt: skip
    plain = model.steps * (2.0 if model.guidance_scale > 1 else 1.0) * ROW_SECONDS[model.architecture]
    each = sum((STEERING_COST if m.steer else 1.0) * plain + PICTURE_SECONDS for m in evaluation.columns)
    pictures = count * (4 if chains else 1)
    seconds = START_SECONDS + pictures * each
    folder = model.plain_folder if "classifier" in settings else model.steered_folder
    return EvaluationTask(f"{name}/{folder}-in-{model.steps}", seconds, needs, evaluation)


def relation_figures(drawn: Drawn) -> list[Figure]:
    """Of each method of a run: relations right, all objects there, right where they are, and costs; and by kind."""
    figures: list[Figure] = []
    for name in drawn.names:
        place, present = drawn.place(name), presence(drawn, name)
        right = drawn.values(name)
        figures += [place.share(RIGHT, right), place.share(PRESENT, present)]
        if any(present):
            where = [value for value, there in zip(right, present, strict=True) if there]
            figures.append(place.share("right where all are there", where))
        figures += drawn.costs(name)
    return figures


def presence(drawn: Drawn, method: str) -> list[bool]:
    """Of each item, whether all objects are there."""
    return [bool(data["methods"][method]["details"]["present"]) for data in drawn.run.records]


def evidence(drawn: Drawn, first: str, second: str) -> str:
    """E.g. "relations right: 92.7 % against 29.7 %", the second method named first."""
    return f"{RIGHT}: {drawn.share(second)} against {drawn.share(first)}"
