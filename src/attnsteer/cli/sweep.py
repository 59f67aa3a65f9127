"""`attnsteer sweep`: a prompt over values of a method's settings, from the same seeds, on one sheet."""

from pathlib import Path
from typing import Annotated

import typer

from attnsteer.cli.evaluate_options import PictureOptions, RunOptions, SuiteOptions, evaluation_of
from attnsteer.cli.groups import grouped
from attnsteer.cli.report import failures, hush_libraries, print_json, say


@grouped
def sweep(
    *,
    prompt: Annotated[str, typer.Argument(help="What to show.", show_default=False)],
    axes: Annotated[
        list[str],
        typer.Argument(
            metavar="METHOD.SETTING=V,V,...", show_default=False,
            help="Values to try, e.g. nag.scale=1,3,5,9 or steer.iterations=1,3; several make a grid.",
        ),
    ],
    seeds: Annotated[int, typer.Option(help="Pictures of each value, one row each.")] = 1,
    picture: PictureOptions,
    where: RunOptions,
) -> None:  # fmt: skip
    """Draw a prompt with several values of a setting beside the stock pipeline, and write sheet.png.

    attnsteer sweep "a circle" nag.scale=1,3,5,9 --negative red --seeds 3
    """
    with failures(where.as_json):
        from attnsteer.evaluate.gallery import gallery_job, gallery_sheets
        from attnsteer.evaluate.settings import GALLERY
        from attnsteer.evaluate.sweep import parse_axis
        from attnsteer.jobs import run_job

        hush_libraries()
        methods = dict.fromkeys(["none", *(parse_axis(axis).method for axis in axes)])
        evaluation = evaluation_of(GALLERY, SuiteOptions(methods=",".join(methods), sweep=axes), picture)
        engine, folder, quiet = where.make_engine(), where.output or evaluation.folder, where.quiet or where.as_json
        job = gallery_job(evaluation, [prompt], seeds, where.shard_size)
        outcome = run_job(job, folder, engine, progress=not quiet)
        say(f"{outcome.finished} of {outcome.shards} shards in {folder}", quiet=quiet or not engine.leads)
        if engine.leads:
            path: Path = folder / "sheet.png"
            gallery_sheets(folder)[prompt].save(path)
            if where.as_json:
                print_json({"run": str(folder), "sheet": str(path)})
            else:
                typer.echo(str(path))
