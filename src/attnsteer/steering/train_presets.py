"""Architecture and optimiser settings by name: as published for each model, or as used for the embedded models."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from attnsteer.steering.classifier_settings import ClassifierSettings
from attnsteer.steering.published import published_classifier
from attnsteer.steering.shards import Manifest
from attnsteer.steering.train import default_classifier, map_source
from attnsteer.steering.train_settings import PUBLISHED_TRAINING, TrainSettings

PRESETS: Final = ("sd14", "sd2", "flux-schnell", "flux-dev", "shapes")


def train_preset(name: str | None, manifest: Manifest) -> tuple[ClassifierSettings, TrainSettings]:
    """Architecture for the maps of a manifest, and how to train it.

    Args:
        name: One of `PRESETS`; None for the small classifier that works on any model.
        manifest: Of the maps. The published architectures are fitted to their channels, relations and steps.

    Raises: ValueError for an unknown name.
    """
    small = default_classifier(manifest)
    if name is None:
        return small, TrainSettings()
    if name == "shapes":
        return replace(small, antisymmetric=True), TrainSettings(epochs=30, symmetries=("swap", "mirror", "upend"))
    if name not in PRESETS:
        raise ValueError(f"preset must be one of {', '.join(PRESETS)}, got {name!r}")
    key = name.replace("-", "_")
    published = published_classifier(key)
    source = map_source(manifest)
    size = published.source.orig_map_size
    fitted = replace(
        published,
        relations=manifest.relations,
        channels=manifest.channels,
        map_size=manifest.map_size,
        num_timesteps=source.num_steps or published.num_timesteps,
        source=replace(source, orig_map_size=size),
    )
    return fitted, PUBLISHED_TRAINING[key]
