"""`attnsteer train`: a relation classifier from collected maps."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from attnsteer.cli import options
from attnsteer.cli.report import failures, hush_libraries, print_json, say

if TYPE_CHECKING:
    from attnsteer.steering.probe import LayerChoice

_SETTINGS = "Training"
_CLASSIFIER = "Classifier"


def train(
    maps: Annotated[list[Path], typer.Argument(help="Folders of `attnsteer collect`.", show_default=False)],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Folder of the classifier; an unfinished one goes on.",
                           show_default=False)
    ],
    preset: Annotated[
        str | None,
        typer.Option(help="Published classifiers: sd14, sd2, flux-schnell, flux-dev; or shapes. Default: a small one.",
                     rich_help_panel=_CLASSIFIER),
    ] = None,
    select_layers: Annotated[
        int | None, typer.Option(help="Read only this many layers, chosen by a probe.", rich_help_panel=_CLASSIFIER)
    ] = None,
    conditioning: Annotated[
        str | None, typer.Option(help="Noise level: log_snr (any step count) or index.", rich_help_panel=_CLASSIFIER)
    ] = None,
    antisymmetric: Annotated[
        bool | None,
        typer.Option("--antisymmetric/--free", help="Exchanging the objects exchanges left and right, exactly.",
                     rich_help_panel=_CLASSIFIER),
    ] = None,
    held_out: Annotated[
        list[Path] | None, typer.Option(help="Folder to validate on instead of a share; repeatable.",
                                        rich_help_panel=_SETTINGS)
    ] = None,
    test: Annotated[
        list[Path] | None, typer.Option(help="Folder to measure the finished classifier on; repeatable.",
                                        rich_help_panel=_SETTINGS)
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="At most.", rich_help_panel=_SETTINGS)] = None,
    batch: Annotated[int | None, typer.Option(help="Over all processes.", rich_help_panel=_SETTINGS)] = None,
    learning_rate: Annotated[float | None, typer.Option(help="At the start.", rich_help_panel=_SETTINGS)] = None,
    symmetries: Annotated[
        str | None, typer.Option(help="Augmentation: swap, mirror, upend, transpose, with commas; none for none.",
                                 rich_help_panel=_SETTINGS)
    ] = None,
    seed: Annotated[int | None, typer.Option(help="Of everything random.", rich_help_panel=_SETTINGS)] = None,
    push: Annotated[
        str | None, typer.Option(metavar="USER/NAME", help="Upload the classifier to the Hub.", rich_help_panel="Hub")
    ] = None,
    private: Annotated[
        bool, typer.Option("--private", help="Make a new repository private.", rich_help_panel="Hub")
    ] = False,
    as_json: options.Json = False,
    quiet: options.Quiet = False,
) -> None:  # fmt: skip
    """Train a relation classifier, measure it, and test it for leakage. Under torchrun it trains on all devices.

    attnsteer train maps -o classifier --select-layers 4
    """
    with failures(as_json):
        settings: dict[str, Any] = {
            "held_out": tuple(str(folder) for folder in held_out or ()) or None, "epochs": epochs,
            "batch_size": batch, "learning_rate": learning_rate, "seed": seed,
            "symmetries": None if symmetries is None else _symmetries(symmetries),
        }  # fmt: skip
        architecture = {"conditioning": conditioning, "antisymmetric": antisymmetric}
        result = _work(
            [str(folder) for folder in maps], output, preset, select_layers,
            {name: value for name, value in settings.items() if value is not None},
            {name: value for name, value in architecture.items() if value is not None},
            [str(folder) for folder in test or ()], quiet=quiet or as_json,
        )  # fmt: skip
        if push is not None and result["leads"]:
            from attnsteer.steering.classifier import RelationClassifier

            result["commit"] = RelationClassifier.from_pretrained(output).push_to_hub(push, private=private)
        if not result.pop("leads"):
            return
        if as_json:
            print_json(result)
        else:
            typer.echo(result["classifier"])


def _work(
    maps: list[str], output: Path, preset: str | None, count: int | None, settings: dict[str, Any],
    architecture: dict[str, Any], test: list[str], *, quiet: bool,
) -> dict[str, Any]:  # fmt: skip
    """Choose layers, train and measure; returns what --json prints."""
    from dataclasses import replace

    from attnsteer.steering.dataset import MapDataset
    from attnsteer.steering.train import evaluate_classifier, train_classifier
    from attnsteer.steering.train_presets import train_preset
    from attnsteer.steering.training_run import split_rows

    hush_libraries()
    import torch
    from accelerate import PartialState

    leads = PartialState(cpu=not torch.accelerator.is_available()).is_main_process
    quiet = quiet or not leads
    dataset = MapDataset([*maps, *settings.get("held_out", ())])
    if test:
        MapDataset(test)  # what is wrong with these folders is told now, not after training
    classifier, training = train_preset(preset, dataset.manifest)
    training = replace(training, **settings)
    choice = None
    if count is not None:
        choice, manifest = _chosen(dataset, count, split_rows(dataset, training), quiet=quiet)
        classifier, _ = train_preset(preset, manifest)
    classifier = replace(classifier, **architecture)
    trained = train_classifier(
        maps, output, classifier=classifier, settings=training,
        on_epoch=lambda report: say(_line(report), quiet=quiet),
    )  # fmt: skip
    metrics = dict(trained.metrics or {})
    if test:
        trained.metrics = metrics = {**evaluate_classifier(trained, test), "validation": metrics}
        if leads:
            trained.save_pretrained(output)
    say(_verdict(metrics), quiet=quiet)
    return {
        "classifier": str(output), "layers": None if choice is None else choice.to_json(), "metrics": metrics,
        "leads": leads,
    }  # fmt: skip


def _chosen(dataset: Any, count: int, split: Any, *, quiet: bool) -> "tuple[LayerChoice, Any]":
    from attnsteer.steering.dataset import with_layers
    from attnsteer.steering.probe import choose_layers

    choice = choose_layers(dataset, count, split)
    for name, accuracy, channels in zip(choice.order, choice.accuracy, choice.channels, strict=True):
        say(f"layer {name}: {accuracy:.3f} with those before it, {channels} channels", quiet=quiet)
    say(f"all layers: {choice.accuracy_of_all:.3f}; the last chosen runs at {choice.last:.0%} of them", quiet=quiet)
    manifest, _ = with_layers(dataset.manifest, choice.layers)
    return choice, manifest


def _line(report: Any) -> str:
    mark = " *" if report.best else ""
    return (
        f"epoch {report.epoch}: loss {report.train_loss:.4f}, held out {report.validation_loss:.4f}, accuracy "
        f"{report.validation_accuracy:.3f}{mark}"
    )


def _verdict(metrics: dict[str, Any]) -> str:
    from attnsteer.steering.metrics import leakage_verdict

    verdict = leakage_verdict(metrics["leakage"])
    return f"accuracy {metrics['accuracy']:.3f} of {metrics['samples']}; leakage test {verdict}"


def _symmetries(text: str) -> tuple[str, ...]:
    return () if text.strip() == "none" else tuple(part.strip() for part in text.split(","))
