"""How a relation classifier is trained, as plain data; the published settings as presets."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType

from attnsteer.steering.symmetry import SYMMETRIES


@dataclass(frozen=True)
class TrainSettings:
    """How to train.

    Attributes:
        epochs: At most.
        batch_size: Over all processes together.
        learning_rate: Of AdamW at the start.
        weight_decay: Of AdamW.
        validation: Share of the pictures held out, in (0, 1).
        held_out: Folders of maps to validate on instead; all of the training folders is then trained on.
        plateau_factor: Factor of the learning rate after a plateau, in (0, 1).
        plateau_patience: Epochs without a better validation loss that make a plateau.
        min_learning_rate: The learning rate does not fall below it.
        stop_patience: Epochs without a better validation loss before training ends.
        clip: Greatest norm of the gradient; math.inf for no clipping.
        symmetries: Augmentations, keys of `attnsteer.steering.symmetry.SYMMETRIES`, each on a random half.
        seed: Of the split, the initial weights, the order and the augmentation.
        workers: Processes that read maps; 0 reads in the training process.
    """

    epochs: int = 60
    batch_size: int = 64
    learning_rate: float = 5e-4
    weight_decay: float = 0.05
    validation: float = 0.1
    held_out: tuple[str, ...] = ()
    plateau_factor: float = 0.5
    plateau_patience: int = 5
    min_learning_rate: float = 1e-6
    stop_patience: int = 10
    clip: float = 1.0
    symmetries: tuple[str, ...] = ("swap", "mirror")
    seed: int = 0
    workers: int = 0

    def __post_init__(self) -> None:
        for name, least in (("epochs", 1), ("batch_size", 1), ("stop_patience", 1), ("workers", 0)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be >= {least}, got {getattr(self, name)}")
        for name in ("learning_rate", "clip"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be > 0, got {getattr(self, name)}")
        for name in ("validation", "plateau_factor"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(f"{name} must be in (0, 1), got {getattr(self, name)}")
        unknown = sorted(set(self.symmetries) - set(SYMMETRIES))
        if unknown:
            raise ValueError(f"unknown symmetries {unknown}; choose from {', '.join(SYMMETRIES)}")


_FLUX = TrainSettings(epochs=200, learning_rate=5e-5, clip=math.inf, symmetries=())
PUBLISHED_TRAINING: Mapping[str, TrainSettings] = MappingProxyType(
    {
        "flux_schnell": _FLUX,
        "flux_dev": _FLUX,
        "sd2": replace(_FLUX, epochs=100, learning_rate=1e-4),
        "sd14": replace(_FLUX, epochs=150, learning_rate=1e-4),
    }
)
"""The published optimiser settings per model: no augmentation, no clipping.

Source: the training configurations of Learn-to-Steer, arXiv:2509.02295.
"""
