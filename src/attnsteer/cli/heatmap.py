"""`attnsteer heatmap`: where in the picture each word is read, step by step."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from attnsteer.cli import options
from attnsteer.cli.parse import span_dict
from attnsteer.cli.report import failures, hush_libraries, print_json, say
from attnsteer.cli.settings import build_request, check_output, free_name
from attnsteer.compare.request import RequestError

if TYPE_CHECKING:
    from attnsteer.compare import Request


def heatmap(
    prompt: Annotated[str | None, typer.Argument(help="What to show.", show_default=False)] = None,
    words: Annotated[
        str | None,
        typer.Option("--words", "-w", help="Words or phrases of the prompt, comma-separated. Default: its objects."),
    ] = None,
    at: Annotated[
        str | None, typer.Option("--at", help="Steps to look at, from 1. Default: four, evenly spread.")
    ] = None,
    common_scale: Annotated[
        bool, typer.Option("--common-scale", help="Colour all maps of a word on one scale.")
    ] = False,
    negative: options.Negatives = None,
    nag_scale: options.NagScale = None,
    nag_tau: options.NagTau = None,
    nag_alpha: options.NagAlpha = None,
    steer: options.Steer = None,
    classifier: options.Classifier = None,
    model: options.Model = None,
    dtype: options.Dtype = None,
    device: options.Device = "auto",
    seed: options.Seed = None,
    steps: options.Steps = None,
    guidance_scale: options.GuidanceScale = None,
    width: options.Width = None,
    height: options.Height = None,
    frames: options.Frames = None,
    extra: options.Extra = None,
    output: options.Output = None,
    source: options.From = None,
    overwrite: options.Overwrite = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:  # fmt: skip
    """Draw the attention of words over the finished picture, at several steps.

    attnsteer heatmap "a red circle to the left of a blue square" --words "circle,square" -o maps.png
    """
    given = {
        "prompt": prompt, "negative": negative, "model": model, "classifier": classifier, "dtype": dtype,
        "nag_scale": nag_scale, "nag_tau": nag_tau, "nag_alpha": nag_alpha, "seed": seed, "steps": steps,
        "guidance_scale": guidance_scale, "width": width, "height": height, "frames": frames,
    }  # fmt: skip
    with failures(as_json):
        request = build_request(given, steer=steer, extra=extra or (), source=source)
        target = output if output is not None else Path(free_name(f"attnsteer-{request.seed}-heatmap", overwrite))
        check_output(target, overwrite=overwrite)
        chosen = [word.strip() for word in words.split(",") if word.strip()] if words is not None else None
        result = _work(
            request, chosen, _steps(at), target,
            device=device, common_scale=common_scale, overwrite=overwrite, quiet=quiet or as_json,
        )  # fmt: skip
        if as_json:
            print_json(result)
        else:
            typer.echo(result["path"])


def _steps(text: str | None) -> list[int] | None:
    """Read "1,5,20" as the 0-based steps [0, 4, 19]."""
    if text is None:
        return None
    numbers = [part.strip() for part in text.split(",")]
    if not all(number.isdigit() and int(number) >= 1 for number in numbers):
        raise RequestError(f"--at takes step numbers from 1, e.g. 1,5,20; got {text!r}")
    return sorted({int(number) - 1 for number in numbers})


def _work(
    request: "Request",
    words: list[str] | None,
    steps: list[int] | None,
    target: Path,
    *,
    device: str,
    common_scale: bool,
    overwrite: bool,
    quiet: bool,
) -> dict[str, Any]:
    """Generate, record, draw and write, and return what --json prints."""
    from attnsteer.compare import find_model, open_model, plan, resolve
    from attnsteer.compare.maps import choose_steps, choose_words
    from attnsteer.compare.sheets import map_sheet
    from attnsteer.pictures import write_png

    hush_libraries()
    source = find_model(request.model, request.classifier)
    planned = plan(request, source.classifier)
    for note in planned.notes:
        say(f"note: {note}", quiet=quiet)
    spans = choose_words(request.text, words, planned.relations)
    model = open_model(source, device=device, dtype=request.dtype, progress=not quiet)
    request = resolve(request, model)
    at = choose_steps(request.steps, steps)
    sheet, table = map_sheet(request, planned, model, spans, at, common_scale=common_scale)
    write_png(sheet, target, request.to_dict(), parameters=request.parameters_text(), overwrite=overwrite)
    return {
        "path": str(target),
        "settings": request.to_dict(),
        "words": [span_dict(span) for span in spans],
        "steps": [step + 1 for step in at],
        "maps": table,
        "warnings": list(planned.notes),
    }
