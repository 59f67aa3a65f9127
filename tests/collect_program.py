"""Collects and trains in the processes of torchrun: `torchrun ... collect_program.py FOLDER`."""

import sys
from dataclasses import replace
from pathlib import Path

import torch
from accelerate import PartialState

from attnsteer.steering.classifier import RelationClassifier
from attnsteer.steering.classifier_settings import EncoderSize
from attnsteer.steering.dataset import read_manifest
from attnsteer.steering.train import TrainSettings, default_classifier, train_classifier


def trained(maps: Path, output: Path) -> RelationClassifier:
    """Two epochs without anything random, so that the number of processes changes rounding only."""
    size = EncoderSize(width=16, layers=1, heads=2, feedforward=16)
    classifier = replace(default_classifier(read_manifest(maps)), extractor=size, head=size, dropout=0.0)
    settings = TrainSettings(epochs=2, batch_size=8, symmetries=(), validation=0.3, learning_rate=1e-3)
    return train_classifier([maps], output, classifier=classifier, settings=settings)


def main() -> None:
    from attnsteer.jobs import make_engine
    from attnsteer.steering.data.collection import collect
    from test_collect_jobs import settings

    folder = Path(sys.argv[1])
    maps = folder / "ranks" / "maps"
    collect(settings(folder), maps, make_engine("torchrun"), shard_size=3, progress=False)
    PartialState(cpu=not torch.accelerator.is_available()).wait_for_everyone()
    trained(maps, folder / "ranks" / "classifier")


if __name__ == "__main__":
    main()
