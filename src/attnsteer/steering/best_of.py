"""Best-of-N: several seeds of the unsteered model, of which a judge takes the best. The baseline to beat."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from attnsteer.steering.descent import Descent, Judge
from attnsteer.steering.select import SeedSelection, with_seed
from attnsteer.steering.trials import after_steering
from attnsteer.steering.verify import merged

if TYPE_CHECKING:
    from attnsteer.steering.learned import LearnedSteering

Score = Callable[[Sequence[Any]], Sequence[float]]
"""Pictures as the pipeline returns them -> how good each of them is."""


@dataclass(frozen=True)
class Unmoved:
    """A rule that judges nothing and moves nothing."""

    def __call__(self, judge: Judge, latents: Tensor, step_index: int) -> Descent:
        """Leave the latents as they are."""
        certain = torch.ones(len(latents))
        return Descent(latents, 0, certain, certain)


def best_of_by_objective(method: LearnedSteering, candidates: int, at: float | None = None) -> LearnedSteering:
    """Best-of-N with the steering objective as judge; the picture itself is not steered.

    Costs candidates x (at + one pass) + 1 plain pictures, as candidates end where they are judged.

    Args:
        method: Judges; its rule is not used.
        candidates: N, >= 2.
        at: Fraction of the steps at which candidates are judged; None is right after the steered steps.
    """
    selection = SeedSelection(candidates, after_steering(method) if at is None else at, enough=1.0)
    return replace(method, rule=Unmoved(), seeds=selection, verify=None, retries=None)


def best_of_by_score(pipe: Any, score: Score, candidates: int, **call: Any) -> tuple[Any, list[list[float]]]:
    """Best-of-N with a detector or another score of finished pictures as judge, picture by picture.

    Args:
        pipe: A pipeline, guided or not.
        score: Judges the pictures of one call.
        candidates: N, >= 1; costs N plain pictures.
        call: Keywords of the pipeline call. Candidate 0 is the call as it is; a list of generators gives every picture
            seeds of its own.

    Returns: What the pipeline returns, each picture being the best of its candidates (the first of equals), and the
        scores of the pictures of each candidate.

    Raises: ValueError if there is no candidate, or a picture has no score.
    """
    if candidates < 1:
        raise ValueError(f"candidates must be >= 1, got {candidates}")
    calls = [call, *(with_seed(call, number) for number in range(1, candidates))]
    best, scores = None, []
    top: list[float] = []
    for each in calls:
        output = pipe(**each)
        found = [float(value) for value in score(output[0])]
        if len(found) != len(output[0]):
            raise ValueError(f"got {len(found)} scores for {len(output[0])} pictures")
        scores.append(found)
        if best is None:
            best, top = output, list(found)
            continue
        better = [row for row, value in enumerate(found) if value > top[row]]
        if better:
            best = merged(best, output, better, better)
            top = [max(pair) for pair in zip(top, found, strict=True)]
    return best, scores
