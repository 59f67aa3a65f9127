"""`attnsteer report`: one page, Markdown, CSV and LaTeX from the folders of evaluations."""

from pathlib import Path
from typing import Annotated

import typer

from attnsteer.cli import options
from attnsteer.cli.report import failures, hush_libraries, print_json


def report(
    runs: Annotated[list[Path], typer.Argument(help="Folders of `attnsteer evaluate`, finished or not.")],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Folder to write. Default: REPORT of the first run.", file_okay=False),
    ] = None,
    heat_maps: Annotated[
        int,
        typer.Option(help="Examples of each kind to generate again for their attention maps; needs the model."),
    ] = 0,
    device: options.Device = "auto",
    as_json: options.Json = False,
) -> None:
    """Write report.html (one self-contained page), report.md, figures.csv and table.tex.

    attnsteer report runs/shapes-position-shapes-unet --heat-maps 3 -o report
    """
    with failures(as_json):
        from attnsteer.evaluate.report import write_report

        if heat_maps:
            hush_libraries()
        files = write_report(runs, output or runs[0] / "report", heat_maps=heat_maps, device=device)
        if as_json:
            print_json({"report": [str(path) for path in files]})
        else:
            typer.echo(str(files[0]))
