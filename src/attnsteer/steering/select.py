"""Seed selection: several seeds begin the picture, the steering objective judges them early, the best one is drawn."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from attnsteer.steering.trials import Arguments, Run, Watch, tried, watching

if TYPE_CHECKING:
    from attnsteer.steering.learned import LearnedSteering
    from attnsteer.steering.run import SteeringReport

_LAST_SEED = 2**63 - 1


@dataclass(frozen=True)
class SeedSelection:
    """How many seeds are tried, and when they are judged.

    Each candidate is drawn up to the step at `at` and judged there by one pass of the denoiser; the best is drawn from
    the beginning. Candidate 0 is the call's own seed. Costs up to candidates x (at + one pass) more than without, in
    units of a plain picture and of a denoiser call; fewer where a candidate is good enough.

    With a list of generators each picture gets the best of its own seeds; with a single one, the seed is chosen whose
    pictures are best together.

    Attributes:
        candidates: Seeds, >= 2.
        at: Fraction of the steps at which they are judged, [0, 1); None is where steering starts.
        enough: Probability of all relations together at which no further seed is tried, in (0, 1]; 1 tries them all.

    Source: the idea is that of search over noises with a verifier, e.g. Ma et al. 2025, arXiv:2501.09732; that the
    relation classifier is such a verifier is ours.
    """

    candidates: int = 4
    at: float | None = None
    enough: float = 0.9

    def __post_init__(self) -> None:
        if self.candidates < 2:
            raise ValueError(f"candidates must be >= 2, got {self.candidates}; leave seeds out to switch it off")
        if self.at is not None and not 0.0 <= self.at < 1.0:
            raise ValueError(f"at must be in [0, 1), got {self.at}")
        if not 0.0 < self.enough <= 1.0:
            raise ValueError(f"enough must be in (0, 1], got {self.enough}")


def best_seeds(
    pipe: Any, call: Mapping[str, Any], run: Run, method: LearnedSteering, selection: SeedSelection
) -> tuple[Arguments, tuple[int, ...], list[SteeringReport]]:
    """The call with the best seeds.

    Args:
        pipe: A stock pipeline.
        call: Prepared keywords of the call.
        run: Makes a guided call.
        method: Judges the candidates.
        selection: How many, and when.

    Returns: The call, the number of the candidate of each judged row, and the reports of the trials.

    Raises: ValueError if the call brings its own latents.
    """
    if call.get("latents") is not None:
        raise ValueError("seed selection draws the noise itself: leave latents out, or LearnedSteering(seeds=None)")
    at = method.start if selection.at is None else selection.at
    candidates, reports, scores = [dict(call)], [], []
    for number in range(selection.candidates):
        if number:
            candidates.append(with_seed(call, number))
        watch = Watch()
        _, report = tried(pipe, candidates[-1], run, watching(method, watch, at))
        reports.append(report)
        scores.append(watch.score if watch.score is not None else torch.ones(0))
        best, chosen = torch.stack(scores).max(dim=0)
        if not isinstance(call.get("generator"), list | tuple):  # one seed for all: log p adds up over the pictures
            together = torch.stack(scores).clamp_min(1e-12).log().sum(dim=1)
            chosen = together.argmax().expand(len(chosen))
            best = scores[int(together.argmax())]
        if bool((best >= selection.enough).all()):
            break
    numbers = tuple(int(number) for number in chosen)
    return _chosen(call, candidates, numbers, reports[0].rows), numbers, reports


def with_seed(call: Mapping[str, Any], number: int) -> Arguments:
    """The call with other seeds, which follow from the present state of its own; that state is left alone.

    Args:
        call: Keywords of a pipeline call; without a generator the global random state counts.
        number: Tells the candidates of one call apart.
    """
    given = call.get("generator")
    if isinstance(given, list | tuple):
        return {**call, "generator": [_other(generator, number) for generator in given]}
    return {**call, "generator": _other(given, number)}


def _other(generator: torch.Generator | None, number: int) -> torch.Generator:
    device = torch.device("cpu") if generator is None else generator.device
    ahead = torch.Generator(device)
    ahead.set_state(torch.get_rng_state() if generator is None else generator.get_state())
    drawn = torch.randint(_LAST_SEED, (), generator=ahead, device=device)
    return ahead.manual_seed((int(drawn) + number) % _LAST_SEED)


def _chosen(
    call: Mapping[str, Any], candidates: list[Arguments], numbers: tuple[int, ...], rows: tuple[int, ...]
) -> Arguments:
    given = call.get("generator")
    if not isinstance(given, list | tuple):
        return candidates[numbers[0]] if numbers else dict(call)
    best = list(given)
    for row, number in zip(rows, numbers, strict=True):
        best[row] = candidates[number]["generator"][row]
    return {**call, "generator": best}
