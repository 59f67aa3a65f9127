"""`attnsteer convert-classifier`: a published Learn-to-Steer checkpoint as a folder that attnsteer reads."""

from pathlib import Path
from typing import Annotated, Any

import typer

from attnsteer.cli import options
from attnsteer.cli.report import failures, print_json


def convert_classifier(
    checkpoint: Annotated[Path, typer.Argument(help="flux_schnell.pth, sd2.pth, ...", show_default=False)],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder to write.", show_default=False, file_okay=False)
    ],
    schedule: Annotated[
        str | None,
        typer.Option(help="Which published model it belongs to, if the file was renamed: flux_schnell, flux_dev, sd2,"
                     " sd14, flux_schnell_diagonals."),
    ] = None,
    overwrite: options.Overwrite = False,
    as_json: options.Json = False,
) -> None:  # fmt: skip
    """Write a published checkpoint as safetensors and config.json, with what its file name tells of its maps.

    The result computes the same. Steering with it follows the lean rule; LearnedSteering.from_published keeps the
    published schedule.

    attnsteer convert-classifier sd2.pth -o sd2-relations
    """
    with failures(as_json):
        result = _convert(checkpoint, output, schedule, overwrite=overwrite)
        if as_json:
            print_json(result)
        else:
            typer.echo(result["classifier"])


def _convert(checkpoint: Path, output: Path, schedule: str | None, *, overwrite: bool) -> dict[str, Any]:
    from attnsteer.compare.request import RequestError
    from attnsteer.steering.classifier import RelationClassifier
    from attnsteer.steering.published import PUBLISHED_SCHEDULES, read_published_of

    if not checkpoint.is_file():
        raise RequestError(f"there is no file {str(checkpoint)!r}")
    name = schedule or checkpoint.name.removesuffix(".pth")
    if name not in PUBLISHED_SCHEDULES:
        raise RequestError(
            f"no published model is called {name!r}; say which it is with --schedule: {', '.join(PUBLISHED_SCHEDULES)}"
        )
    if (output / "config.json").exists() and not overwrite:
        raise RequestError(f"{str(output)!r} holds a classifier; choose another folder or pass --overwrite")
    classifier = RelationClassifier.from_state(*read_published_of(checkpoint, name), checkpoint)
    classifier.save_pretrained(output)
    source = classifier.settings.source
    return {
        "classifier": str(output), "model": source.model_id, "relations": list(classifier.relations),
        "text_length": source.text_length, "steps": list(source.timesteps),
    }  # fmt: skip
