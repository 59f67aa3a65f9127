"""The command `attnsteer`. Nothing here loads torch or diffusers before a command runs that needs them."""

from typing import Annotated

import typer

from attnsteer import __version__
from attnsteer.cli.collect import collect as collect_command
from attnsteer.cli.convert_classifier import convert_classifier as convert_classifier_command
from attnsteer.cli.doctor import doctor as doctor_command
from attnsteer.cli.evaluate_command import evaluate as evaluate_command
from attnsteer.cli.generate import generate as generate_command
from attnsteer.cli.heatmap import heatmap as heatmap_command
from attnsteer.cli.models import models as models_command
from attnsteer.cli.parse import parse as parse_command
from attnsteer.cli.report_command import report as report_command
from attnsteer.cli.sweep import sweep as sweep_command
from attnsteer.cli.train import train as train_command

main = typer.Typer(
    name="attnsteer",
    help="Negative prompts that work, and objects that stand where the prompt says, for any diffusers pipeline.",
    epilog="Exit codes: 0 done, 1 failed while working, 2 the request itself cannot be honoured.",
    no_args_is_help=True,
    pretty_exceptions_show_locals=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
main.command("generate")(generate_command)
main.command("heatmap")(heatmap_command)
main.command("parse")(parse_command)
main.command("evaluate")(evaluate_command)
main.command("report")(report_command)
main.command("sweep")(sweep_command)
main.command("collect")(collect_command)
main.command("train")(train_command)
main.command("convert-classifier")(convert_classifier_command)
main.command("models")(models_command)
main.command("doctor")(doctor_command)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"attnsteer {__version__}")
        raise typer.Exit


@main.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    pass
