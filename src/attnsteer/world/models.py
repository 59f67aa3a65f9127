"""The embedded models: where they lie in the package."""

from __future__ import annotations

from pathlib import Path

WEIGHTS = Path(__file__).parent / "weights"
DEFAULT_MODEL = "shapes-unet"
FEW_STEP_MODEL = "shapes-unet-few"
VIDEO_MODEL = "shapes-video"


def embedded_models() -> list[str]:
    """Names of the models that come with the package, the default one first."""
    names = sorted(folder.parent.name for folder in WEIGHTS.glob("*/model_index.json"))
    return sorted(names, key=lambda name: name != DEFAULT_MODEL)


def model_folder(name: str) -> Path:
    """The diffusers folder of an embedded model.

    Raises: ValueError for an unknown name, with the names that exist.
    """
    folder = WEIGHTS / name
    if not (folder / "model_index.json").is_file():
        raise ValueError(f"no embedded model {name!r}; the package holds: {', '.join(embedded_models()) or 'none'}")
    return folder


def steering_folder(name: str) -> Path:
    """The relation classifier that was trained for an embedded model, for `LearnedSteering.from_pretrained`.

    Raises: ValueError if the model is unknown or has no classifier.
    """
    folder = model_folder(name) / "steering"
    if not (folder / "config.json").is_file():
        raise ValueError(f"the embedded model {name!r} has no relation classifier")
    return folder
