"""What the ablation compares: the default steering with one part changed each, and the baselines."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, cast

from attnsteer.steering.best_of import best_of_by_objective
from attnsteer.steering.descent import LeanRule, PublishedRule
from attnsteer.steering.learned import LearnedSteering
from attnsteer.steering.objectives import CentroidObjective
from attnsteer.steering.presence import PresenceObjective
from attnsteer.steering.retry import Retries, presence_wanted
from attnsteer.steering.select import SeedSelection
from attnsteer.steering.verify import Verification

Change = Callable[[LearnedSteering], LearnedSteering]


@dataclass(frozen=True)
class Variant:
    """One row of the ablation.

    Attributes:
        title: For the table.
        change: Makes the method from the default one; None does not steer.
        best_of: Seeds of which the detector, which also scores, takes the best.
    """

    title: str
    change: Change | None
    best_of: int = 1


def _rule(**settings: Any) -> Change:
    """The lean rule as the classifier advises it, with some settings changed."""
    return lambda method: replace(method, rule=replace(cast("LeanRule", method.rule), **settings))


VARIANTS: Mapping[str, Variant] = MappingProxyType(
    {
        "plain": Variant("not steered", None),
        "lean": Variant("lean", lambda method: method),
        "no-norm": Variant("without the norm guard", _rule(keep_norm=False)),
        "backtracking": Variant("with backtracking", _rule(backtracking=True)),
        "no-stop": Variant("without stopping on probability", _rule(probability=None)),
        "raw-steps": Variant("raw gradient steps (factor 5)", _rule(normalised=False, step_size=5.0)),
        "worst": Variant("worst relation alone", _rule(joint="worst")),
        "alternate": Variant("relations by turns", _rule(joint="alternate")),
        "one-iteration": Variant("one iteration per step", _rule(iterations=1)),
        "three-iterations": Variant("three iterations per step, longer steps", _rule(iterations=3, step_size=0.08)),
        "two-seeds": Variant("with a choice of 2 seeds", lambda method: replace(method, seeds=SeedSelection(2))),
        "seeds": Variant("with a choice of 4 seeds", lambda method: replace(method, seeds=SeedSelection(4))),
        "verify": Variant("verified first (classifier)", lambda method: replace(method, verify=Verification())),
        "two-attempts": Variant("up to 2 attempts", lambda one: replace(one, retries=Retries(2))),
        "retries": Variant("up to 3 attempts", lambda one: replace(one, retries=Retries(3))),
        "retries-probability": Variant("up to 3 attempts, presence not judged",
                                       lambda one: replace(one, retries=Retries(3, presence=0.0))),
        "published": Variant("published rule (factor 5, 16 iterations)",
                             lambda method: replace(method, rule=PublishedRule(step_size=5.0))),
        "centroid": Variant("centroid loss", lambda method: replace(method, objective=CentroidObjective())),
        "centroid-retries": Variant("centroid loss, up to 3 attempts", lambda method: replace(
            method, objective=CentroidObjective(), retries=Retries(3, presence=presence_wanted(Retries(), method)))),
        "centroid-presence": Variant("centroid loss with presence and balance", lambda method: replace(
            method, objective=CentroidObjective(presence=0.5, balance=0.5))),
        "attend-and-excite": Variant("Attend-and-Excite's objective", lambda method: replace(
            method, objective=PresenceObjective(unit=0.5))),
        "best-of-2": Variant("best of 2, by the detector that scores", None, best_of=2),
        "best-of-3": Variant("best of 3, by the detector that scores", None, best_of=3),
        "best-of-3-classifier": Variant("best of 3, by the classifier", lambda one: best_of_by_objective(one, 3)),
    }
)  # fmt: skip
