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
from attnsteer.install import before_denoiser_call, frozen, wrap_scheduler_step
from attnsteer.schedule import Window
from attnsteer.steering.classifier import RelationClassifier
from attnsteer.steering.descent import LeanRule, PublishedRule
from attnsteer.steering.latents import LatentSteering
from attnsteer.steering.locate import text_rows_of
from attnsteer.steering.noise import log_snr_of
from attnsteer.steering.objectives import CentroidObjective, ClassifierObjective, Objective, relation_rows
from attnsteer.steering.published import assign_by_intervals, published_schedule
from attnsteer.steering.recording import Recording
from attnsteer.steering.relations import Relation, Span, explain_relations, strip_markup
from attnsteer.steering.run import SteeredRow, SteeredRun, SteeringReport, StepReport
from attnsteer.steering.scheduler_state import step_of

__all__ = ["LearnedSteering", "SteeringReport", "StepReport"]


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
        """Steer by a classifier, which is frozen; maps are recorded as its settings say.

        The steered window is the one it was trained on, where its settings tell it.

        Args:
            classifier: Put into evaluation mode, its weights no longer require gradients.
            settings: Further attributes; they override what the classifier says.
        """
        classifier.requires_grad_(False).eval()
        source = classifier.settings.source
        own: dict[str, Any] = {
            "recording": Recording(source.layers, classifier.settings.map_size, source.normalise),
            "timesteps": source.timesteps,
        }
        if source.timesteps and source.num_steps:
            own["start"] = source.timesteps[0] / source.num_steps
            own["end"] = (source.timesteps[-1] + 1) / source.num_steps
        return cls(ClassifierObjective(classifier), **{**own, **settings})

    @classmethod
    def from_pretrained(cls, folder_or_repo: str | Path, **settings: Any) -> LearnedSteering:
        """Load a classifier from a folder or the Hub (see `RelationClassifier.from_pretrained`)."""
        return cls.from_classifier(RelationClassifier.from_pretrained(folder_or_repo), **settings)

    @classmethod
    def from_published(cls, path: str | Path, *, stop_at_first: bool = False, **settings: Any) -> LearnedSteering:
        """Load an official checkpoint and steer with its official schedule, step size, loss targets and maps.

        Args:
            path: `flux_schnell.pth`, `flux_dev.pth`, `sd2.pth` or `sd14.pth`; the name tells the schedule.
            stop_at_first: Reproduce the released code's early end with several relations.
            settings: Further attributes; they override the official ones.

        Raises: ValueError if the file is no such checkpoint, or its name is not known.
        """
        schedule = published_schedule(path)
        classifier = RelationClassifier.from_published(path)
        steps = schedule.num_inference_steps
        own = {
            "rule": PublishedRule(schedule.step_size, schedule.loss_targets, schedule.max_iterations, stop_at_first),
            "start": schedule.start_step / steps,
            "end": schedule.stop_step / steps,
            "recording": Recording(size=classifier.settings.map_size, normalise=schedule.normalise),
        }
        return cls.from_classifier(classifier, **{**own, **settings})

    def prepare(self, call: Mapping[str, Any]) -> dict[str, Any]:
        """The pipeline call without relation markup, with the relations to steer as `steer_relations`.

        Args:
            call: Keywords of the pipeline call. Its `steer_relations`, if any, override what the prompt says:
                a list of relations or (subject, relation, object) for one prompt, or one such list per prompt; an
                empty list switches steering off.

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
            lists = _per_prompt(override, len(prompts))
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

        Raises: ValueError if words of a relation cannot be found in the denoiser's text input; RuntimeError under
            `torch.inference_mode`.
        """
        if torch.is_inference_mode_enabled():
            raise RuntimeError(
                "steering needs gradients, which torch.inference_mode() rules out: call the pipeline outside of it "
                "(pipelines run under torch.no_grad() by themselves)"
            )
        call = self.prepare(call_kwargs)
        wanted: list[list[Relation]] = call["steer_relations"]
        report = SteeringReport(wanted)
        if not self.applies(call):
            yield report
            return
        prompts = [call["prompt"]] if isinstance(call["prompt"], str) else call["prompt"]
        spans = [[span for r in relations for span in (r.subject, r.object)] for relations in wanted]
        located, per_prompt = text_rows_of(pipe, capture, prompts, spans)
        rows = [SteeredRow(wanted[i // per_prompt], tokens) for i, tokens in enumerate(located)]
        run = SteeredRun(self, pipe, denoiser, rows, report)
        steering = LatentSteering(pipe.scheduler, capture, Window(self.start, self.end), run.move, run.total)
        with (
            frozen(denoiser),
            before_denoiser_call(denoiser, steering.before),
            wrap_scheduler_step(pipe.scheduler, steering.step),
        ):
            yield report

    def noise_level(self, scheduler: Any, timestep: Tensor | float, step_index: int) -> float:
        """The noise level of a denoiser call, in the measure of the objective: a step index, or log-SNR in nats.

        A classifier that counts steps gets the trained index for the step at the same fraction of the schedule.

        Args:
            scheduler: The pipeline's scheduler in this run.
            timestep: As the denoiser gets it.
            step_index: Number of steps taken in this run.

        Raises: ValueError if the scheduler does not tell its noise level, or the timestep is none of its own.
        """
        if isinstance(self.objective, CentroidObjective):
            return 0.0
        index = step_of(scheduler, timestep, step_index)
        settings = getattr(getattr(self.objective, "classifier", None), "settings", None)
        if settings is not None and settings.conditioning == "index":
            steps = len(scheduler.timesteps)
            trained = settings.source.num_steps or steps
            return float(assign_by_intervals(trained, self.timesteps)[index * trained // steps])
        return log_snr_of(scheduler, float(scheduler.timesteps[index]))

    def _judges(self, relation: Relation) -> bool:
        try:
            relation_rows([relation.relation], self.objective.relations, 1)
        except ValueError:
            return False
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


def _per_prompt(given: Sequence[Any], prompts: int) -> list[Sequence[Any]]:
    """One list of relations per prompt, from such lists or the relations of a single prompt."""
    flat = _are_relations(given)
    nested = all(isinstance(entry, list | tuple) and _are_relations(entry) for entry in given)
    if isinstance(given, str) or _is_triple(given) or not (nested or flat):
        raise ValueError(
            "steer_relations must be a list of (subject, relation, object), or one such list per prompt, got "
            f"{given!r}"
        )
    if not given:
        return [[]] * prompts
    lists = list(given) if nested else [given]
    if len(lists) != prompts:
        raise ValueError(f"steer_relations holds relations for {len(lists)} prompts, the call has {prompts}")
    return lists


def _are_relations(entries: Sequence[Any]) -> bool:
    return all(isinstance(entry, Relation) or _is_triple(entry) for entry in entries)


def _is_triple(entry: Any) -> bool:
    return isinstance(entry, list | tuple) and len(entry) == 3 and all(isinstance(part, str | Span) for part in entry)


def _relation(prompt: str, given: Relation | tuple[str, str, str]) -> Relation:
    """A relation of this prompt; its phrases must stand in it."""
    parts = (given.subject, given.relation, given.object) if isinstance(given, Relation) else given
    return Relation.of(prompt, *parts)
