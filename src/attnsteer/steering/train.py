"""Train a relation classifier on folders of labelled attention maps, and measure one.

Recipe of Learn-to-Steer (arXiv:2509.02295): cross entropy, AdamW, learning rate halved on a plateau of the validation
loss, early stopping; here with the best weights kept, exact augmentation, resumable, and tested for leakage. Under
torchrun the same function trains on several devices.
"""

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from attnsteer.steering.classifier import RelationClassifier
from attnsteer.steering.classifier_settings import ClassifierSettings, MapSource
from attnsteer.steering.dataset import Manifest, MapDataset
from attnsteer.steering.metrics import evaluate
from attnsteer.steering.train_settings import PUBLISHED_TRAINING, TrainSettings
from attnsteer.steering.training_run import EpochReport, TrainingRun, classify, predictions_of

__all__ = [
    "PUBLISHED_TRAINING",
    "EpochReport",
    "TrainSettings",
    "default_classifier",
    "evaluate_classifier",
    "map_source",
    "train_classifier",
]

logger = logging.getLogger(__name__)


def train_classifier(
    folders: Sequence[str | Path],
    output: str | Path,
    *,
    classifier: ClassifierSettings | None = None,
    settings: TrainSettings | None = None,
    on_epoch: Callable[[EpochReport], None] | None = None,
) -> RelationClassifier:
    """Train, measure on held-out pictures, and save with metrics.json and a model card.

    Started again with the same arguments it goes on after the last finished epoch and ends with the weights that an
    uninterrupted run ends with.

    Args:
        folders: Sets of maps of one kind.
        output: Folder for the classifier; `checkpoint.pt` in it holds what resuming needs.
        classifier: Architecture; default `default_classifier` of the maps. Of maps of more layers than its source
            names, it reads those of its layers only.
        settings: How to train; default `TrainSettings()`.
        on_epoch: Called in the main process after each epoch.

    Returns:
        The classifier with the lowest validation loss, in evaluation mode on the CPU, with `metrics` set.

    Raises:
        ValueError: if the classifier does not fit the maps, or `output` holds a run with other settings.
    """
    settings = settings or TrainSettings()
    layers = None if classifier is None else classifier.source.layers
    dataset = MapDataset([*folders, *settings.held_out], layers)
    architecture = classifier or default_classifier(dataset.manifest)
    _require_fit(architecture, dataset.manifest)
    run = TrainingRun(dataset, architecture, settings, Path(output))
    run.resume()
    while not run.finished():
        report = run.epoch()
        logger.info("%s", report)
        if on_epoch is not None and run.accelerator.is_main_process:
            on_epoch(report)
    return run.result()


def evaluate_classifier(
    classifier: RelationClassifier, folders: Sequence[str | Path], *, batch_size: int = 64
) -> dict[str, Any]:
    """Measure a classifier on all samples of some folders, which it should not have been trained on.

    Args:
        classifier: Moved nowhere; runs where its weights are.
        folders: Sets of maps of one kind.
        batch_size: Samples at a time.

    Returns:
        See `attnsteer.steering.metrics.evaluate`; the leakage report included.

    Raises:
        ValueError: if the classifier does not fit the maps.
    """
    dataset = MapDataset(folders, classifier.settings.source.layers)
    _require_fit(classifier.settings, dataset.manifest)
    rows = list(range(len(dataset)))
    device = classifier.object_extractor.query_vector.device
    training = classifier.training
    classifier.eval()
    try:
        logits = classify(classifier, dataset, rows, device, batch_size)
    finally:
        classifier.train(training)
    return evaluate(predictions_of(dataset, rows, logits), classifier.relations)


def default_classifier(manifest: Manifest) -> ClassifierSettings:
    """A small classifier for the maps of a manifest: log-SNR conditioning, standardised maps, width 64."""
    return ClassifierSettings(
        relations=manifest.relations,
        channels=manifest.channels,
        map_size=manifest.map_size,
        dropout=0.1,
        standardise=True,
        source=map_source(manifest),
    )


def map_source(manifest: Manifest) -> MapSource:
    """Where maps come from, as far as their manifest tells."""
    told = manifest.settings
    steps = told.get("steps") or ()
    return MapSource(
        model_id=manifest.model_id,
        revision=told.get("revision"),
        layers=manifest.layers,
        normalise=manifest.normalise,
        text_length=told.get("text_length"),
        timesteps=tuple(steps) if isinstance(steps, list | tuple) else (),
        num_steps=told.get("num_inference_steps"),
    )


def _require_fit(classifier: ClassifierSettings, manifest: Manifest) -> None:
    for name in ("relations", "map_size"):
        wanted, there = getattr(classifier, name), getattr(manifest, name)
        if wanted != there:
            raise ValueError(f"the classifier's {name} is {wanted!r}, the maps have {there!r}; make them agree")
    exact = not classifier.fewer_channels
    if manifest.channels > classifier.channels or (exact and manifest.channels != classifier.channels):
        raise ValueError(f"the classifier reads {classifier.channels} map channels, the maps have {manifest.channels}")
