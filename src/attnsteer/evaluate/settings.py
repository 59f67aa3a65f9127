"""What is evaluated: one frozen record, kept in the run's folder. No torch."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from attnsteer.evaluate.methods import Method
from attnsteer.evaluate.suites import find_suite
from attnsteer.evaluate.sweep import swept_methods

if TYPE_CHECKING:
    from attnsteer.jobs import Job

GALLERY: Final = "sweep"
"""In place of a suite: pictures to look at, which nothing judges; see `attnsteer.evaluate.gallery`."""


@dataclass(frozen=True)
class Evaluation:
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
        steps: Denoising steps.
        guidance_scale: The pipeline's own.
        width: Pixels.
        height: Pixels.
        frames: Frames of each clip, for video models.
        judged_frames: Frames of each clip that are judged, evenly spread.
        nag_scale: Settings of NAG; see `attnsteer.NAG`.
        nag_tau: Likewise.
        nag_alpha: Likewise.
        nag_start: Likewise.
        nag_end: Likewise.
        dtype: As in `attnsteer.compare.open_model`.
        device: Likewise; "auto" takes the GPU of this process under torchrun.
        batch: Pictures that are generated together.
        extractor: Features of the fidelity suites, and of the consistency of clips: "inception:PATH", "clip:MODEL" or
            "pixels".
        scores: Models that score each picture with its prompt, separated by commas; see
            `attnsteer.evaluate.metrics.preference`.
        patches: Patch definitions of the fidelity suites, e.g. "center:299,tiled:256"; None leaves patches out.
        extra: Further keywords of the pipeline's call.

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
    steps: int | None = None
    guidance_scale: float | None = None
    width: int | None = None
    height: int | None = None
    frames: int | None = None
    judged_frames: int = 5
    nag_scale: float | None = None
    nag_tau: float | None = None
    nag_alpha: float | None = None
    nag_start: float | None = None
    nag_end: float | None = None
    dtype: str = "auto"
    device: str = "auto"
    batch: int = 1
    extractor: str | None = None
    scores: str | None = None
    patches: str | None = None
    extra: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        from attnsteer.evaluate.fidelity import SUITES

        if self.suite not in (*SUITES, GALLERY):
            find_suite(self.suite)
        for name in ("batch", "count", "samples", "frames", "judged_frames"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be >= 1, got {value}")
        without = [method.name for method in self.columns if method.negative]
        if without and self.negative is None and not self.suite.endswith("negatives"):
            raise ValueError(f"{without[0]} needs a negative prompt: pass --negative, e.g. 'blurry, low quality'")

    @property
    def columns(self) -> tuple[Method, ...]:
        """The methods with their swept variants, the baseline first."""
        return swept_methods(self.methods, self.sweep)

    def described(self) -> dict[str, Any]:
        """What the run's folder keeps: all that results depend on, so not the device."""
        return {**asdict(self), "sweep": list(self.sweep), "device": None}

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
        from attnsteer.evaluate.runner import suite_job

        if self.suite in fidelity.SUITES:
            return fidelity.fidelity_job(self, shard_size)
        return suite_job(self, shard_size)

    @property
    def folder(self) -> Path:
        """Where the run goes unless another folder is named."""
        return Path("runs") / f"{self.suite}-{Path(self.model).name}"
