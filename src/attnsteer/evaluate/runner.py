"""Runs a suite: generates each item with every method from the same seed, detects, judges, and keeps the cost."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Final

from attnsteer.evaluate.detectors import ClipExaminer, Examiner
from attnsteer.evaluate.generation import Studio
from attnsteer.evaluate.methods import Method
from attnsteer.evaluate.painted import Painted
from attnsteer.evaluate.scoring import Box, Verdict
from attnsteer.evaluate.scoring.clips import chosen_frames, judge_clip
from attnsteer.evaluate.scoring.negatives import judge_answers
from attnsteer.evaluate.settings import BUDGET, Evaluation
from attnsteer.evaluate.suites import find_suite, items_of, suite_tasks, task_of
from attnsteer.jobs import Job, Record

SEED_STEP: Final = 1_000_000_007
"""Between the seeds of one item's candidates; beyond the seeds of other items."""
LEAST_CANDIDATES: Final = 2
"""Fewer seeds leave a classifier nothing to choose from."""


def suite_job(evaluation: Evaluation, shard_size: int | None = None) -> Job:
    """The job of a suite whose pictures are judged one by one; a shard is one batch unless a size is given."""
    suite = find_suite(evaluation.suite)
    tasks = suite_tasks(suite, evaluation.prompts, evaluation.count, evaluation.seed)
    items = items_of(suite, tasks, evaluation.samples or suite.samples, evaluation.seed)
    settings = {**evaluation.described(), "detector": evaluation.detector or suite.detector}
    return Job(
        f"evaluate {suite.name}", items, Worker(evaluation), settings, shard_size or evaluation.batch, "picture"
    )


@dataclass(frozen=True)
class Worker:
    """Loads model, methods and detector in a working process, and does shards."""

    evaluation: Evaluation

    def __call__(self) -> Callable[[Sequence[Mapping[str, Any]]], Iterator[Record]]:
        """Load everything; returns the function of the job."""
        return _Bench(self.evaluation).records


@dataclass(frozen=True)
class Judged:
    """A judged picture or clip; its cost includes that of the candidates it was chosen from.

    Attributes:
        painted: What was generated.
        boxes: What the detector saw; on a clip, in the frame in the middle of those judged.
        verdict: What the rule says.
        scores: Further figures by name, e.g. of preference models.
        tried: Candidates.
    """

    painted: Painted
    boxes: list[Box]
    verdict: Verdict
    scores: Mapping[str, float] = field(default_factory=dict)
    tried: int = 1


class _Bench:
    """Model, detector and rule, loaded once."""

    def __init__(self, evaluation: Evaluation) -> None:
        from attnsteer.evaluate.detectors import make_detector
        from attnsteer.evaluate.scores import Scores

        self.evaluation, self.suite = evaluation, find_suite(evaluation.suite)
        self.batch, self.studio = evaluation.batch, Studio(evaluation)
        device = self.studio.model.device
        self.scores = Scores(evaluation.scores, evaluation.extractor, device)
        self.detector = make_detector(evaluation.detector or self.suite.detector, device)
        if isinstance(self.detector, ClipExaminer) and "num_frames" not in self.studio.model.keywords:
            raise ValueError(f"{evaluation.suite} judges whole clips, {evaluation.model} draws pictures")
        self.plain: tuple[list[str], list[Judged]] = [], []
        self.source = {"detector": self.detector.name, "resolved": self.studio.resolved}

    def records(self, items: Sequence[Mapping[str, Any]]) -> Iterator[Record]:
        for first in range(0, len(items), self.batch):
            yield from self._batch(items[first : first + self.batch])

    def _batch(self, items: Sequence[Mapping[str, Any]]) -> Iterator[Record]:
        done: dict[str, list[Judged]] = {}
        for method in self.studio.methods:
            paid = self._affordable(items, method, done) if method.equal else method
            done[method.name] = self._best_of(items, paid, done) if method.best_of != 1 else self._run(items, paid)
        for number, item in enumerate(items):
            results = {name: _result(judged[number]) for name, judged in done.items()}
            files = dict(judged[number].painted.file(name) for name, judged in done.items())
            yield Record(item["id"], {"item": dict(item), **self.source, "methods": results}, files)

    def _run(self, items: Sequence[Mapping[str, Any]], method: Method) -> list[Judged]:
        painted = self.studio.paint(items, method)
        scores = self.scores(painted, [item["prompt"] for item in items])
        judged = [self._judged(*row) for row in zip(items, painted, scores, strict=True)]
        return [replace(one, tried=method.candidates or 1) for one in judged]

    def _judged(self, item: Mapping[str, Any], painted: Painted, scores: Mapping[str, float]) -> Judged:
        if isinstance(self.detector, ClipExaminer):
            seen = self.detector.examine_clip(painted.frames, item["prompt"], item["asked"])
            further = {**scores, self.detector.quality_name: seen.quality}
            return Judged(painted, [], judge_answers(seen.kept, seen.absent), further)
        chosen = chosen_frames(len(painted.frames), self.evaluation.judged_frames)
        frames = [painted.frames[number] for number in chosen]
        if isinstance(self.detector, Examiner):
            answers = [self.detector.examine(frame, item["prompt"], item["asked"]) for frame in frames]
            quality = sum(one.quality for one in answers) / len(answers)
            verdict = judge_clip([judge_answers(one.kept, one.absent) for one in answers])
            return Judged(painted, [], verdict, {**scores, self.detector.quality_name: quality})
        found = self.detector(frames, [item["labels"]] * len(frames))
        verdicts = [self.suite.judge(task_of(item), boxes, painted.picture.size) for boxes in found]
        return Judged(painted, found[len(found) // 2], judge_clip(verdicts), scores)

    def _best_of(
        self, items: Sequence[Mapping[str, Any]], method: Method, done: Mapping[str, list[Judged]]
    ) -> list[Judged]:
        """The best of several seeds of each item; on a tie, the first."""
        best = list(self._plain(items, done))
        for extra in range(1, method.best_of):
            shifted = [{**item, "seed": item["seed"] + extra * SEED_STEP} for item in items]
            others = self._run(shifted, Method("none"))
            best = [_better(*pair) for pair in zip(best, others, strict=True)]
        return best

    def _plain(self, items: Sequence[Mapping[str, Any]], done: Mapping[str, list[Judged]]) -> list[Judged]:
        """The plain pictures of a batch, made once."""
        of = [item["id"] for item in items]
        if self.plain[0] != of:
            self.plain = of, done.get("none") or self._run(items, Method("none"))
        return self.plain[1]

    def _affordable(
        self, items: Sequence[Mapping[str, Any]], method: Method, done: Mapping[str, list[Judged]]
    ) -> Method:
        """The method with as many seeds as the budget pays for, rounded up."""
        guided = [done[other.name] for other in self.studio.methods if other.guided]
        budget = self.evaluation.budget or (BUDGET if not guided else 0.0)
        if not budget:
            plain = sum(one.painted.evaluations for one in self._plain(items, done))
            budget = max(sum(one.painted.evaluations for one in judged) for judged in guided) / plain
        if method.candidates is None:
            return replace(method, best_of=max(1, math.ceil(round(budget, 6))))
        seeds = math.ceil(round((budget - 1) / self.studio.candidate_cost, 6))
        return replace(method, candidates=max(LEAST_CANDIDATES, seeds))


def _better(first: Judged, second: Judged) -> Judged:
    """The better one, at the cost of both."""
    chosen = max(first, second, key=lambda judged: (judged.verdict.correct, judged.verdict.score))
    one, two = first.painted, second.painted
    cost = {name: getattr(one, name) + getattr(two, name) for name in ("seconds", "calls", "evaluations", "flops")}
    return replace(chosen, painted=replace(chosen.painted, **cost), tried=first.tried + 1)


def _result(judged: Judged) -> dict[str, Any]:
    boxes = [
        [b.label, round(b.score, 4), *(round(value, 2) for value in (b.left, b.top, b.right, b.bottom))]
        for b in judged.boxes
    ]
    scores = {"scores": {name: round(value, 6) for name, value in judged.scores.items()}}
    return {**asdict(judged.verdict), **judged.painted.result(), **scores, "tried": judged.tried, "boxes": boxes}
