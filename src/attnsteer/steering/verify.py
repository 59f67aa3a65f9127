"""Verify, then steer: draw the picture plainly, judge it, and draw again with steering only what is wrong."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any

import torch

from attnsteer.steering.relations import Relation
from attnsteer.steering.run import SteeringReport
from attnsteer.steering.trials import (
    Arguments,
    Run,
    Watch,
    after_steering,
    random_states,
    set_random_states,
    watching,
)

if TYPE_CHECKING:
    from attnsteer.steering.learned import LearnedSteering

Detector = Callable[[Sequence[Any], Sequence[Sequence[Relation]]], Sequence[bool]]
"""(pictures as the pipeline returns them, the relations of each) -> whether each picture is right."""

_PER_PROMPT = ("prompt", "negative_prompt", "generator", "steer_relations")


@dataclass(frozen=True)
class Verification:
    """Who judges the plain picture, and when.

    Pictures that are right stay as the stock pipeline draws them, bit by bit. With p the share of these and s the cost
    of steering in units of a plain picture, a picture costs 1 + (1 - p)(1 + s) on average with a detector. With the
    objective as judge a single wrong picture is given up at the step where it is judged, and costs `at` instead of 1.
    Against steering everything, 1 + s, this pays where p is large or s is (the published rule); the lean rule leaves
    rows that are right alone by itself.

    Attributes:
        detector: Judges finished pictures; None lets the steering objective judge on the way.
        probability: Probability of all relations together that passes as right, in (0, 1); for the objective.
        at: Fraction of the steps at which the objective judges, [0, 1); None is right after the steered steps, or
            three quarters through where these last to the end.
    """

    detector: Detector | None = None
    probability: float = 0.5
    at: float | None = None

    def __post_init__(self) -> None:
        if not 0.0 < self.probability < 1.0:
            raise ValueError(f"probability must be in (0, 1), got {self.probability}")
        if self.at is not None and not 0.0 <= self.at < 1.0:
            raise ValueError(f"at must be in [0, 1), got {self.at}")


@dataclass
class _Plain:
    """A plain run: its output (None if it was given up), the rows that were judged, and which of them are right."""

    output: Any
    rows: tuple[int, ...]
    right: list[bool]
    per_prompt: int
    reports: list[SteeringReport]
    verified: tuple[float, ...] = ()


def verified_call(
    pipe: Any, call: Mapping[str, Any], run: Run, method: LearnedSteering, verification: Verification
) -> tuple[Any, SteeringReport]:
    """Draw plainly, judge, and draw with steering what is wrong.

    A batch is cut down to its wrong pictures where the call is made of prompts, negative prompts, generators and
    plain settings; otherwise all of it is drawn again, and only the wrong pictures are steered.

    Args:
        pipe: A stock pipeline.
        call: Prepared keywords of the call.
        run: Makes a guided call.
        method: Steers what is wrong.
        verification: Who judges.

    Returns: What the pipeline returns, and the report.

    Raises: ValueError if the detector does not judge every picture.
    """
    wanted: list[list[Relation]] = call["steer_relations"]
    before = random_states(call)
    plain = (
        _by_detector(call, run, method, verification)
        if verification.detector
        else _judged(call, run, method, verification)
    )
    if all(plain.right) and plain.output is not None:
        return plain.output, SteeringReport(wanted, trials=plain.reports, verified=plain.verified)
    after = random_states(call)
    set_random_states(call, before)
    wrong = [row for row, right in zip(plain.rows, plain.right, strict=True) if not right]
    if plain.output is not None and plain.per_prompt == 1 and is_cuttable(call):
        output, report = run(cut(call, wrong), replace(method, rows=None), rows=wrong)
        set_random_states(call, after)
        output = merged(plain.output, output, wrong)
    else:
        output, report = run(dict(call), replace(method, rows=tuple(wrong)))
    report = SteeringReport(wanted) if report is None else report
    report.rows, report.relations, report.verified = tuple(wrong), wanted, plain.verified
    report.trials = [*plain.reports, *report.trials]
    return output, report


def _judged(call: Mapping[str, Any], run: Run, method: LearnedSteering, verification: Verification) -> _Plain:
    """A plain run that the objective judges; given up where none of it would be kept."""
    at = after_steering(method) if verification.at is None else verification.at
    everything = all(call["steer_relations"])

    def ends(score: torch.Tensor) -> bool:
        good = score >= verification.probability
        return not bool(good.all()) if not is_cuttable(call) else everything and not bool(good.any())

    watch = Watch(ends)
    output, report = run(dict(call), watching(method, watch, at))
    score = [] if watch.score is None else watch.score.tolist()
    right = [value >= verification.probability for value in score]
    rows, per_prompt = ((), 1) if report is None else (report.rows, report.per_prompt)
    return _Plain(output, rows, right, per_prompt, [] if report is None else [report], tuple(score))


def _by_detector(call: Mapping[str, Any], run: Run, method: LearnedSteering, verification: Verification) -> _Plain:
    """A plain run whose pictures the detector judges."""
    wanted = call["steer_relations"]
    output, _ = run(dict(call), None)
    pictures = list(output[0])
    per_prompt = len(pictures) // len(wanted)
    relations = [wanted[row // per_prompt] for row in range(len(pictures))]
    allowed = range(len(pictures)) if method.rows is None else method.rows
    chosen = tuple(row for row, each in enumerate(relations) if each and row in allowed)
    detector: Detector = verification.detector  # type: ignore[assignment]
    verdicts = [[pictures[row] for row in chosen], [relations[row] for row in chosen]]
    right = verdicts_of(detector, *verdicts) if chosen else []
    return _Plain(output, chosen, right, per_prompt, [])


def verdicts_of(detector: Detector, pictures: Sequence[Any], relations: Sequence[Sequence[Relation]]) -> list[bool]:
    """What a detector says of each picture.

    Raises: ValueError if it does not judge every picture.
    """
    right = [bool(verdict) for verdict in detector(pictures, relations)]
    if len(right) != len(pictures):
        raise ValueError(f"the detector judged {len(right)} of {len(pictures)} pictures: it must judge each")
    return right


def is_cuttable(call: Mapping[str, Any]) -> bool:
    """Whether it is known of every keyword which part of it belongs to which prompt."""
    prompts = call["prompt"]
    if isinstance(prompts, str) or isinstance(call.get("generator"), torch.Generator):
        return False
    if call.get("generator") is None or len(call["generator"]) != len(prompts):
        return False
    others = [value for name, value in call.items() if name not in _PER_PROMPT]
    return not any(isinstance(value, list | tuple | dict) or hasattr(value, "shape") for value in others)


def cut(call: Mapping[str, Any], rows: Sequence[int]) -> Arguments:
    """The keywords of a call for some of its prompts; see `is_cuttable`."""
    part = dict(call)
    for name in _PER_PROMPT:
        if isinstance(part.get(name), list | tuple):
            part[name] = [part[name][row] for row in rows]
    return part


def merged(whole: Any, part: Any, rows: Sequence[int], taken: Sequence[int] | None = None) -> Any:
    """A pipeline's output with some of its pictures taken from another output.

    Args:
        whole: Output for all pictures: a tuple or a diffusers output, whose fields hold one entry per picture.
        part: Where the new pictures come from.
        rows: Their places in `whole`.
        taken: Their places in `part`; None is 0, 1, ...
    """
    places = list(zip(rows, range(len(rows)) if taken is None else taken, strict=True))
    if isinstance(whole, tuple):
        return tuple(_replaced(mine, other, places) for mine, other in zip(whole, part, strict=True))
    names = [each.name for each in fields(whole)]
    return type(whole)(**{name: _replaced(getattr(whole, name), getattr(part, name), places) for name in names})


def _replaced(whole: Any, part: Any, places: Sequence[tuple[int, int]]) -> Any:
    if isinstance(whole, list):
        changed: Any = list(whole)
    elif hasattr(whole, "shape"):
        changed = whole.clone() if isinstance(whole, torch.Tensor) else whole.copy()
    else:
        return whole
    for row, source in places:
        changed[row] = part[source]
    return changed
