"""Steer, judge, and try again: what still stands wrong after steering is drawn and steered anew from another seed."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from attnsteer.pipeline.schedule import Window
from attnsteer.steering.descent import Descent, Judge, Judgement
from attnsteer.steering.run import Rule, SteeringReport
from attnsteer.steering.select import with_seed
from attnsteer.steering.trials import Run, Watch, random_states, set_random_states
from attnsteer.steering.verify import Detector, cut, is_cuttable, merged, verdicts_of

if TYPE_CHECKING:
    from attnsteer.steering.learned import LearnedSteering

_LATER = 0.2
_PER_PROMPT = ("num_images_per_prompt", "num_videos_per_prompt")


@dataclass(frozen=True)
class Retries:
    """How often a picture is drawn until its relations hold, and who says that they do.

    Every attempt is steered. The objective judges it some steps after steering has ended: what steering wrote into the
    latents and the model did not follow is gone by then. The first attempt that passes is kept, else the one with the
    highest score. Attempt 0 is the call's own seed. An attempt that failed ends where it is judged, unless the call
    draws other pictures beside it that are kept: with p the share of attempts that pass, a failed one costs `at` of a
    steered picture, and a picture has (1 - p) + (1 - p)^2 + ... of them on average.

    With a list of generators each picture is tried anew by itself; with a single one, all pictures of the call are
    drawn, and those that were wrong are replaced.

    The objective says where objects stand, not whether they are there. So the score of an attempt is

        prod_r p_r  min(1, min_s peak_s / presence)

    over the relations r and objects s, with the peak of `attnsteer.steering.presence.seen`.

    Attributes:
        attempts: Draws at most, >= 2.
        probability: Score that passes, in (0, 1).
        at: Fraction of the steps at which the objective judges, [0, 1); None is a fifth of the way from the end of
            steering to the end of the steps.
        detector: Judges finished pictures in the objective's place.
        presence: Peak of the map of an object that is there, where attempts are judged, [0, 1]; 0 does not ask for it,
            None is what the classifier's settings advise, if anything.
    """

    attempts: int = 3
    probability: float = 0.8
    at: float | None = None
    detector: Detector | None = None
    presence: float | None = None

    def __post_init__(self) -> None:
        if self.attempts < 2:
            raise ValueError(f"attempts must be >= 2, got {self.attempts}; leave retries out to switch them off")
        if not 0.0 < self.probability < 1.0:
            raise ValueError(f"probability must be in (0, 1), got {self.probability}")
        if self.at is not None and not 0.0 <= self.at < 1.0:
            raise ValueError(f"at must be in [0, 1), got {self.at}")
        if self.presence is not None and not 0.0 <= self.presence <= 1.0:
            raise ValueError(f"presence is a share of a map in [0, 1], got {self.presence}")

    def judged_at(self, end: float) -> float:
        """The fraction of the steps at which attempts are judged, for steering that ends at `end`.

        Raises: ValueError if no step is left after steering, or `at` lies within it.
        """
        at = end + _LATER * (1 - end) if self.at is None else self.at
        if end >= 1.0 or at < end:
            raise ValueError(
                f"retries judge after steering has ended, but it goes on to {end:g} of the steps: set LearnedSteering("
                "..., end=0.5), Retries(at=...) beyond the end, or Retries(detector=...)"
            )
        return at


@dataclass(eq=False)
class SteeredWatch(Watch):
    """Steers by a rule within a window, and judges the latents once later on.

    Attributes:
        rule: Moves the latents.
        steered: Where it does.
        judged: From where on the latents are judged.
        presence: See `Retries`; 0 asks for none.
        total: Number of denoising steps, known once the run has begun.
    """

    rule: Rule | None = None
    steered: Window = field(default_factory=Window)
    judged: Window = field(default_factory=Window)
    presence: float = 0.0
    total: Callable[[], int] = lambda: 1

    def __call__(self, judge: Judge, latents: Tensor, step_index: int) -> Descent:
        """Move, wait, or judge, as the step wants it."""
        steps = self.total()
        if self.rule is not None and self.steered.contains(step_index, steps):
            return self.rule(judge, latents, step_index)
        if self.judged.contains(step_index, steps):
            return super().__call__(judge, latents, step_index)
        certain = torch.ones(len(latents))
        return Descent(latents, 0, certain, certain)

    def scored(self, judged: Judgement) -> Float[Tensor, " rows"]:
        """Probability of all relations, less where an object is seen faintly; see `Retries`."""
        score = super().scored(judged)
        if judged.peaks is None or not self.presence:
            return score
        return score * (judged.peaks.amin(dim=1) / self.presence).clamp(max=1.0)


def retrying(run: Run) -> Run:
    """A run that tries calls anew where their method wants that.

    It raises ValueError if such a call brings its own latents.
    """

    def tried(
        call: Mapping[str, Any], method: LearnedSteering | None, rows: Sequence[int] | None = None
    ) -> tuple[Any, SteeringReport | None]:
        if method is None or method.retries is None:
            return run(dict(call), method, rows=rows)
        return _Attempts(call, run, method, method.retries, rows).best()

    return tried


@dataclass
class _Drawn:
    """A finished attempt: its output, and the place in it of each of the call's rows that it holds."""

    output: Any
    places: dict[int, int]


class _Attempts:
    """The attempts of one call. Rows are numbered as the call draws them."""

    def __init__(
        self,
        call: Mapping[str, Any],
        run: Run,
        method: LearnedSteering,
        retries: Retries,
        prompts: Sequence[int] | None,
    ) -> None:
        if call.get("latents") is not None:
            raise ValueError("retries draw the noise themselves: leave latents out, or LearnedSteering(retries=None)")
        self.run, self.method, self.retries, self.prompts = run, replace(method, retries=None), retries, prompts
        self.at = 0.0 if retries.detector else retries.judged_at(method.end)
        self.calls = [dict(call), *(with_seed(call, number) for number in range(1, retries.attempts))]
        self.states = [random_states(each) for each in self.calls]
        self.wanted = call["steer_relations"]
        self.per_prompt = next((int(call[name]) for name in _PER_PROMPT if call.get(name)), 1)
        self.rows = list(range(len(self.wanted) * self.per_prompt))
        allowed = self.rows if method.rows is None else method.rows
        self.judged = [row for row in self.rows if row in allowed and self.wanted[row // self.per_prompt]]
        self.scores = dict.fromkeys(self.judged, -1.0)
        self.sources = dict.fromkeys(self.judged, 0)
        self.drawn: dict[int, _Drawn] = {}
        self.reports: list[SteeringReport] = []

    def best(self) -> tuple[Any, SteeringReport | None]:
        """The best attempt of each row; a single run where no row is to be steered."""
        if not self.judged:
            return self.run(dict(self.calls[0]), self.method, rows=self.prompts)
        remaining = self.judged
        for number in range(self.retries.attempts):
            scores = self._attempt(number, remaining)
            for row, score in zip(remaining, scores, strict=True):
                if score > self.scores[row]:
                    self.scores[row], self.sources[row] = score, number
            remaining = [row for row in remaining if self.scores[row] < self.retries.probability]
            if not remaining:
                break
        output = self._assembled()
        report = self.reports[0]
        report.trials = [*report.trials, *self.reports[1:]]
        report.attempts, report.scores = tuple(self.sources.values()), tuple(self.scores.values())
        return output, report

    def _attempt(self, number: int, rows: Sequence[int]) -> list[float]:
        """Draw some rows and judge them; returns their scores."""
        last = number == self.retries.attempts - 1
        alone = number > 0 or len(self.judged) == len(self.rows)

        def ends(score: Tensor) -> bool:
            found = dict(zip(rows, score.tolist(), strict=True))
            kept = any(value >= self.retries.probability for value in found.values())
            better = any(value > self.scores[row] for row, value in found.items())
            return alone and not kept and not (last and better)

        if self.retries.detector is not None:
            drawn = self._draw(number, rows, self.method)
            pictures = list(drawn.output[0])
            relations = [self.wanted[row // self.per_prompt] for row in rows]
            verdicts = verdicts_of(self.retries.detector, [pictures[drawn.places[row]] for row in rows], relations)
            return [float(verdict) for verdict in verdicts]
        steered, judged = Window(self.method.start, self.method.end), Window(self.at, 1.0)
        watch = SteeredWatch(ends, self.method.rule, steered, judged, presence_wanted(self.retries, self.method))
        self._draw(number, rows, replace(self.method, rule=watch, end=1.0, seeds=None, verify=None))
        if watch.score is None:
            raise RuntimeError("an attempt was not judged")
        return [float(value) for value in watch.score]

    def _draw(self, number: int, rows: Sequence[int], method: LearnedSteering) -> _Drawn:
        """One run for some rows, and for all others until one run has finished; kept if it was not ended early."""
        call = self.calls[number]
        set_random_states(call, self.states[number])
        chosen = self.method.rows if len(rows) == len(self.judged) else tuple(rows)
        if self.drawn and self.per_prompt == 1 and is_cuttable(call):
            places = {row: place for place, row in enumerate(rows)}
            outer = list(rows) if self.prompts is None else [self.prompts[row] for row in rows]
            output, report = self.run(cut(call, rows), replace(method, rows=None), rows=outer)
        else:
            places = {row: row for row in self.rows}
            output, report = self.run(dict(call), replace(method, rows=chosen), rows=self.prompts)
        if report is None:
            raise RuntimeError("an attempt was not steered")
        report.steps = [step for step in report.steps if step.iterations]  # steps between steering and judging
        self.reports.append(report)
        drawn = _Drawn(output, places)
        if output is not None:
            self.drawn[number] = drawn
        return drawn

    def _assembled(self) -> Any:
        """All rows in one output, each from its best attempt; attempts that were ended early are drawn again."""
        for number in sorted(set(self.sources.values())):
            rows = [row for row, source in self.sources.items() if source == number]
            if number not in self.drawn:
                self._draw(number, rows if self.drawn else self.judged, self.method)
        base = next(number for number in sorted(self.drawn) if len(self.drawn[number].places) == len(self.rows))
        output = self.drawn[base].output
        for number, drawn in self.drawn.items():
            rows = [row for row, source in self.sources.items() if source == number != base]
            if rows:
                output = merged(output, drawn.output, rows, [drawn.places[row] for row in rows])
        return output


def presence_wanted(retries: Retries, method: LearnedSteering) -> float:
    """The peak that is asked of objects: the retries' own, else what the method's classifier advises, else 0."""
    if retries.presence is not None:
        return retries.presence
    classifier = getattr(method.objective, "classifier", None)
    return (classifier.settings.lean.presence if classifier is not None else None) or 0.0
