"""Calls of full-size denoisers as data: real configurations, real numbers of tokens. Nothing here takes memory.

Features are drawn under `imitation()`, so they have shapes but no values; masks, positions and indices are real.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

Draw = Callable[..., Tensor]


@dataclass(frozen=True)
class Full:
    """One call of a released model: its class, configuration, keywords without text, and those of a text."""

    denoiser: str
    call: Callable[[Draw], dict[str, Any]]
    text: Callable[[Draw, int], dict[str, Any]]
    tokens: int
    config: Mapping[str, Any] = field(default_factory=dict)


def _t(draw: Draw) -> Tensor:
    return draw(1)


def _features(width: int) -> Callable[[Draw, int], dict[str, Any]]:
    return lambda draw, n: {"encoder_hidden_states": draw(1, n, width)}


def _masked(width: int) -> Callable[[Draw, int], dict[str, Any]]:
    return lambda draw, n: {
        "encoder_hidden_states": draw(1, n, width),
        "encoder_attention_mask": torch.ones(1, n, dtype=torch.long),
    }


def _with_ids(width: int, axes: int = 3) -> Callable[[Draw, int], dict[str, Any]]:
    return lambda draw, n: {"encoder_hidden_states": draw(1, n, width), "txt_ids": torch.zeros(n, axes)}


def _ids(side: int, axes: int = 3) -> Tensor:
    ids = torch.zeros(side, side, axes)
    ids[..., 1], ids[..., 2] = torch.arange(side)[:, None], torch.arange(side)[None]
    return ids.flatten(0, 1)


def _latents(*shape: int, **more: Callable[[Draw], Any]) -> Callable[[Draw], dict[str, Any]]:
    return lambda draw: {
        "hidden_states": draw(1, *shape),
        "timestep": _t(draw),
        **{name: make(draw) for name, make in more.items()},
    }


def _flux_like(tokens: int = 4096, channels: int = 64, axes: int = 3, **more: Any) -> Callable[[Draw], dict[str, Any]]:
    return _latents(tokens, channels, img_ids=lambda _: _ids(int(tokens**0.5), axes), **more)


def _sizes(draw: Draw) -> Tensor:
    return torch.full((1, 2), 1024.0)


def _hunyuan(draw: Draw) -> dict[str, Any]:
    return {"pooled_projections": draw(1, 768), "guidance": torch.full((1,), 6000.0)}


SD15 = Full(
    "UNet2DConditionModel",
    lambda draw: {"sample": draw(1, 4, 64, 64), "timestep": _t(draw)},
    _features(768),
    77,
    {"sample_size": 64, "cross_attention_dim": 768},
)
_WAN = Full("WanTransformer3DModel", _latents(16, 21, 60, 104), _features(4096), 512)

FULL: dict[str, Full] = {
    "SD1.5, 512 px": SD15,
    "SD2.1, 768 px": Full(
        "UNet2DConditionModel",
        lambda draw: {"sample": draw(1, 4, 96, 96), "timestep": _t(draw)},
        _features(1024),
        77,
        {"cross_attention_dim": 1024, "attention_head_dim": (5, 10, 20, 20), "use_linear_projection": True},
    ),
    "SDXL, 1024 px": Full(
        "UNet2DConditionModel",
        lambda draw: {
            "sample": draw(1, 4, 128, 128),
            "timestep": _t(draw),
            "added_cond_kwargs": {"text_embeds": draw(1, 1280), "time_ids": draw(1, 6)},
        },
        _features(2048),
        77,
        {
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
    ),
    "SD3.5-large, 1024 px": Full(
        "SD3Transformer2DModel",
        _latents(16, 128, 128, pooled_projections=lambda draw: draw(1, 2048)),
        _features(4096),
        333,
        {
            "num_layers": 38,
            "num_attention_heads": 38,
            "caption_projection_dim": 2432,
            "pos_embed_max_size": 192,
            "qk_norm": "rms_norm",
        },
    ),
    "FLUX.1-dev, 1024 px": Full(
        "FluxTransformer2DModel",
        _flux_like(pooled_projections=lambda draw: draw(1, 768), guidance=_t),
        _with_ids(4096),
        512,
        {"guidance_embeds": True},
    ),
    "FLUX.2-dev, 1024 px": Full(
        "Flux2Transformer2DModel", _flux_like(4096, 128, 4, guidance=_t), _with_ids(15360, 4), 512
    ),
    "Chroma, 1024 px": Full(
        "ChromaTransformer2DModel",
        _flux_like(),
        lambda draw, n: {**_with_ids(4096)(draw, n), "attention_mask": torch.ones(1, n + 4096)},
        512,
    ),
    "Qwen-Image, 1328 px": Full(
        "QwenImageTransformer2DModel",
        _latents(6889, 64, img_shapes=lambda _: [[(1, 83, 83)]]),
        _features(3584),  # the pipeline drops the mask where nothing is padded
        256,
    ),
    "AuraFlow, 1024 px": Full("AuraFlowTransformer2DModel", _latents(4, 128, 128), _features(2048), 256),
    "Lumina-Image 2, 1024 px": Full(
        "Lumina2Transformer2DModel", _latents(16, 128, 128), _masked(2304), 256, {"cap_feat_dim": 2304}
    ),
    "Z-Image, 1024 px": Full(
        "ZImageTransformer2DModel",
        lambda draw: {"x": [draw(16, 1, 128, 128)], "t": _t(draw)},
        lambda draw, n: {"cap_feats": [draw(n, 2560)]},
        128,
    ),
    "Sana 1.6B, 1024 px": Full("SanaTransformer2DModel", _latents(32, 32, 32), _masked(2304), 300),
    "PixArt-Sigma, 1024 px": Full(
        "PixArtTransformer2DModel",
        _latents(4, 128, 128, added_cond_kwargs=lambda _: {"resolution": None, "aspect_ratio": None}),
        _masked(4096),
        300,
        {"caption_channels": 4096, "use_additional_conditions": False},
    ),
    "Wan2.1-1.3B, 480x832, 81 frames": replace(
        _WAN, config={"num_attention_heads": 12, "num_layers": 30, "ffn_dim": 8960}
    ),
    "Wan2.1-14B, 480x832, 81 frames": _WAN,
    "HunyuanVideo, 720x1280, 129 frames": Full(
        "HunyuanVideoTransformer3DModel",
        lambda draw: {**_latents(16, 33, 90, 160)(draw), **_hunyuan(draw)},
        _masked(4096),
        256,
    ),
    "CogVideoX-5b, 480x720, 49 frames": Full(
        "CogVideoXTransformer3DModel",
        _latents(13, 16, 60, 90, image_rotary_emb=lambda _: (torch.ones(17550, 64), torch.zeros(17550, 64))),
        _features(4096),
        226,
        {"num_attention_heads": 48, "num_layers": 42, "use_rotary_positional_embeddings": True},
    ),
    "LTX-Video, 512x768, 161 frames": Full(
        "LTXVideoTransformer3DModel",
        _latents(8064, 128, num_frames=lambda _: 21, height=lambda _: 16, width=lambda _: 24),
        _masked(4096),
        128,
    ),
    "Mochi 1, 480x848, 163 frames": Full("MochiTransformer3DModel", _latents(12, 28, 60, 106), _masked(4096), 256),
    "Allegro, 720x1280, 88 frames": Full(
        "AllegroTransformer3DModel",
        _latents(
            4,
            22,
            90,
            160,
            image_rotary_emb=lambda _: (
                [(torch.ones(160, 32), torch.zeros(160, 32))] * 3,
                [torch.zeros(1, 22 * 45 * 80, dtype=torch.long)] * 3,
            ),
        ),
        _masked(4096),
        512,
    ),
}
