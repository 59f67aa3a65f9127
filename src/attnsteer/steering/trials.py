"""Trial runs of a pipeline: judged by the steering objective on their way, moved by nothing, and cut short."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from attnsteer.changes import Attribute, applied
from attnsteer.pipeline.conditioning import CALLBACKS, preserved
from attnsteer.steering.descent import Descent, Judge, Judgement
from attnsteer.steering.run import SteeringReport

if TYPE_CHECKING:
    from attnsteer.steering.learned import LearnedSteering

Arguments = dict[str, Any]
Run = Callable[..., tuple[Any, SteeringReport | None]]
"""`run(call, method, rows=None)`: one guided pipeline call, with its report. Without a method nothing is steered;
`rows` says which of the prompts the call holds, where it holds only some."""


@dataclass(eq=False)
class Watch:
    """In place of a rule: judges the latents once, and moves nothing.

    Attributes:
        ends: Told the verdict, says whether the run ends there.
        score: For each row with a relation, the product of its relations' probabilities; None before the verdict.
    """

    ends: Callable[[Float[Tensor, " rows"]], bool] = lambda score: True
    score: Float[Tensor, " rows"] | None = field(default=None, init=False)

    def __call__(self, judge: Judge, latents: Tensor, step_index: int) -> Descent:
        """Judge the latents the first time it is asked."""
        if self.score is not None:
            return Descent(latents, 0, self.score, self.score)
        with torch.no_grad():
            judged = judge(latents)
        self.score = self.scored(judged)
        least = judged.probabilities.amin(dim=1)
        return Descent(latents, 1, least, least)

    def scored(self, judged: Judgement) -> Float[Tensor, " rows"]:
        """How good each row is, in [0, 1]."""
        return judged.probabilities.prod(dim=1)

    @property
    def over(self) -> bool:
        """Whether the pipeline call need not go on."""
        return self.score is not None and self.ends(self.score)


def watching(method: LearnedSteering, watch: Watch, at: float) -> LearnedSteering:
    """The method with a watch in place of its rule, at the first step from the fraction `at` of the steps on."""
    return replace(method, rule=watch, start=at, end=1.0, seeds=None, verify=None, retries=None)


def after_steering(method: LearnedSteering) -> float:
    """The fraction of the steps right after the steered ones; three quarters where these last to the end."""
    return method.end if method.end < 1.0 else 0.75


def tried(pipe: Any, call: Mapping[str, Any], run: Run, method: LearnedSteering) -> tuple[Any, SteeringReport]:
    """Run a call with a watching method, quietly, without the user's callbacks; leave no trace of it.

    Returns: What the pipeline returned, None if the watch ended the run, and the report.
    """
    quiet = {**getattr(pipe, "_progress_bar_config", {}), "disable": True}
    silent = {name: value for name, value in call.items() if name not in CALLBACKS}
    with preserved(pipe, call), applied([Attribute(pipe, "_progress_bar_config", quiet)]):
        output, report = run(silent, method)
    if report is None:
        raise RuntimeError("a trial run was not steered")
    return output, report


def random_states(call: Mapping[str, Any]) -> list[Tensor]:
    """States of the call's generators, and of the global one."""
    return [generator.get_state() for generator in generators_of(call)] + [torch.get_rng_state()]


def set_random_states(call: Mapping[str, Any], states: list[Tensor]) -> None:
    """Set what `random_states` gave."""
    for generator, state in zip(generators_of(call), states[:-1], strict=True):
        generator.set_state(state)
    torch.set_rng_state(states[-1])


def generators_of(call: Mapping[str, Any]) -> list[torch.Generator]:
    """The generators of a pipeline call; none where it uses the global random state."""
    given = call.get("generator")
    return [] if given is None else [given] if isinstance(given, torch.Generator) else list(given)
