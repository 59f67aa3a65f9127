"""The options that several commands share, spelled once."""

from pathlib import Path
from typing import Annotated

import typer

_MODEL = "Model"
_NAG = "Negative guidance (NAG)"
_PICTURE = "Picture"
_OUTPUT = "Output"

Model = Annotated[
    str | None,
    typer.Option(
        "--model", "-m", help="Embedded model, diffusers folder or Hub id. Default: shapes-unet.",
        rich_help_panel=_MODEL,
    ),
]  # fmt: skip
Classifier = Annotated[
    str | None,
    typer.Option(help="Relation classifier: folder, .pth file or Hub id.", rich_help_panel=_MODEL),
]
Dtype = Annotated[str | None, typer.Option(help="auto, float32, float16 or bfloat16.", rich_help_panel=_MODEL)]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1, mps.", rich_help_panel=_MODEL)]
Seed = Annotated[int | None, typer.Option(help="Seed of the first picture. Default: 0.", rich_help_panel=_PICTURE)]
Steps = Annotated[int | None, typer.Option(help="Denoising steps.", rich_help_panel=_PICTURE)]
GuidanceScale = Annotated[
    float | None, typer.Option(help="The pipeline's own guidance scale.", rich_help_panel=_PICTURE)
]
Width = Annotated[int | None, typer.Option(help="Pixels.", rich_help_panel=_PICTURE)]
Height = Annotated[int | None, typer.Option(help="Pixels.", rich_help_panel=_PICTURE)]
Frames = Annotated[int | None, typer.Option(help="Frames, for video models.", rich_help_panel=_PICTURE)]
Extra = Annotated[
    list[str] | None,
    typer.Option(
        "--set", metavar="NAME=VALUE", help="Further keyword of the pipeline's call; repeatable.",
        rich_help_panel=_PICTURE,
    ),
]  # fmt: skip
Negative = Annotated[str | None, typer.Option("--negative", "-n", help="What must not be seen.", rich_help_panel=_NAG)]
Negatives = Annotated[
    list[str] | None,
    typer.Option(
        "--negative", "-n", help="What must not be seen; several with weights: -n blurry -n text=0.5.",
        rich_help_panel=_NAG, show_default=False,
    ),
]  # fmt: skip
NagScale = Annotated[float | None, typer.Option(help="Strength, >= 1; 1 is off.", rich_help_panel=_NAG)]
NagTau = Annotated[float | None, typer.Option(help="Bound of the norm, >= 1.", rich_help_panel=_NAG)]
NagAlpha = Annotated[float | None, typer.Option(help="Share of the guided features, 0..1.", rich_help_panel=_NAG)]
NagStart = Annotated[float | None, typer.Option(help="Fraction of steps where it begins.", rich_help_panel=_NAG)]
NagEnd = Annotated[float | None, typer.Option(help="Fraction of steps where it ends.", rich_help_panel=_NAG)]
Steer = Annotated[
    bool | None,
    typer.Option(
        "--steer/--no-steer",
        help="Insist on learned steering, or leave it out. Default: steer if the prompt names a relation and the"
        " model has a classifier.",
        rich_help_panel="Learned steering",
    ),
]
Seeds = Annotated[
    int | None,
    typer.Option(
        help="Begin this many seeds; the classifier chooses the one to steer.", rich_help_panel="Learned steering"
    ),
]
BestOf = Annotated[
    int | None,
    typer.Option(
        "--best-of", help="Draw the best of this many seeds by the classifier, unsteered.",
        rich_help_panel="Learned steering",
    ),
]  # fmt: skip
Verify = Annotated[
    bool | None,
    typer.Option(
        "--verify/--no-verify", help="Draw plainly first; steer only what the classifier finds wrong.",
        rich_help_panel="Learned steering",
    ),
]  # fmt: skip
Attempts = Annotated[
    int | None,
    typer.Option(
        help="Steer so many seeds in turn, until the classifier finds one right.", rich_help_panel="Learned steering"
    ),
]
Output = Annotated[Path | None, typer.Option("--output", "-o", help="PNG to write.", rich_help_panel=_OUTPUT)]
From = Annotated[
    Path | None,
    typer.Option(
        "--from", help="Take the settings out of a picture made before; given options win.", rich_help_panel=_OUTPUT
    ),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace files that exist.", rich_help_panel=_OUTPUT)]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.", rich_help_panel=_OUTPUT)]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress bars and no notes.", rich_help_panel=_OUTPUT)]
