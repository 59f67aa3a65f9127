"""What is evaluated: one frozen record, kept in the run's folder. No torch."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from attnsteer.compare.settings import PictureSettings
from attnsteer.evaluate.detectors.protocol import EXAMINER, SHAPES_CLIPS, detector_kind
from attnsteer.evaluate.methods import Method
from attnsteer.evaluate.suites import SHAPES, TWINS, find_suite
from attnsteer.evaluate.sweep import swept_methods

if TYPE_CHECKING:
    from attnsteer.jobs import Job

GALLERY: Final = "sweep"
"""In place of a suite: pictures to look at, which nothing judges; see `attnsteer.evaluate.gallery`."""
CLIPS: Final = ("shapes-clip-negatives", "shapes-negatives")
"""Suites whose clips can be judged as a whole; the first one always is, unless another detector is named."""
BUDGET: Final = 2.0
"""Plain pictures that best-of-equal may spend on one where nothing else says how much: what we allow steering."""
UNWANTED: Final = "blurry, low quality"
"""Negative prompt of suites that have none of their own, where --negative is not given."""
UNWANTED_SHAPES: Final = "blurry"
"""The same in the shapes world, whose text encoder knows few words."""


@dataclass(frozen=True)
class Evaluation(PictureSettings):
    """What is evaluated. None means the model's or the suite's own default.

    Attributes:
        suite: Name of a suite, or `GALLERY`.
        model: Embedded model, diffusers folder or Hub id.
        methods: Names of the methods, separated by commas.
        sweep: Settings to vary, "METHOD.SETTING=VALUE,VALUE,..."; see `attnsteer.evaluate.sweep`.
        classifier: Relation classifier; None means the model's own.
        detector: Name of a detector.
        prompts: The suite's published prompt file.
        count: Prompts, per kind where the suite has kinds.
        samples: Pictures of each prompt.
        seed: Of the first picture, and of drawn prompts. Do not tune on the seeds that you report.
        negative: Negative prompt for suites that have none of their own; for the methods nag, both and cfg.
        budget: What best-of-equal may spend on a picture, in plain pictures; None means what the dearest guided method
            of the run spends, or `BUDGET` where nothing is guided.
        judged_frames: Frames of each clip that are judged, evenly spread.
        device: As in `attnsteer.compare.open_model`; "auto" takes the GPU of this process under torchrun.
        batch: Pictures that are generated together.
        extractor: Features of the fidelity suites, and of the consistency of clips: "inception:PATH", "clip:MODEL" or
            "pixels".
        scores: Models that score each picture with its prompt, separated by commas; see
            `attnsteer.evaluate.metrics.preference`.
        patches: Patch definitions of the fidelity suites, e.g. "center:299,tiled:256"; None leaves patches out.
        others: See `PictureSettings`.

    Raises: ValueError for an unknown suite, method or sweep, or a method that lacks its negative prompt.
    """

    suite: str
    model: str = "shapes-unet"
    methods: str = "none,steer"
    sweep: tuple[str, ...] = ()
    classifier: str | None = None
    detector: str | None = None
    prompts: str | None = None
    count: int | None = None
    samples: int | None = None
    seed: int = 0
    negative: str | None = None
    budget: float | None = None
    judged_frames: int = 5
    device: str = "auto"
    batch: int = 1
    extractor: str | None = None
    scores: str | None = None
    patches: str | None = None

    def __post_init__(self) -> None:
        from attnsteer.evaluate.fidelity import SUITES

        if self.suite not in (*SUITES, GALLERY):
            find_suite(self.suite)
        for name in ("batch", "count", "samples", "frames", "judged_frames"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be >= 1, got {value}")
        if self.budget is not None and not self.budget > 0:
            raise ValueError(f"budget must be > 0 plain pictures, got {self.budget:g}")
        without = [method.name for method in self.columns if method.negative]
        if without and self.negative is None and self.suite == GALLERY:
            raise ValueError(f"{without[0]} needs a negative prompt: pass --negative, e.g. 'blurry, low quality'")
        if (
            self.detector is not None
            and detector_kind(self.detector) == EXAMINER
            and not self.suite.endswith("negatives")
        ):
            raise ValueError(f"{self.detector} does not say where things are; use it for negative prompts only")
        if self.detector == SHAPES_CLIPS and self.suite not in CLIPS:
            raise ValueError(f"{self.detector} judges clips of {' and '.join(CLIPS)}, not of {self.suite}")
        self._check_world()
        self._check_read()

    @property
    def columns(self) -> tuple[Method, ...]:
        """The methods with their swept variants, the baseline first."""
        return swept_methods(self.methods, self.sweep)

    @property
    def unwanted(self) -> str | None:
        """The negative prompt of items that have none of their own; None if no method or every item has one."""
        if self.negative is not None or self.suite == GALLERY or self.suite.endswith("negatives"):
            return self.negative
        if not any(method.negative for method in self.columns):
            return None
        return UNWANTED_SHAPES if self.suite.startswith(SHAPES) else UNWANTED

    def described(self) -> dict[str, Any]:
        """What the run's folder keeps: all that results depend on, so not the device."""
        first = {name: getattr(self, name) for name in ("suite", "model", "methods")}
        return {**first, **asdict(self), "sweep": list(self.sweep), "negative": self.unwanted, "device": None}

    @classmethod
    def from_described(cls, settings: Mapping[str, Any], device: str = "auto") -> "Evaluation":
        """Read what `described` gave.

        Raises: TypeError for a setting that this version does not know.
        """
        return cls(**{**settings, "sweep": tuple(settings.get("sweep", ())), "device": device})

    def job(self, shard_size: int | None = None) -> "Job":
        """The job that does this evaluation; a shard is one batch unless a size is given.

        Raises: ValueError if there is nothing to judge by, or the suite cannot be done with these settings.
        """
        from attnsteer.evaluate import fidelity
        from attnsteer.evaluate.metrics.extractors import check_extractor
        from attnsteer.evaluate.metrics.preference import check_scorer
        from attnsteer.evaluate.runner import suite_job

        if self.extractor is not None:
            check_extractor(self.extractor)
        for name in self.scores.split(",") if self.scores else ():
            check_scorer(name.strip())
        if self.suite in fidelity.SUITES:
            return fidelity.fidelity_job(self, shard_size)
        return suite_job(self, shard_size)

    def _check_world(self) -> None:
        from attnsteer.world.models import embedded_models

        twin = TWINS.get(self.suite)
        if twin is not None and self.prompts is None and self.model in embedded_models():
            raise ValueError(f"{self.suite} asks for photographs, {self.model} draws coloured shapes: use {twin}")

    def _check_read(self) -> None:
        """Refuse settings that nothing would read."""
        from attnsteer.evaluate.fidelity import SUITES

        unread = ["detector", "samples"] if self.suite in SUITES else ["patches"]
        unread += ["prompts"] if self.suite.startswith(SHAPES) else []
        unread += ["negative"] if self.suite.endswith("negatives") else []
        unread += [] if any(method.equal for method in self.columns) else ["budget"]
        given = [name for name in unread if getattr(self, name) is not None]
        if given:
            raise ValueError(f"{self.suite} with {self.methods} does not read {given[0]}: leave --{given[0]} out")

    @property
    def folder(self) -> Path:
        """Where the run goes unless another folder is named."""
        return Path("runs") / f"{self.suite}-{Path(self.model).name}"
