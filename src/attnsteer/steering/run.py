"""One steered pipeline run: judge the latents ahead of a denoiser call, and move them by the method's rule."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from attnsteer.families import Family, family_of
from attnsteer.install import suspended, uncompiled
from attnsteer.seam.maps import recomputable
from attnsteer.steering.call_rows import rows_of
from attnsteer.steering.descent import Descent, Judge, Judgement
from attnsteer.steering.objectives import Objective
from attnsteer.steering.offload import weights_by_reference
from attnsteer.steering.presence import seen
from attnsteer.steering.recording import Recording
from attnsteer.steering.region import Region, as_given, latents_of, put
from attnsteer.steering.relations import Relation, Span
from attnsteer.texts.inject import fresh


class Rule(Protocol):
    """Moves latents: `LeanRule`, `PublishedRule`, or one of the caller's."""

    def __call__(self, judge: Judge, latents: Tensor, step_index: int) -> Descent:
        """Move latents (rows, ...) by what `judge` says of them."""
        ...


class Method(Protocol):
    """What a run needs of `LearnedSteering`."""

    @property
    def objective(self) -> Objective:
        """Judges the maps."""
        ...

    @property
    def rule(self) -> Rule:
        """Moves the latents."""
        ...

    @property
    def recording(self) -> Recording:
        """Which maps are judged."""
        ...

    def noise_level(self, scheduler: Any, timestep: Tensor | float, step_index: int) -> float:
        """Noise level of a denoiser call, in the objective's measure."""
        ...


class TrialOver(Exception):
    """A trial has been judged and need not go on: not an error, it ends the pipeline call early."""


@dataclass(frozen=True)
class StepReport:
    """What steering did ahead of one denoising step.

    Attributes:
        step_index: Denoising step, from 0.
        iterations: Forward and backward passes of the denoiser.
        before: For each of the report's rows, the smallest probability of its relations before the first move.
        after: The same at the last evaluation.
    """

    step_index: int
    iterations: int
    before: tuple[float, ...]
    after: tuple[float, ...]


@dataclass
class SteeringReport:
    """What steering did in one pipeline call.

    Pictures are counted as the pipeline returns them: those of the first prompt, those of the second one, ...

    Attributes:
        relations: Of each prompt.
        rows: The pictures that were steered (in a trial: judged), by number.
        per_prompt: Pictures of each prompt: row r shows `relations[r // per_prompt]`.
        steps: One entry per steered step.
        trials: Reports of the runs that were made before this one: seeds that were tried, and the plain run that was
            verified. Their steps were judged, not steered. A run for some of the prompts counts the pictures of these.
        verified: For each row that was judged, how probable its relations were in the plain run that was verified by
            the objective; empty without verification, or with a judge of the caller's.
        seeds: For each row that was judged, the number of the seed that was chosen (0 is the caller's own); empty
            without a choice.
        attempts: For each row with a relation, the number of the attempt that was kept (0 is the first); empty without
            retries.
        scores: For each row with a relation, how probable its relations were in that attempt, or 1 and 0 for what a
            detector finds right and wrong; empty without retries.
    """

    relations: list[list[Relation]]
    rows: tuple[int, ...] = ()
    per_prompt: int = 1
    steps: list[StepReport] = field(default_factory=list)
    trials: list[SteeringReport] = field(default_factory=list)
    verified: tuple[float, ...] = ()
    seeds: tuple[int, ...] = ()
    attempts: tuple[int, ...] = ()
    scores: tuple[float, ...] = ()

    @property
    def iterations(self) -> int:
        """Forward and backward passes of the whole call, trials included."""
        return sum(step.iterations for step in self.steps) + sum(trial.iterations for trial in self.trials)

    def __str__(self) -> str:
        """One line for each steered picture, and one for the work."""
        lines = []
        for place, row in enumerate(self.rows if self.steps else ()):
            named = ", ".join(
                f"{r.subject.text!r} {r.relation} {r.object.text!r}" for r in self.relations[row // self.per_prompt]
            )
            first, last = self.steps[0].before[place], self.steps[-1].after[place]
            lines.append(f"picture {row}: {named}: probability {first:.3f} before, {last:.3f} after")
        work = f"{self.iterations} denoiser passes; {len(self.steps)} steered steps, {len(self.trials)} trials"
        return "\n".join([*lines, work])


@dataclass(frozen=True)
class SteeredRow:
    """One conditional row of the denoiser: its relations, and the text rows of each span."""

    relations: list[Relation]
    tokens: dict[Span, list[int]]


class SteeredRun:
    """One steered pipeline run: judges latents through the denoiser, and moves them by the rule.

    `denoiser` is the one that the pipeline is about to call; pipelines with two experts change it.
    """

    def __init__(
        self, method: Method, pipe: Any, denoiser: nn.Module, rows: list[SteeredRow], report: SteeringReport
    ) -> None:
        self.method, self.pipe, self.denoiser, self.rows, self.report = method, pipe, denoiser, rows, report

    def total(self) -> int:
        """Number of denoising steps."""
        return int(vars(self.pipe).get("_num_timesteps") or len(self.pipe.scheduler.timesteps))

    def move(
        self, arguments: dict[str, Any], step_index: int, rows: Tensor | None = None, region: Region = (slice(None),)
    ) -> Tensor:
        """Moved latents of the conditional rows of a denoiser call; rows without a relation stay as they are.

        Args:
            arguments: Of the call, for its conditional rows alone, or with others that it cannot do without.
            step_index: Denoising step, from 0.
            rows: The conditional rows among those of the arguments; None is all of them.
            region: Where the latents lie in the denoiser's input.

        Raises: ValueError if the rows are not those of the prompts, or the rule finds no finite gradient; TrialOver if
            the rule says that the call need not go on.
        """
        batch = _Batch(family_of(uncompiled(self.denoiser)), arguments, region, rows)
        latents = batch.own
        if len(latents) != len(self.rows):
            raise ValueError(f"expected {len(self.rows)} conditional rows, the denoiser got {len(latents)}")
        active = [i for i, row in enumerate(self.rows) if row.relations]
        if not active:
            return latents
        chosen = torch.tensor(active, device=latents.device)
        whole = latents[chosen]
        level = self.method.noise_level(self.pipe.scheduler, batch.timestep, step_index)
        cut = batch if len(active) == len(latents) else batch.of(chosen)

        def judge(latents: Tensor, rows: Tensor | None = None) -> Judgement:
            part = cut if rows is None else cut.of(rows)
            numbers = active if rows is None else [active[i] for i in rows.tolist()]
            return self._judge(part.with_latents(latents), part.places, [self.rows[i] for i in numbers], level)

        here = self.denoiser
        with torch.enable_grad(), suspended(here), weights_by_reference(here), recomputable(here):
            descent: Descent = self.method.rule(judge, whole[region], step_index)
        self.report.steps.append(
            StepReport(step_index, descent.iterations, tuple(descent.before.tolist()), tuple(descent.after.tolist()))
        )
        if getattr(self.method.rule, "over", False):
            raise TrialOver
        result = latents.clone()
        result[chosen] = put(whole, region, descent.latents)
        return result

    def _judge(self, call: dict[str, Any], places: list[int], rows: list[SteeredRow], level: float) -> Judgement:
        """Judge the rows, which lie at some places of the call's batch."""
        pairs = [(i, r.subject, r.object) for i, row in zip(places, rows, strict=True) for r in row.relations]
        tokens: list[dict[Span, list[int]]] = [
            {} for _ in range(len(call[family_of(uncompiled(self.denoiser)).latents]))
        ]
        for place, row in zip(places, rows, strict=True):
            tokens[place] = row.tokens
        maps = self.method.recording.pair_maps(self.denoiser, call, tokens, pairs)
        names = [r.relation for row in rows for r in row.relations]
        verdict = self.method.objective(maps, level, names)
        counts = [len(row.relations) for row in rows]
        wanted = torch.arange(max(counts))[None] < torch.tensor(counts)[:, None]
        wanted = wanted.to(verdict.loss.device)
        losses = verdict.loss.new_zeros(wanted.shape).masked_scatter(wanted, verdict.loss)
        probabilities = verdict.probability.new_ones(wanted.shape).masked_scatter(wanted, verdict.probability)
        peaks = probabilities.new_ones(wanted.shape).masked_scatter(wanted, seen(maps).to(probabilities))
        return Judgement(losses, probabilities, wanted, peaks)


@dataclass(frozen=True)
class _Batch:
    """A denoiser call of which some rows are steered.

    Attributes:
        family: The denoiser's row.
        arguments: Of the call.
        region: Where the latents lie in its input.
        rows: The steered rows; None is all. The others are there because the denoiser's processors count on them.
    """

    family: Family
    arguments: dict[str, Any]
    region: Region
    rows: Tensor | None = None

    @property
    def own(self) -> Tensor:
        """The denoiser's input for the steered rows."""
        latents = latents_of(self.family, self.arguments)
        return latents if self.rows is None else latents[self.rows]

    @property
    def places(self) -> list[int]:
        """The steered rows of the batch."""
        return list(range(len(self.own))) if self.rows is None else self.rows.tolist()

    @property
    def timestep(self) -> Any:
        """The time step as the denoiser gets it.

        Raises: ValueError if it gets none under its row's keyword.
        """
        given = self.arguments.get(self.family.timestep)
        if given is None:
            raise ValueError(
                f"the {self.family.denoiser} is called without {self.family.timestep}, so its noise level is unknown: "
                "pass it by that name"
            )
        return given

    def of(self, rows: Tensor) -> _Batch:
        """Some of the steered rows; the others are left out of the call where they can be."""
        if self.rows is not None:
            return replace(self, rows=self.rows[rows.cpu()])
        return replace(self, arguments=rows_of(self.family, self.arguments, rows))

    def with_latents(self, part: Tensor) -> dict[str, Any]:
        """The call's arguments in fresh containers, with other latents for the steered rows; differentiable."""
        latents = latents_of(self.family, self.arguments)
        if self.rows is None:
            moved = put(latents, self.region, part)
        else:
            moved = latents.clone()
            moved[self.rows] = put(latents[self.rows], self.region, part)
        given = self.arguments[self.family.latents]
        return {**fresh(self.arguments), self.family.latents: as_given(moved, given)}
