"""Learned steering: move the latents until the objects stand where the prompt says."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from attnsteer.changes import Hook, applied
from attnsteer.install import before_denoiser_call, frozen, wrap_scheduler_step
from attnsteer.pipeline.conditioning import Conditioning
from attnsteer.pipeline.denoisers import experts_of
from attnsteer.pipeline.schedule import Window
from attnsteer.steering.advised import advised, official
from attnsteer.steering.classifier import RelationClassifier
from attnsteer.steering.combined import Combined
from attnsteer.steering.descent import LeanRule
from attnsteer.steering.grids import check_grid
from attnsteer.steering.latents import LatentSteering
from attnsteer.steering.locate import cut_off, text_rows_of
from attnsteer.steering.noise import log_snr_of
from attnsteer.steering.objectives import CentroidObjective, ClassifierObjective, Objective, relation_rows
from attnsteer.steering.published import assign_by_intervals
from attnsteer.steering.recording import Recording
from attnsteer.steering.region import FirstLatents, latents_of
from attnsteer.steering.relations import Relation, explain_relations, parse_relations, strip_markup
from attnsteer.steering.retry import Retries, SteeredWatch, retrying
from attnsteer.steering.run import Rule, SteeredRow, SteeredRun, SteeringReport, StepReport, TrialOver
from attnsteer.steering.scheduler_state import step_of
from attnsteer.steering.select import SeedSelection, best_seeds
from attnsteer.steering.trials import Run
from attnsteer.steering.verify import Verification, verified_call
from attnsteer.steering.wanted import Reader, wanted_relations

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
        unknown: What to do with a relation of the prompt that the objective cannot judge: "error", "skip" it, or steer
            it by the "hand-made" `CentroidObjective`, which knows near and the diagonals.
        seeds: Whether several seeds are tried; None is off.
        verify: Whether pictures are drawn plainly first, and steered only where they are wrong; None is off.
        retries: Whether pictures that are wrong after steering are drawn anew from another seed; None is off.
        reader: Finds the relations of a prompt; see also `attnsteer.steering.attributes`.
        rows: Pictures of a call that may be steered, by number; None is all.

    Source: Yiflach, Atzmon, Chechik 2026, Learn-to-Steer, arXiv:2509.02295; the lean rule is ours.
    """

    objective: Objective
    rule: Rule = field(default_factory=LeanRule)
    start: float = 0.0
    end: float = 0.5
    recording: Recording = field(default_factory=Recording)
    timesteps: tuple[int, ...] = ()
    unknown: Literal["error", "skip", "hand-made"] = "error"
    seeds: SeedSelection | None = None
    verify: Verification | None = None
    retries: Retries | None = None
    reader: Reader = parse_relations
    rows: tuple[int, ...] | None = None
    kind: ClassVar[str] = "steering"

    def __post_init__(self) -> None:
        if not 0.0 <= self.start < self.end <= 1.0:
            raise ValueError(f"start and end must satisfy 0 <= start < end <= 1, got {self.start} and {self.end}")
        if self.retries is not None and self.retries.detector is None:
            self.retries.judged_at(self.end)
        if self.unknown not in ("error", "skip", "hand-made"):
            raise ValueError(f"unknown must be 'error', 'skip' or 'hand-made', got {self.unknown!r}")
        by_hand = CentroidObjective()
        if self.unknown == "hand-made" and not set(by_hand.relations) <= set(self.objective.relations):
            object.__setattr__(self, "objective", Combined((self.objective, by_hand)))

    @classmethod
    def from_classifier(cls, classifier: RelationClassifier, **settings: Any) -> LearnedSteering:
        """Steer by a classifier, which is frozen; maps are recorded as its settings say.

        Window and lean rule are those that its settings advise; see `attnsteer.steering.advised`.

        Args:
            classifier: Put into evaluation mode, its weights no longer require gradients.
            settings: Further attributes; they override what the classifier says.
        """
        classifier.requires_grad_(False).eval()
        return cls(ClassifierObjective(classifier), **{**advised(classifier), **settings})

    @classmethod
    def from_pretrained(cls, folder_or_repo: str | Path, **settings: Any) -> LearnedSteering:
        """Load a classifier from a folder or the Hub (see `RelationClassifier.from_pretrained`)."""
        return cls.from_classifier(RelationClassifier.from_pretrained(folder_or_repo), **settings)

    @classmethod
    def from_published(
        cls, path: str | Path, *, schedule: str | None = None, stop_at_first: bool = False, **settings: Any
    ) -> LearnedSteering:
        """Load an official checkpoint and steer with its official schedule, step size, loss targets and maps.

        Args:
            path: `flux_schnell.pth`, `flux_schnell_diagonals.pth`, `flux_dev.pth`, `sd2.pth` or `sd14.pth`; the name
                tells the schedule. With FLUX pictures must have the size that the file says (16 pixels to a cell).
            schedule: Which of these it is, such as "sd2", where the file was renamed.
            stop_at_first: Reproduce the released code's early end with several relations.
            settings: Further attributes; they override the official ones.

        Raises: ValueError if the file is no such checkpoint, or its name is not known.
        """
        classifier, own = official(path, schedule or path, stop_at_first)
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
        prompt, wanted = wanted_relations(call, self.objective.relations, self.reader)
        return {**call, "prompt": prompt, "steer_relations": [self._known(chosen) for chosen in wanted]}

    def conduct(self, pipe: Any, call: Mapping[str, Any], run: Run) -> tuple[Any, SteeringReport | None]:
        """Make the pipeline call that was asked for, with the trials that `seeds`, `verify` and `retries` want.

        Args:
            pipe: A stock pipeline.
            call: Its prepared keywords.
            run: Makes one guided call of the pipeline; see `attnsteer.steering.trials.Run`.

        Returns: What the pipeline returns, and the report.
        """
        numbers: tuple[int, ...] = ()
        trials: list[SteeringReport] = []
        report: SteeringReport | None
        if self.seeds is not None:
            call, numbers, trials = best_seeds(pipe, call, run, self, self.seeds)
        steer = retrying(run)
        if self.verify is not None:
            output, report = verified_call(pipe, call, steer, replace(self, seeds=None), self.verify)
        else:
            output, report = steer(call, self)
        if report is not None:
            report.seeds, report.trials = numbers, [*trials, *report.trials]
        return output, report

    def applies(self, call: Mapping[str, Any]) -> bool:
        """Whether a prepared call names a relation; if not, nothing runs and nothing costs anything."""
        return any(call["steer_relations"])

    def explain(self, pipe: Any, prompt: str | Sequence[str]) -> str:
        """What steering finds in a prompt: relations, and clauses it leaves alone with the reason."""
        lines = []
        for text in [prompt] if isinstance(prompt, str) else prompt:
            plain = strip_markup(text)
            relations = [*plain.relations] or [*self.reader(plain.text)]
            for r in relations:
                cut = cut_off(pipe, plain.text, (r.subject, r.object))
                note = "not judged by this classifier" if not self._judges(r) else cut
                lines.append(
                    f"steering: {r.subject.text!r} {r.relation} {r.object.text!r}" + f"  ({note})" * bool(note)
                )
            skipped = explain_relations(plain.text).skipped
            lines += [f"steering: skipped {s.span.text!r}: {s.reason}" for s in skipped]
            if not relations:
                lines.append("steering: no relation in the prompt, nothing to do")
        trials = "".join(f", {trial}" for trial in (self.seeds, self.verify, self.retries) if trial is not None)
        return "\n".join([*lines, f"  {self.rule}, from {self.start:g} to {self.end:g} of the steps{trials}"])

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

        Yields: A report that fills as the pipeline runs. A rule that says so ends the block early, without an error.

        Raises: ValueError if the denoiser has no attention maps, or words of a relation cannot be found in its text
            input, or moved latents do not reach the scheduler; RuntimeError under `torch.inference_mode`.
        """
        if torch.is_inference_mode_enabled():
            raise RuntimeError(
                "steering needs gradients, which torch.inference_mode() rules out: call the pipeline outside of it "
                "(pipelines run under torch.no_grad() by themselves)"
            )
        call = self.prepare(call_kwargs)
        report = SteeringReport(call["steer_relations"])
        if not self.applies(call):
            yield report
            return
        check_grid(capture.family)
        first = FirstLatents()
        with applied(first.changes(pipe)):
            rows = self._rows_of(pipe, capture, call, first)
        report.rows = tuple(number for number, row in enumerate(rows) if row.relations)
        report.per_prompt = len(rows) // len(call["steer_relations"])
        run = SteeredRun(self, pipe, denoiser, rows, report)
        if isinstance(self.rule, SteeredWatch):
            self.rule.total = run.total
        window = Window(self.start, self.end)
        steering = LatentSteering(pipe.scheduler, capture, window, run.move, run.total, first.region)

        def before(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            run.denoiser = module
            return steering.before(module, args, kwargs)

        with suppress(TrialOver), ExitStack() as stack:
            for expert in experts_of(pipe, denoiser):
                stack.enter_context(frozen(expert))
                stack.enter_context(before_denoiser_call(expert, before))
                stack.enter_context(applied([Hook(expert, "after", steering.after)]))
            stack.enter_context(wrap_scheduler_step(pipe.scheduler, steering.step))
            yield report
            steering.finish()

    def _rows_of(
        self, pipe: Any, capture: Conditioning, call: Mapping[str, Any], first: FirstLatents
    ) -> list[SteeredRow]:
        """What is steered in each conditional row of the denoiser's latents."""
        wanted: list[list[Relation]] = call["steer_relations"]
        prompts = [call["prompt"]] if isinstance(call["prompt"], str) else call["prompt"]
        spans = [[span for r in relations for span in (r.subject, r.object)] for relations in wanted]
        family = capture.family
        found = text_rows_of(pipe, capture, prompts, spans, lambda call: first.find(latents_of(family, call)))
        located, per_prompt = found
        chosen = range(len(located)) if self.rows is None else self.rows
        if any(row not in range(len(located)) for row in chosen):
            raise ValueError(f"rows must be pictures of the call, 0 to {len(located) - 1}, got {list(chosen)}")
        return [SteeredRow(wanted[i // per_prompt] if i in chosen else [], tokens) for i, tokens in enumerate(located)]

    def noise_level(self, scheduler: Any, timestep: Tensor | float, step_index: int) -> float:
        """The noise level of a denoiser call, in the measure of the objective: a step index, or log-SNR in nats.

        A classifier that counts steps gets the trained index for the step at the same fraction of the schedule.

        Args:
            scheduler: The pipeline's scheduler in this run.
            timestep: As the denoiser gets it.
            step_index: Number of steps taken in this run.

        Raises: ValueError if the scheduler does not tell its noise level, or the timestep is none of its own.
        """
        measure = getattr(self.objective, "conditioning", "log_snr")
        if measure == "none":
            return 0.0
        index = step_of(scheduler, timestep, step_index)
        if measure == "index":
            steps = len(scheduler.timesteps)
            trained = getattr(self.objective, "num_steps", None) or steps
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
        if lost and self.unknown != "skip":
            raise ValueError(
                f"this objective cannot judge {lost}; it knows {', '.join(self.objective.relations)}. Train a "
                "classifier with such relations; or set LearnedSteering(..., unknown='skip') to leave them alone, or "
                "unknown='hand-made' to steer near and diagonals by the places of the maps alone (what is in front "
                "cannot be told from these)"
            )
        return kept
