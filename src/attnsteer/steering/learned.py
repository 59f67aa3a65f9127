"""Learned steering: move the latents until the objects stand where the prompt says."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from attnsteer.conditioning import Conditioning
from attnsteer.families import family_of
from attnsteer.inject import fresh
from attnsteer.install import (
    before_denoiser_call,
    frozen,
    suspended,
    uncompiled,
    wrap_scheduler_step,
)
from attnsteer.schedule import Window
from attnsteer.steering.classifier import RelationClassifier
from attnsteer.steering.descent import Descent, Judgement, LeanRule, PublishedRule
from attnsteer.steering.latents import LatentSteering, rows_of
from attnsteer.steering.locate import text_rows_of
from attnsteer.steering.noise import log_snr_of
from attnsteer.steering.objectives import ClassifierObjective, Objective
from attnsteer.steering.published import assign_by_intervals, published_schedule
from attnsteer.steering.recording import Recording
from attnsteer.steering.relations import Relation, Span, explain_relations, strip_markup


@dataclass(frozen=True)
class StepReport:
    """What steering did ahead of one denoising step.

    Attributes:
        step_index: Denoising step, from 0.
        iterations: Forward and backward passes of the denoiser.
        before: For each steered row, the smallest probability of its relations before the first move.
        after: The same at the last evaluation.
    """

    step_index: int
    iterations: int
    before: tuple[float, ...]
    after: tuple[float, ...]


@dataclass
class SteeringReport:
    """What steering did in one pipeline call: the relations of each prompt, and one entry per steered step."""

    relations: list[list[Relation]]
    steps: list[StepReport] = field(default_factory=list)

    @property
    def iterations(self) -> int:
        """Forward and backward passes of the whole call."""
        return sum(step.iterations for step in self.steps)


@dataclass(frozen=True)
class LearnedSteering:
    """Steers the latents of a stock pipeline by a relation classifier (or another objective) on its attention maps.

    Ahead of each step in the window the denoiser runs on the conditional rows, the maps of the named objects are
    judged, and `rule` moves the latents downhill. Prompts that name no relation are not touched and cost nothing.

    Attributes:
        objective: Judges the maps; `ClassifierObjective(classifier)` is the learned loss.
        rule: `LeanRule` (default) or `PublishedRule`.
        start: First steered step as a fraction of the steps, [0, 1).
        end: Fraction of the steps at which steering ends, (start, 1]; the paper's value is one half.
        recording: Which maps are judged.
        timesteps: Step indices the objective was trained on, where it counts steps (published checkpoints).
        unknown: What to do with a relation of the prompt that the objective cannot judge: "error", or "skip" it.

    Source: Yiflach, Atzmon, Chechik 2026, Learn-to-Steer, arXiv:2509.02295; the lean rule is ours.
    """

    objective: Objective
    rule: LeanRule | PublishedRule = field(default_factory=LeanRule)
    start: float = 0.0
    end: float = 0.5
    recording: Recording = field(default_factory=Recording)
    timesteps: tuple[int, ...] = ()
    unknown: Literal["error", "skip"] = "error"
    kind: ClassVar[str] = "steering"

    def __post_init__(self) -> None:
        if not 0.0 <= self.start < self.end <= 1.0:
            raise ValueError(f"start and end must satisfy 0 <= start < end <= 1, got {self.start} and {self.end}")
        if self.unknown not in ("error", "skip"):
            raise ValueError(f"unknown must be 'error' or 'skip', got {self.unknown!r}")

    @classmethod
    def from_classifier(cls, classifier: RelationClassifier, **settings: Any) -> LearnedSteering:
        """Steer by a classifier; maps are recorded as its settings say. `settings` are further attributes."""
        classifier.requires_grad_(False).eval()
        own = classifier.settings
        recording = Recording(own.source.layers, own.map_size, own.source.normalise)
        return cls(ClassifierObjective(classifier), recording=recording, timesteps=own.source.timesteps, **settings)

    @classmethod
    def from_pretrained(cls, folder_or_repo: str | Path, **settings: Any) -> LearnedSteering:
        """Load a classifier from a folder or the Hub (see `RelationClassifier.from_pretrained`)."""
        return cls.from_classifier(RelationClassifier.from_pretrained(folder_or_repo), **settings)

    @classmethod
    def from_published(cls, path: str | Path, *, stop_at_first: bool = False) -> LearnedSteering:
        """Load an official checkpoint and steer with its official schedule, step size and loss targets.

        Args:
            path: `flux_schnell.pth`, `flux_dev.pth`, `sd2.pth` or `sd14.pth`; the name tells the schedule.
            stop_at_first: Reproduce the released code's early end with several relations.

        Raises: ValueError if the file is no such checkpoint, or its name is not known.
        """
        schedule = published_schedule(path)
        rule = PublishedRule(schedule.step_size, schedule.loss_targets, schedule.max_iterations, stop_at_first)
        return cls.from_classifier(
            RelationClassifier.from_published(path),
            rule=rule,
            start=schedule.start_step / schedule.num_inference_steps,
            end=schedule.stop_step / schedule.num_inference_steps,
        )

    def prepare(self, call: Mapping[str, Any]) -> dict[str, Any]:
        """The pipeline call without relation markup, with the relations to steer as `steer_relations`.

        Args:
            call: Keywords of the pipeline call. Its `steer_relations`, if any, override what the prompt says:
                relations or (subject, relation, object) for one prompt, or one list of them per prompt.

        Returns: The call, where `steer_relations` is one list of `Relation` per prompt. Preparing it again changes
            nothing.

        Raises: ValueError if the call has no prompt in words, a relation is not in it, or cannot be judged.
        """
        given, override = call.get("prompt"), call.get("steer_relations")
        if given is None:
            raise ValueError("steering reads the prompt's words: pass prompt=... rather than embeddings")
        prompts = [given] if isinstance(given, str) else list(given)
        plain = [strip_markup(prompt) for prompt in prompts]
        if override is None:
            wanted = [[*p.relations] or [*explain_relations(p.text).relations] for p in plain]
        else:
            lists: list[Any] = [override] if len(prompts) == 1 and not _nested(override) else list(override)
            if len(lists) != len(prompts):
                raise ValueError(f"got relations for {len(lists)} prompts, but there are {len(prompts)}")
            wanted = [[_relation(p.text, r) for r in chosen] for p, chosen in zip(plain, lists, strict=True)]
        texts = [p.text for p in plain]
        relations = [self._known(chosen) for chosen in wanted]
        return {**call, "prompt": texts[0] if isinstance(given, str) else texts, "steer_relations": relations}

    def applies(self, call: Mapping[str, Any]) -> bool:
        """Whether a prepared call names a relation; if not, nothing runs and nothing costs anything."""
        return any(call["steer_relations"])

    def explain(self, pipe: Any, prompt: str | Sequence[str]) -> str:
        """What steering finds in a prompt: relations, and clauses it leaves alone with the reason."""
        lines = []
        for text in [prompt] if isinstance(prompt, str) else prompt:
            report = explain_relations(strip_markup(text).text)
            for r in report.relations:
                known = "" if self._judges(r) else "  (not judged by this classifier)"
                lines.append(f"steering: {r.subject.text!r} {r.relation} {r.object.text!r}{known}")
            lines += [f"steering: skipped {s.span.text!r}: {s.reason}" for s in report.skipped]
            if not report.relations:
                lines.append("steering: no relation in the prompt, nothing to do")
        return "\n".join([*lines, f"  {self.rule}, from {self.start:g} to {self.end:g} of the steps"])

    @contextmanager
    def session(
        self, pipe: Any, denoiser: nn.Module, capture: Conditioning, call_kwargs: Mapping[str, Any]
    ) -> Iterator[SteeringReport]:
        """Steer the pipeline call made within the block.

        Args:
            pipe: A stock pipeline.
            denoiser: Its denoiser.
            capture: Its conditioning in this call.
            call_kwargs: Keywords of the call, prepared or not.

        Yields: A report that fills as the pipeline runs.
        """
        call = self.prepare(call_kwargs)
        wanted: list[list[Relation]] = call["steer_relations"]
        report = SteeringReport(wanted)
        if not self.applies(call):
            yield report
            return
        prompts = [call["prompt"]] if isinstance(call["prompt"], str) else call["prompt"]
        spans = [[span for r in relations for span in (r.subject, r.object)] for relations in wanted]
        located, per_prompt = text_rows_of(pipe, capture, prompts, spans)
        rows = [_Row(wanted[i // per_prompt], tokens) for i, tokens in enumerate(located)]
        run = _Run(self, pipe, denoiser, rows, report)
        steering = LatentSteering(denoiser, capture, Window(self.start, self.end), run.move, run.total)
        with (
            frozen(denoiser),
            before_denoiser_call(denoiser, steering.before),
            wrap_scheduler_step(pipe.scheduler, steering.step),
        ):
            yield report

    def noise_level(self, scheduler: Any, step_index: int, total: int) -> float:
        """The noise level ahead of a step, in the measure of the objective's classifier."""
        classifier = getattr(self.objective, "classifier", None)
        if classifier is not None and classifier.settings.conditioning == "index":
            return float(assign_by_intervals(total, self.timesteps)[step_index])
        begin = getattr(scheduler, "begin_index", None) or 0
        return log_snr_of(scheduler, float(scheduler.timesteps[begin + step_index]))

    def _judges(self, relation: Relation) -> bool:
        try:
            self.objective(torch.full((1, 2, 1, 2, 2), 0.25), 0.0, [relation.relation])
        except ValueError as reason:
            return "cannot steer towards" not in str(reason)
        return True

    def _known(self, relations: list[Relation]) -> list[Relation]:
        kept = [relation for relation in relations if self._judges(relation)]
        lost = [relation.relation for relation in relations if relation not in kept]
        if lost and self.unknown == "error":
            raise ValueError(
                f"this objective cannot judge {lost}; it knows {', '.join(self.objective.relations)}. Set "
                "LearnedSteering(..., unknown='skip') to leave such relations alone"
            )
        return kept


@dataclass(frozen=True)
class _Row:
    """One conditional row of the denoiser: its relations, and the text rows of each span."""

    relations: list[Relation]
    tokens: dict[Span, list[int]]


class _Run:
    """One steered pipeline run: judges latents through the denoiser, and moves them by the rule."""

    def __init__(
        self, method: LearnedSteering, pipe: Any, denoiser: nn.Module, rows: list[_Row], report: SteeringReport
    ) -> None:
        self.method, self.pipe, self.denoiser, self.rows, self.report = method, pipe, denoiser, rows, report

    def total(self) -> int:
        """Number of denoising steps."""
        return int(vars(self.pipe).get("_num_timesteps") or len(self.pipe.scheduler.timesteps))

    def move(self, arguments: dict[str, Any], step_index: int) -> Tensor:
        """Moved latents for the conditional rows of a denoiser call."""
        family = family_of(uncompiled(self.denoiser))
        latents: Tensor = arguments[family.latents]
        if len(latents) != len(self.rows):
            raise ValueError(f"expected {len(self.rows)} conditional rows, the denoiser got {len(latents)}")
        active = [i for i, row in enumerate(self.rows) if row.relations]
        chosen = torch.tensor(active, device=latents.device)
        some = rows_of(family, arguments, chosen) if len(active) < len(self.rows) else arguments
        level = self.method.noise_level(self.pipe.scheduler, step_index, self.total())

        def judge(moved: Tensor) -> Judgement:
            call = {**fresh(some), family.latents: moved}
            return self._judge(call, [self.rows[i] for i in active], level)

        with torch.enable_grad(), suspended(self.denoiser):
            descent: Descent = self.method.rule(judge, some[family.latents], step_index)
        self.report.steps.append(
            StepReport(step_index, descent.iterations, tuple(descent.before.tolist()), tuple(descent.after.tolist()))
        )
        result = latents.clone()
        result[chosen] = descent.latents
        return result

    def _judge(self, call: dict[str, Any], rows: list[_Row], level: float) -> Judgement:
        pairs = [(i, r.subject, r.object) for i, row in enumerate(rows) for r in row.relations]
        maps = self.method.recording.pair_maps(self.denoiser, call, [row.tokens for row in rows], pairs)
        names = [r.relation for row in rows for r in row.relations]
        verdict = self.method.objective(maps, level, names)
        counts = [len(row.relations) for row in rows]
        wanted = torch.arange(max(counts))[None] < torch.tensor(counts)[:, None]
        wanted = wanted.to(verdict.loss.device)
        losses = verdict.loss.new_zeros(wanted.shape).masked_scatter(wanted, verdict.loss)
        probabilities = verdict.probability.new_ones(wanted.shape).masked_scatter(wanted, verdict.probability)
        return Judgement(losses, probabilities, wanted)


def _nested(relations: Any) -> bool:
    """Whether these are lists of relations, one per prompt, rather than the relations of one prompt."""
    first = next(iter(relations), None)
    return isinstance(first, list | tuple) and not (len(first) == 3 and all(isinstance(part, str) for part in first))


def _relation(prompt: str, given: Relation | tuple[str, str, str]) -> Relation:
    return given if isinstance(given, Relation) else Relation.of(prompt, *given)
