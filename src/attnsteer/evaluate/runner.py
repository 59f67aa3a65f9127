"""Runs a suite: generates each item with every method from the same seed, detects, judges, and keeps the cost."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Final

from attnsteer.evaluate import fidelity
from attnsteer.evaluate.generation import Painted, Studio
from attnsteer.evaluate.methods import Method, parse_methods
from attnsteer.evaluate.scoring import Box, Verdict
from attnsteer.evaluate.suites import find_suite, items_of, suite_tasks, task_of
from attnsteer.jobs import Job, Record

SEED_STEP: Final = 1_000_000_007
"""Between the seeds of one item's candidates; beyond the seeds of other items."""


@dataclass(frozen=True)
class Evaluation:
    """What is evaluated. None means the model's own default.

    Attributes:
        suite: Name of a suite.
        model: Embedded model, diffusers folder or Hub id.
        methods: Names of the methods, separated by commas.
        classifier: Relation classifier; None means the model's own.
        detector: Name of a detector; None means the suite's.
        prompts: The suite's published prompt file.
        count: Prompts, per kind where the suite has kinds.
        samples: Pictures of each prompt.
        seed: Of the first picture, and of drawn prompts. Do not tune on the seeds that you report.
        negative: Negative prompt for suites that have none of their own; for the methods nag, both and cfg.
        steps: Denoising steps.
        guidance_scale: The pipeline's own.
        width: Pixels.
        height: Pixels.
        nag_scale: Settings of NAG; see `attnsteer.NAG`.
        nag_tau: Likewise.
        nag_alpha: Likewise.
        dtype: As in `attnsteer.compare.open_model`.
        device: Likewise; "auto" takes the GPU of this process under torchrun.
        batch: Pictures that are generated together.
        extractor: Features of the fidelity suites: "inception:PATH", "clip:MODEL" or "pixels".
        clip: CLIP (or PickScore-type) model of the fidelity suites' score; None leaves it out.
        patches: Patch definition of the fidelity suites, e.g. "center:299"; None leaves patch distances out.
        extra: Further keywords of the pipeline's call.

    Raises: ValueError for an unknown suite or method, or a method that lacks its negative prompt.
    """

    suite: str
    model: str = "shapes-unet"
    methods: str = "none,steer"
    classifier: str | None = None
    detector: str | None = None
    prompts: str | None = None
    count: int | None = None
    samples: int | None = None
    seed: int = 0
    negative: str | None = None
    steps: int | None = None
    guidance_scale: float | None = None
    width: int | None = None
    height: int | None = None
    nag_scale: float | None = None
    nag_tau: float | None = None
    nag_alpha: float | None = None
    dtype: str = "auto"
    device: str = "auto"
    batch: int = 1
    extractor: str | None = None
    clip: str | None = None
    patches: str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.suite not in fidelity.SUITES:
            find_suite(self.suite)
        for name in ("batch", "count", "samples"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be >= 1, got {value}")
        without = [method.name for method in parse_methods(self.methods) if method.negative]
        if without and self.negative is None and not self.suite.endswith("negatives"):
            raise ValueError(f"{without[0]} needs a negative prompt: pass --negative, e.g. 'blurry, low quality'")

    def job(self, shard_size: int | None = None) -> Job:
        """The job that does this evaluation; a shard is one batch unless a size is given."""
        if self.suite in fidelity.SUITES:
            return fidelity.fidelity_job(self, shard_size)
        suite = find_suite(self.suite)
        tasks = suite_tasks(suite, self.prompts, self.count, self.seed)
        items = items_of(suite, tasks, self.samples or suite.samples, self.seed)
        settings = {**asdict(self), "detector": self.detector or suite.detector, "device": None}
        return Job(f"evaluate {suite.name}", items, Worker(self), settings, shard_size or self.batch, "picture")


@dataclass(frozen=True)
class Worker:
    """Loads model, methods and detector in a working process, and does shards."""

    evaluation: Evaluation

    def __call__(self) -> Callable[[Sequence[Mapping[str, Any]]], Iterator[Record]]:
        """Load everything; returns the function of the job."""
        return _Bench(self.evaluation).records


@dataclass(frozen=True)
class Judged:
    """A judged picture; its cost includes that of the candidates it was chosen from."""

    painted: Painted
    boxes: list[Box]
    verdict: Verdict
    tried: int = 1


class _Bench:
    """Model, detector and rule, loaded once."""

    def __init__(self, evaluation: Evaluation) -> None:
        from attnsteer.evaluate.detectors import make_detector

        self.batch, self.suite = evaluation.batch, find_suite(evaluation.suite)
        self.studio = Studio(evaluation)
        self.detector = make_detector(evaluation.detector or self.suite.detector, self.studio.model.device)
        if not getattr(self.detector, "places", True) and not self.suite.name.endswith("negatives"):
            raise ValueError(f"{self.detector.name} does not say where things are; use it for negative prompts only")

    def records(self, items: Sequence[Mapping[str, Any]]) -> Iterator[Record]:
        for first in range(0, len(items), self.batch):
            yield from self._batch(items[first : first + self.batch])

    def _batch(self, items: Sequence[Mapping[str, Any]]) -> Iterator[Record]:
        done: dict[str, list[Judged]] = {}
        for method in self.studio.methods:
            done[method.name] = self._best_of(items, method, done) if method.best_of != 1 else self._run(items, method)
        for number, item in enumerate(items):
            results = {name: _result(judged[number]) for name, judged in done.items()}
            files = dict(judged[number].painted.file(name) for name, judged in done.items())
            yield Record(item["id"], {"item": dict(item), "detector": self.detector.name, "methods": results}, files)

    def _run(self, items: Sequence[Mapping[str, Any]], method: Method) -> list[Judged]:
        painted = self.studio.paint(items, method)
        pictures = [one.picture for one in painted]
        found = self.detector(pictures, [item["labels"] for item in items])
        return [
            Judged(one, boxes, self.suite.judge(task_of(item), boxes, one.picture.size))
            for item, one, boxes in zip(items, painted, found, strict=True)
        ]

    def _best_of(
        self, items: Sequence[Mapping[str, Any]], method: Method, done: Mapping[str, list[Judged]]
    ) -> list[Judged]:
        """The best of several seeds of each item; on a tie, the first."""
        plain = done.get("none") or self._run(items, Method("none"))
        best = list(plain)
        for extra in range(1, method.best_of or _affordable(plain, done)):
            shifted = [{**item, "seed": item["seed"] + extra * SEED_STEP, "number": None} for item in items]
            others = self._run(shifted, Method("none"))
            best = [_better(*pair) for pair in zip(best, others, strict=True)]
        return best


def _better(first: Judged, second: Judged) -> Judged:
    """The better one, at the cost of both."""
    chosen = max(first, second, key=lambda judged: (judged.verdict.correct, judged.verdict.score))
    one, two = first.painted, second.painted
    cost = {name: getattr(one, name) + getattr(two, name) for name in ("seconds", "calls", "evaluations")}
    flops = None if one.flops is None else one.flops // first.tried * (first.tried + 1)
    return replace(chosen, painted=replace(chosen.painted, **cost, flops=flops), tried=first.tried + 1)


def _affordable(plain: Sequence[Judged], done: Mapping[str, Sequence[Judged]]) -> int:
    """How many plain pictures the dearest steered method pays for, rounded up."""
    spent = max(sum(j.painted.evaluations for j in done[name]) for name in ("steer", "both") if name in done)
    return max(1, -int(-spent // sum(judged.painted.evaluations for judged in plain)))


def _result(judged: Judged) -> dict[str, Any]:
    boxes = [
        [b.label, round(b.score, 4), *(round(value, 2) for value in (b.left, b.top, b.right, b.bottom))]
        for b in judged.boxes
    ]
    return {**asdict(judged.verdict), **judged.painted.result(), "tried": judged.tried, "boxes": boxes}


def default_folder(evaluation: Evaluation) -> Path:
    """A folder name for a run: suite and model."""
    return Path("runs") / f"{evaluation.suite}-{Path(evaluation.model).name}"
