"""Settings that suit a model: one row per family, used where a method's settings are None.

`scale` is 1 + phi of the paper (arXiv:2505.21179), whatever the source's own convention.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, TypeVar

from torch import nn

from attnsteer.families import family_of

Method = TypeVar("Method", bound=Any)


@dataclass(frozen=True)
class Preset:
    """Settings of one model.

    Args:
        model: Name for people.
        denoiser: Name of the denoiser's row in `attnsteer.families`.
        scale: Strength, 1 + phi of the paper.
        tau: Bound on the growth of a token's norm.
        alpha: Share of the guided features.
        source: Where the settings were published; "unpublished" and why these where they were not.
        where: Configuration entries the denoiser must have.
    """

    model: str
    denoiser: str
    scale: float
    tau: float
    alpha: float
    source: str
    where: Mapping[str, Any] = field(default_factory=dict)


_PAPER = "Chen et al. 2025, arXiv:2505.21179, Table 5"
_WORKFLOW = "ComfyUI-NAG, example workflow"
_NODE = "ComfyUI-NAG and ComfyUI-NAG-Extended, defaults of the node"
_WAN_LIKE = "unpublished; shares its blocks with Wan2.1"
_FLUX_LIKE = "unpublished; shares its blocks with FLUX.1"

PRESETS = (
    Preset("SDXL", "UNet2DConditionModel", 3.0, 2.5, 0.5, _PAPER, where={"addition_embed_type": "text_time"}),
    Preset("SD1.5", "UNet2DConditionModel", 3.0, 2.5, 0.375, _PAPER),
    Preset("AnimateDiff", "UNetMotionModel", 3.0, 2.5, 0.375, "unpublished; shares its blocks with SD1.5"),
    Preset("SD3.5", "SD3Transformer2DModel", 5.0, 2.5, 0.125, _PAPER),
    Preset("SANA", "SanaTransformer2DModel", 5.0, 2.5, 0.375, _PAPER),
    Preset("PixArt", "PixArtTransformer2DModel", 5.0, 2.5, 0.375, _PAPER),
    Preset("FLUX.1", "FluxTransformer2DModel", 5.0, 2.5, 0.25, _PAPER),
    Preset("FLUX.2", "Flux2Transformer2DModel", 5.0, 2.5, 0.25, _NODE),
    Preset("Chroma", "ChromaTransformer2DModel", 5.0, 2.5, 0.25, _WORKFLOW),
    Preset("Bria 3.2", "BriaTransformer2DModel", 5.0, 2.5, 0.25, _FLUX_LIKE),
    Preset("Bria Fibo", "BriaFiboTransformer2DModel", 5.0, 2.5, 0.25, _FLUX_LIKE),
    Preset("LongCat-Image", "LongCatImageTransformer2DModel", 5.0, 2.5, 0.25, _FLUX_LIKE),
    Preset("Ovis-Image", "OvisImageTransformer2DModel", 5.0, 2.5, 0.25, _FLUX_LIKE),
    Preset("Qwen-Image", "QwenImageTransformer2DModel", 5.0, 2.5, 0.25, "diffusers, pull request 13089"),
    Preset("Z-Image", "ZImageTransformer2DModel", 2.0, 2.5, 0.25, "ComfyUI-NAG, pull requests 64 and 69: 1.5 to 2.3"),
    Preset("Lumina 2", "Lumina2Transformer2DModel", 5.0, 2.5, 0.25, _NODE),
    Preset("HiDream", "HiDreamImageTransformer2DModel", 5.0, 2.5, 0.25, _NODE),
    Preset("Krea 2", "Krea2Transformer2DModel", 1.5, 3.5, 0.5, "Wan2GP 12.3: 1.0 to 1.5"),
    Preset("Wan2.1", "WanTransformer3DModel", 5.0, 2.5, 0.25, _PAPER),
    Preset("Wan VACE", "WanVACETransformer3DModel", 5.0, 2.5, 0.25, _WAN_LIKE),
    Preset("Wan Animate", "WanAnimateTransformer3DModel", 5.0, 2.5, 0.25, _WAN_LIKE),
    Preset("SkyReels V2", "SkyReelsV2Transformer3DModel", 5.0, 2.5, 0.25, _WAN_LIKE),
    Preset("ChronoEdit", "ChronoEditTransformer3DModel", 5.0, 2.5, 0.25, _WAN_LIKE),
    Preset("AnyFlow", "AnyFlowTransformer3DModel", 5.0, 2.5, 0.25, _WAN_LIKE),
    Preset("Helios", "HeliosTransformer3DModel", 5.0, 2.5, 0.25, _WAN_LIKE),
    Preset("HunyuanVideo", "HunyuanVideoTransformer3DModel", 9.0, 2.5, 0.12, _WORKFLOW),
    Preset(
        "FramePack",
        "HunyuanVideoFramepackTransformer3DModel",
        9.0,
        2.5,
        0.12,
        "unpublished; shares its blocks with HunyuanVideo",
    ),
    Preset("LTX-2", "LTX2VideoTransformer3DModel", 11.0, 2.5, 0.25, "ComfyUI-KJNodes, defaults of the node LTX2_NAG"),
)


def preset_of(denoiser: nn.Module) -> Preset:
    """The first row that fits a denoiser.

    Raises: UnsupportedModelError if the denoiser has no family; LookupError if the family has no preset.
    """
    family, config = family_of(denoiser), getattr(denoiser, "config", {})
    for preset in PRESETS:
        if preset.denoiser == family.denoiser and all(config.get(key) == value for key, value in preset.where.items()):
            return preset
    raise LookupError(
        f"no preset for {family.denoiser}: nobody has published settings; give them yourself, e.g. NAG(5.0, 2.5, 0.25)"
    )


def resolved(method: Method, denoiser: nn.Module) -> Method:
    """`method` with every setting that is None taken from the denoiser's preset, where the preset has it."""
    names = ("scale", "tau", "alpha")
    missing = [f.name for f in fields(method) if f.name in names and getattr(method, f.name) is None]
    if not missing:
        return method
    preset = preset_of(denoiser)
    return replace(method, **{name: getattr(preset, name) for name in missing})
