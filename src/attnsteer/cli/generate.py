"""`attnsteer generate`: pictures from a prompt, with negative guidance and learned steering."""

import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from attnsteer.cli import options
from attnsteer.cli.parse import relation_dict
from attnsteer.cli.report import failures, hush_libraries, print_json, say
from attnsteer.cli.settings import build_request, check_output, picture_paths, sheet_path
from attnsteer.compare.request import RequestError

if TYPE_CHECKING:
    from attnsteer.compare import OpenModel, Picture, Plan, Request


def generate(
    prompt: Annotated[str | None, typer.Argument(help="What to show.", show_default=False)] = None,
    negative: options.Negatives = None,
    nag_scale: options.NagScale = None,
    nag_tau: options.NagTau = None,
    nag_alpha: options.NagAlpha = None,
    nag_start: options.NagStart = None,
    nag_end: options.NagEnd = None,
    steer: options.Steer = None,
    classifier: options.Classifier = None,
    seeds: options.Seeds = None,
    best_of: options.BestOf = None,
    verify: options.Verify = None,
    attempts: options.Attempts = None,
    model: options.Model = None,
    dtype: options.Dtype = None,
    device: options.Device = "auto",
    seed: options.Seed = None,
    steps: options.Steps = None,
    guidance_scale: options.GuidanceScale = None,
    width: options.Width = None,
    height: options.Height = None,
    frames: options.Frames = None,
    num_images: Annotated[
        int | None, typer.Option("--num-images", help="Pictures, seeds counting up.", rich_help_panel="Picture")
    ] = None,
    extra: options.Extra = None,
    output: options.Output = None,
    source: options.From = None,
    compare: Annotated[
        bool,
        typer.Option(
            "--compare", help="Also write OUT-compare.png: off, NAG, steered and both, same seed, with heat maps.",
            rich_help_panel="Output",
        ),
    ] = False,
    overwrite: options.Overwrite = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:  # fmt: skip
    """Generate pictures; their settings are kept inside the PNG.

    attnsteer generate "a red circle to the left of a blue square" --negative "blurry" --seed 7 --compare -o out.png
    """
    given = {
        "prompt": prompt, "negative": negative, "model": model, "classifier": classifier, "dtype": dtype,
        "nag_scale": nag_scale, "nag_tau": nag_tau, "nag_alpha": nag_alpha, "nag_start": nag_start,
        "nag_end": nag_end, "seed": seed, "steps": steps, "guidance_scale": guidance_scale, "width": width,
        "height": height, "frames": frames, "num_images": num_images, "seeds": seeds, "best_of": best_of,
        "verify": verify, "attempts": attempts,
    }  # fmt: skip
    with failures(as_json):
        request = build_request(given, steer=steer, extra=extra or (), source=source)
        paths = picture_paths(output, request, overwrite=overwrite)
        if compare:
            if request.tries:
                raise RequestError(
                    "--compare shows one seed in every column: leave --seeds, --best-of, --verify, --attempts out"
                )
            for path in paths:
                check_output(sheet_path(path), overwrite=overwrite)
        result = _work(request, paths, device=device, compare=compare, overwrite=overwrite, quiet=quiet or as_json)
        if as_json:
            print_json(result)
        else:
            for made in (*result["pictures"], *result["sheets"]):
                for path in filter(None, (made["path"], made.get("animation"))):
                    typer.echo(path)


def _work(
    request: "Request", paths: list[Path], *, device: str, compare: bool, overwrite: bool, quiet: bool
) -> dict[str, Any]:
    """Make and write the pictures, and return what --json prints."""
    from attnsteer.compare import find_model, open_model, plan, resolve

    hush_libraries()
    source = find_model(request.model, request.classifier)
    planned = plan(request, source.classifier)
    for note in planned.notes:
        say(f"note: {note}", quiet=quiet)
    start = time.perf_counter()
    model = open_model(source, device=device, dtype=request.dtype, progress=not quiet)
    loading = time.perf_counter() - start
    request = resolve(request, model)
    if request.frames:
        check_animations(paths, compare=compare, overwrite=overwrite)
    pictures: list[dict[str, Any]] = []
    sheets: list[dict[str, Any]] = []
    warnings = list(planned.notes)
    for number, path in enumerate(paths):
        made = _one(request, request.seed + number, model, planned, path, compare=compare, overwrite=overwrite)
        pictures.append(made["picture"])
        sheets += made["sheets"]
        warnings += [note for note in made["notes"] if note not in warnings]
    for note in warnings[len(planned.notes) :]:
        say(f"note: {note}", quiet=quiet)
    return {
        "pictures": pictures,
        "sheets": sheets,
        "settings": request.to_dict(),
        "methods": {"nag": planned.variant.nag, "steering": planned.variant.steer},
        "relations": [relation_dict(relation) for relation in planned.relations],
        "device": model.device,
        "seconds": {"load": round(loading, 3), "generate": [item["seconds"] for item in pictures]},
        "warnings": warnings,
    }


def _one(
    request: "Request", seed: int, model: "OpenModel", planned: "Plan", path: Path, *, compare: bool, overwrite: bool
) -> dict[str, Any]:
    """Make the picture of one seed, and its comparison sheet if asked for."""
    from dataclasses import replace

    from attnsteer.compare import comparison_sheet, run_variants
    from attnsteer.compare.clips import gif_path, write_gif
    from attnsteer.compare.sheets import comparison_animation
    from attnsteer.pictures import write_png

    request = replace(request, seed=seed, num_images=1)
    made = run_variants(request, model, planned, compare=compare)
    picture = made[-1]
    settings, text = request.to_dict(), request.parameters_text()
    write_png(picture.image, path, settings, parameters=text, overwrite=overwrite)
    entry: dict[str, Any] = {"path": str(path), "seed": seed, "seconds": round(picture.seconds, 3)}
    if picture.steering is not None:
        entry["steering"] = steering_dict(picture.steering)
    if picture.frames:
        entry["animation"] = str(write_gif(picture.frames, gif_path(path)))
    sheets = []
    if compare:
        target = sheet_path(path)
        sheet = comparison_sheet(request, planned, made)
        write_png(sheet, target, settings, parameters=text, overwrite=overwrite)
        columns = [{"name": item.variant.name, "seconds": round(item.seconds, 3)} for item in made]
        sheets.append({"path": str(target), "seed": seed, "columns": columns})
        if picture.frames:
            moving = comparison_animation(request, planned, made)
            sheets[-1]["animation"] = str(write_gif(moving, gif_path(target)))
    return {"picture": entry, "sheets": sheets, "notes": unsteered(planned, picture)}


def check_animations(pictures: list[Path], *, compare: bool, overwrite: bool) -> None:
    """Tell before any work that an animation which goes with these pictures or their sheets exists.

    Raises: RequestError if one does, and `overwrite` is false.
    """
    from attnsteer.compare.clips import gif_path

    files = [*pictures, *(sheet_path(path) for path in pictures if compare)]
    there = [gif_path(file) for file in files if gif_path(file).exists() and not overwrite]
    if there:
        raise RequestError(f"{str(there[0])!r} exists; choose another name or pass --overwrite")


def unsteered(planned: "Plan", picture: "Picture") -> list[str]:
    """Return a note for each planned relation that the classifier could not judge."""
    if not planned.variant.steer:
        return []
    done = picture.steering.relations[0] if picture.steering is not None else []
    return [
        f"the classifier does not know {item.relation!r}: {item.subject.text!r} and {item.object.text!r} not steered"
        for item in planned.relations
        if item not in done
    ]


def steering_dict(report: Any) -> dict[str, Any]:
    """Return what steering did as JSON: denoiser passes, and the probability of the relations before and after.

    Where several runs were made: the passes of each trial, the number of the chosen seed (0 is the given one), and
    how probable the relations were in the plain picture; and the number of the attempt that was kept, and how
    probable they were in that.
    """
    moves = report.steps
    steps = [{"step": m.step_index + 1, "before": list(m.before), "after": list(m.after)} for m in moves]
    trials = [trial.iterations for trial in report.trials]
    found = {"iterations": report.iterations, "steps": steps}
    if trials or report.seeds:
        found |= {"trials": trials, "seeds": list(report.seeds), "verified": list(report.verified)}
    if report.attempts:
        found |= {"attempts": list(report.attempts), "scores": list(report.scores)}
    return found
