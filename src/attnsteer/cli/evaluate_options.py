"""The options of `attnsteer evaluate` and `attnsteer sweep`, as settings objects."""

from dataclasses import dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from attnsteer.cli import options

if TYPE_CHECKING:
    from attnsteer.evaluate.settings import Evaluation
    from attnsteer.jobs import Engine

_SUITE = "Suite"
_RUN = "Run"


@dataclass(frozen=True)
class SuiteOptions:
    """What is measured."""

    methods: Annotated[
        str, typer.Option(help="Names with commas, the baseline first; see --list.", rich_help_panel=_SUITE)
    ] = "none,steer"
    sweep: Annotated[
        list[str] | None,
        typer.Option(
            metavar="METHOD.SETTING=V,V,...",
            help="Try values of a setting, e.g. nag.scale=1,3,5,9 or steer.iterations=1,3; repeatable, makes a grid.",
            rich_help_panel=_SUITE,
        ),
    ] = None
    detector: Annotated[
        str | None,
        typer.Option(
            help="mask2former, owlv2, owlvit, grounding-dino, clipseg, vlm, shapes, shapes-clips; or NAME:MODEL for"
            " other weights. Default: the suite's.", rich_help_panel=_SUITE,
        ),
    ] = None  # fmt: skip
    prompts: Annotated[
        Path | None, typer.Option(help="The suite's published prompt file.", rich_help_panel=_SUITE)
    ] = None
    count: Annotated[
        int | None, typer.Option(help="Prompts, per kind where there are kinds.", rich_help_panel=_SUITE)
    ] = None
    samples: Annotated[int | None, typer.Option(help="Pictures of each prompt.", rich_help_panel=_SUITE)] = None
    budget: Annotated[
        float | None,
        typer.Option(
            help="Plain pictures that best-of-equal may spend on one. Default: what the dearest guided method"
            " of the run spends, or 2 where nothing is guided.", rich_help_panel=_SUITE,
        ),
    ] = None  # fmt: skip
    judged_frames: Annotated[
        int | None, typer.Option(help="Frames of each clip that are judged.", rich_help_panel=_SUITE)
    ] = None
    scores: Annotated[
        str | None,
        typer.Option(
            help="Score pictures: clip:MODEL, pickscore, hps:MODEL, imagereward:FOLDER, quality:VLM; with commas.",
            rich_help_panel=_SUITE,
        ),
    ] = None
    extractor: Annotated[
        str | None,
        typer.Option(help="Features of fidelity: inception:PATH, clip:MODEL or pixels.", rich_help_panel=_SUITE),
    ] = None
    patches: Annotated[
        str | None,
        typer.Option(
            help="Patches of fidelity: center:299, tiled:256, shifted:256; with commas.", rich_help_panel=_SUITE
        ),
    ] = None


@dataclass(frozen=True)
class PictureOptions:
    """How pictures are made; the names are those of `Evaluation`."""

    model: options.Model = None
    classifier: options.Classifier = None
    negative: options.Negative = None
    nag_scale: options.NagScale = None
    nag_tau: options.NagTau = None
    nag_alpha: options.NagAlpha = None
    nag_start: options.NagStart = None
    nag_end: options.NagEnd = None
    seed: options.Seed = None
    steps: options.Steps = None
    guidance_scale: options.GuidanceScale = None
    width: options.Width = None
    height: options.Height = None
    frames: options.Frames = None
    extra: options.Extra = None
    dtype: options.Dtype = None
    device: options.Device = "auto"
    batch: Annotated[int, typer.Option(help="Pictures that are generated together.", rich_help_panel=_RUN)] = 1


@dataclass(frozen=True)
class RunOptions:
    """Where and how the work is done."""

    engine: Annotated[str, typer.Option(help="local, torchrun or ray.", rich_help_panel=_RUN)] = "local"
    ray_address: Annotated[
        str | None, typer.Option(help="Of a Ray cluster; 'auto' finds a running one.", rich_help_panel=_RUN)
    ] = None
    workers: Annotated[int, typer.Option(help="Ray actors; 0 takes all there is.", rich_help_panel=_RUN)] = 0
    gpus_per_worker: Annotated[
        float | None,
        typer.Option(help="GPUs that a Ray actor reserves. Default: one where there are any.", rich_help_panel=_RUN),
    ] = None
    shard_size: Annotated[
        int | None, typer.Option(help="Pictures that a killed process loses at most.", rich_help_panel=_RUN)
    ] = None
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Folder of the run; an unfinished one goes on.", file_okay=False),
    ] = None
    as_json: options.Json = False
    quiet: options.Quiet = False

    def make_engine(self) -> "Engine":
        """The engine; see `attnsteer.jobs.make_engine`."""
        from attnsteer.jobs import make_engine

        return make_engine(
            self.engine, address=self.ray_address, workers=self.workers, gpus_per_worker=self.gpus_per_worker
        )


def evaluation_of(suite: str, asked: SuiteOptions, picture: PictureOptions) -> "Evaluation":
    """The evaluation that the options describe."""
    from attnsteer.cli.settings import build_request
    from attnsteer.evaluate.settings import Evaluation

    given: dict[str, Any] = {f.name: getattr(part, f.name) for part in (asked, picture) for f in fields(part)}
    given["extra"] = dict(build_request({"prompt": "anything"}, extra=given["extra"] or []).extra)
    given["sweep"] = tuple(given["sweep"] or ())
    given["prompts"] = None if asked.prompts is None else str(asked.prompts)
    return Evaluation(suite, **{name: value for name, value in given.items() if value is not None})
