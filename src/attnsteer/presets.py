"""Settings that suit a model: one row per family, used where a method's settings are None.

`scale` is 1 + phi of the paper. Source: Chen et al. 2025, arXiv:2505.21179, Table 5.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, TypeVar

from torch import nn

from attnsteer.families import family_of

Method = TypeVar("Method", bound=Any)


@dataclass(frozen=True)
class Preset:
    """Published settings of one model.

    Args:
        model: Name for people.
        denoiser: Name of the denoiser's row in `attnsteer.families`.
        scale: Strength, 1 + phi of the paper.
        tau: Bound on the growth of a token's norm.
        alpha: Share of the guided features.
        where: Configuration entries the denoiser must have.
    """

    model: str
    denoiser: str
    scale: float
    tau: float
    alpha: float
    where: Mapping[str, Any] = field(default_factory=dict)


PRESETS = (
    Preset("SDXL", "UNet2DConditionModel", 3.0, 2.5, 0.5, where={"addition_embed_type": "text_time"}),
    Preset("SD1.5", "UNet2DConditionModel", 3.0, 2.5, 0.375),
    Preset("SD3.5", "SD3Transformer2DModel", 5.0, 2.5, 0.125),
    Preset("FLUX.1", "FluxTransformer2DModel", 5.0, 2.5, 0.25),
    Preset("Wan2.1", "WanTransformer3DModel", 5.0, 2.5, 0.25),
)


def preset_of(denoiser: nn.Module) -> Preset:
    """The first row that fits a denoiser.

    Raises: UnsupportedModelError if the denoiser has no family; LookupError if the family has no preset.
    """
    family, config = family_of(denoiser), getattr(denoiser, "config", {})
    for preset in PRESETS:
        if preset.denoiser == family.denoiser and all(config.get(key) == value for key, value in preset.where.items()):
            return preset
    raise LookupError(f"no preset for {family.denoiser}: give them yourself, e.g. NAG(5.0, 2.5, 0.25)")


def resolved(method: Method, denoiser: nn.Module) -> Method:
    """`method` with every setting that is None taken from the denoiser's preset, where the preset has it."""
    names = ("scale", "tau", "alpha")
    missing = [f.name for f in fields(method) if f.name in names and getattr(method, f.name) is None]
    if not missing:
        return method
    preset = preset_of(denoiser)
    return replace(method, **{name: getattr(preset, name) for name in missing})
