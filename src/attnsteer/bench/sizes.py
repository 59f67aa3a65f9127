"""Full-size denoisers as data: their configuration, and the shapes of one call."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any


@dataclass(frozen=True)
class Size:
    """A denoiser and one call of it.

    Attributes:
        name: For the table: model and picture.
        denoiser: Class in diffusers.
        config: Its configuration, as on the Hub where it differs from the class's defaults.
        latents: Shape of the latents without the batch axis.
        text: Text tokens, and channels of their features.
        inputs: Shapes of the other arguments without the batch axis; nested as in the call.
        grid: Rows and columns of image tokens, for denoisers that take `img_ids`.
        paper: Share by which NAG lengthened a step in its paper, on one A100; None where it gives no figure.
    """

    name: str
    denoiser: str
    config: Mapping[str, Any]
    latents: tuple[int, ...]
    text: tuple[int, int]
    inputs: Mapping[str, Any] = field(default_factory=dict)
    grid: tuple[int, int] | None = None
    paper: float | None = None


def flux(name: str, pixels: int, text_tokens: int, *, guidance: bool, paper: float | None = None) -> Size:
    """FLUX.1 with square pictures; `guidance` tells whether it has the guidance embedding (FLUX.1-dev)."""
    side = pixels // 16
    return Size(
        name,
        "FluxTransformer2DModel",
        {"guidance_embeds": guidance},
        latents=(side * side, 64),
        text=(text_tokens, 4096),
        inputs={"pooled_projections": (768,), "timestep": (), **({"guidance": ()} if guidance else {})},
        grid=(side, side),
        paper=paper,
    )


def _wan(name: str, config: Mapping[str, Any], paper: float | None = None) -> Size:
    return Size(
        name, "WanTransformer3DModel", config, latents=(16, 21, 60, 104), text=(512, 4096), inputs={"timestep": ()},
        paper=paper,
    )  # fmt: skip


SD21_512 = Size(
    "SD2.1, 512 px",
    "UNet2DConditionModel",
    {
        "sample_size": 64,
        "cross_attention_dim": 1024,
        "attention_head_dim": (5, 10, 20, 20),
        "use_linear_projection": True,
    },
    latents=(4, 64, 64),
    text=(77, 1024),
    inputs={"timestep": ()},
)
SDXL_1024 = Size(
    "SDXL, 1024 px",
    "UNet2DConditionModel",
    {
        "sample_size": 128,
        "block_out_channels": (320, 640, 1280),
        "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        "transformer_layers_per_block": (1, 2, 10),
        "attention_head_dim": (5, 10, 20),
        "cross_attention_dim": 2048,
        "use_linear_projection": True,
        "addition_embed_type": "text_time",
        "addition_time_embed_dim": 256,
        "projection_class_embeddings_input_dim": 2816,
    },
    latents=(4, 128, 128),
    text=(77, 2048),
    inputs={"timestep": (), "added_cond_kwargs": {"text_embeds": (1280,), "time_ids": (6,)}},
    paper=0.22,
)
SD35_LARGE_1024 = Size(
    "SD3.5-large, 1024 px",
    "SD3Transformer2DModel",
    {
        "num_layers": 38,
        "num_attention_heads": 38,
        "attention_head_dim": 64,
        "caption_projection_dim": 2432,
        "joint_attention_dim": 4096,
        "pooled_projection_dim": 2048,
        "pos_embed_max_size": 192,
        "qk_norm": "rms_norm",
    },
    latents=(16, 128, 128),
    text=(77 + 256, 4096),
    inputs={"pooled_projections": (2048,), "timestep": ()},
    paper=0.43,
)
FLUX_DEV_1024 = flux("FLUX.1-dev, 1024 px", 1024, 512, guidance=True, paper=0.87)
FLUX_DEV_512 = flux("FLUX.1-dev, 512 px", 512, 512, guidance=True)
FLUX_SCHNELL_1024 = flux("FLUX.1-schnell, 1024 px", 1024, 256, guidance=False)
FLUX_SCHNELL_256 = flux("FLUX.1-schnell, 256 px", 256, 512, guidance=False)
WAN_SMALL = _wan(
    "Wan2.1-1.3B, 480x832, 81 frames", {"num_attention_heads": 12, "num_layers": 30, "ffn_dim": 8960}, paper=0.12
)
WAN_LARGE = _wan("Wan2.1-14B, 480x832, 81 frames", {"num_attention_heads": 40, "num_layers": 40, "ffn_dim": 13824})

SIZES = (
    FLUX_DEV_1024, FLUX_SCHNELL_1024, FLUX_DEV_512, SD35_LARGE_1024, SDXL_1024, SD21_512, WAN_SMALL, WAN_LARGE,
)  # fmt: skip

FLUX_QUARTER = replace(
    FLUX_DEV_1024,
    name="FLUX.1-dev, 1024 px, every length / 4, 3 of 57 blocks",
    config={
        "guidance_embeds": True,
        "num_layers": 1,
        "num_single_layers": 2,
        "num_attention_heads": 6,
        "joint_attention_dim": 1024,
        "pooled_projection_dim": 192,
        "in_channels": 16,
    },
    latents=(1024, 16),
    text=(128, 1024),
    inputs={"pooled_projections": (192,), "timestep": (), "guidance": ()},
    grid=(32, 32),
)
"""Small enough for a CPU, in the proportions of the whole: tokens, text tokens and channels are a quarter each."""
