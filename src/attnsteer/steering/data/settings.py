"""What a collection of maps is made of, as plain data; the published collections as presets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, Final, Literal, get_args

from attnsteer.steering.data.triplets import ATTRIBUTE, SPATIAL, Split

Source = Literal["gqa", "orm", "samples", "shapes"]
MethodName = Literal["noise", "ddim", "rf"]
PUBLISHED_RELATIONS: Final = tuple(sorted((*SPATIAL, ATTRIBUTE)))
DEFAULT_RELATIONS: Final = ("to the left of", "to the right of", "above", "below")
FRACTIONS: Final = (0.1, 0.2, 0.3, 0.4, 0.5)
"""Where maps are recorded unless steps are named: where steering works."""


@dataclass(frozen=True)
class CollectionSettings:
    """Everything that the maps of a collection depend on.

    Attributes:
        source: "gqa" and "orm" (given pictures), "samples" (the model's own), "shapes" (the shapes world's).
        model: Embedded model, diffusers folder or Hub id.
        data: Folder of the data set; unused with "samples" and "shapes".
        relations: Vocabulary. With "is", attributes are collected too.
        split: Part of the data.
        count: Triplets per relation (pictures in all for "samples" and "shapes"); None takes the published numbers.
        published: Whether filters, split and wording are the published ones, or the improved ones.
        wordnet: Folder of WordNet's noun files, for the published filter; optional for the improved one.
        method: How given pictures get to the noise levels.
        num_inference_steps: Denoising steps; None takes the model's own number.
        record: Step indices at which maps are recorded; None takes `FRACTIONS` of the steps.
        image_size: Side of the pictures in pixels; None takes the model's own.
        squash: Whether pictures are squashed to a square; otherwise their centre is cut out.
        map_size: Side of the maps in cells.
        normalise: Whether each map is divided by its sum.
        layers: Recorded layers; None is all of them.
        guidance_scale: The pipeline's own; None is off for given pictures, and the model's default for samples.
        text_length: Text tokens (`max_sequence_length`); None takes the pipeline's own.
        detector: Labels "samples"; see `attnsteer.evaluate.detectors`.
        nouns: Things that "samples" are asked for.
        extra: Further keywords of the pipeline call.
        seed: Of all draws.
        batch: Rows in one denoiser call; the maps' noise depends on it.
        dtype: See `attnsteer.compare.models.open_model`.
        device: Likewise; does not count among what the maps depend on.

    Raises: ValueError if a setting does not fit.
    """

    source: Source
    model: str
    data: str | None = None
    relations: tuple[str, ...] = DEFAULT_RELATIONS
    split: Split = "train"
    count: int | None = None
    published: bool = False
    wordnet: str | None = None
    method: MethodName = "noise"
    num_inference_steps: int | None = None
    record: tuple[int, ...] | None = None
    image_size: int | None = None
    squash: bool = False
    map_size: int = 16
    normalise: bool = False
    layers: tuple[str, ...] | None = None
    guidance_scale: float | None = None
    text_length: int | None = None
    detector: str = "mask2former"
    nouns: tuple[str, ...] = ()
    extra: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0
    batch: int = 8
    dtype: str = "auto"
    device: str = "auto"

    def __post_init__(self) -> None:
        choices = {"source": get_args(Source), "method": get_args(MethodName), "split": get_args(Split)}
        for name, allowed in choices.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}, got {getattr(self, name)!r}")
        for name in ("count", "batch", "num_inference_steps", "image_size", "map_size", "text_length"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be >= 1, got {value}")
        if self.source in ("gqa", "orm") and self.data is None:
            raise ValueError(f"the source {self.source} needs a local copy of its data: pass --data FOLDER")
        if len(set(self.relations)) < 2:
            raise ValueError(f"a classifier needs at least two relations, got {list(self.relations)}")
        if self.published and self.source == "gqa" and self.wordnet is None:
            raise ValueError(
                "the published filter needs WordNet's noun files: pass --wordnet FOLDER (the dict folder of WordNet "
                "3.0, or corpora/wordnet of nltk), or take the improved filter"
            )


@dataclass(frozen=True)
class DataPreset:
    """How the published classifier of a model got its maps.

    Attributes:
        model: Base model on the Hub.
        settings: Fields of `CollectionSettings`.
        small: Whether the smaller numbers of GQA triplets are taken.
    """

    model: str
    settings: Mapping[str, Any]
    small: bool = False


_SHARED: Final = {"published": True, "relations": PUBLISHED_RELATIONS}
_SD: Final = {
    **_SHARED, "method": "ddim", "num_inference_steps": 50, "record": (5, 10, 15, 20, 25, 49), "image_size": 512,
    "normalise": True, "guidance_scale": 1.0,
}  # fmt: skip
_FLUX: Final = {**_SHARED, "method": "rf", "squash": True, "text_length": 512, "guidance_scale": 0.0}

DATA_PRESETS: Final[Mapping[str, DataPreset]] = MappingProxyType(
    {
        "sd14": DataPreset("CompVis/stable-diffusion-v1-4", _SD, small=True),
        "sd2": DataPreset("stabilityai/stable-diffusion-2-1-base", _SD, small=True),
        "flux-schnell": DataPreset(
            "black-forest-labs/FLUX.1-schnell",
            {**_FLUX, "num_inference_steps": 4, "record": (1, 3), "image_size": 256},
        ),
        "flux-dev": DataPreset(
            "black-forest-labs/FLUX.1-dev",
            {**_FLUX, "num_inference_steps": 50, "record": (5, 10, 15, 20, 25, 49), "image_size": 512,
             "normalise": True},
        ),
    }
)  # fmt: skip
"""By name. Source: the data pipeline of Learn-to-Steer, arXiv:2509.02295."""
