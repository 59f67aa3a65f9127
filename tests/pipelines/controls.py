"""Tiny ControlNets."""

from typing import Any

import diffusers
from torch import nn

from tiny.models import TINY

WIDTH = 16  # of every text encoder, projection and pooled text
XL_TEXT = {
    "cross_attention_dim": 2 * WIDTH,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": WIDTH + 6 * 8,
}


def _config(name: str) -> dict[str, Any]:
    return dict(TINY[name].config)


def controlnet(cls: str = "ControlNetModel", **options: Any) -> nn.Module:
    settings = {
        "block_out_channels": (8, 16),
        "layers_per_block": 1,
        "down_block_types": ("CrossAttnDownBlock2D",) * 2,
        "cross_attention_dim": WIDTH,
        "attention_head_dim": 4,
        "norm_num_groups": 4,
        "conditioning_embedding_out_channels": (4, 4),
    }
    return getattr(diffusers, cls)(**{**settings, **options})


def controlnet_xl() -> nn.Module:
    return controlnet(**XL_TEXT)


def controlnet_union() -> nn.Module:
    transformer = {"num_trans_channel": 8, "num_trans_head": 2, "num_proj_channel": 8}
    return controlnet("ControlNetUnionModel", **XL_TEXT, **transformer)


def sparse_controlnet() -> nn.Module:
    motion = {"down_block_types": ("CrossAttnDownBlockMotion",) * 2, "motion_num_attention_heads": 2}
    return controlnet("SparseControlNetModel", **motion, use_simplified_condition_embedding=True)


def controlnet_flux() -> nn.Module:
    return diffusers.FluxControlNetModel(
        **{**_config("FluxTransformer2DModel"), "pooled_projection_dim": WIDTH, "guidance_embeds": False}
    )


def controlnet_sd3(extra: int = 0) -> nn.Module:
    config = {**_config("SD3Transformer2DModel"), "joint_attention_dim": 32, "pooled_projection_dim": 32}
    return diffusers.SD3ControlNetModel(**{**config, "num_layers": 1, "extra_conditioning_channels": extra})


def controlnet_qwen(extra: int = 0) -> nn.Module:
    return diffusers.QwenImageControlNetModel(
        **{**_config("QwenImageTransformer2DModel"), "num_layers": 1}, extra_condition_channels=extra
    )


def controlnet_sana() -> nn.Module:
    return diffusers.SanaControlNetModel(**{**_config("SanaTransformer2DModel"), "num_layers": 1})


def controlnet_z_image(channels: int = 4) -> nn.Module:
    return diffusers.ZImageControlNetModel(
        control_layers_places=[0],
        control_refiner_layers_places=[0],
        control_in_dim=channels,
        add_control_noise_refiner="control_noise_refiner" if channels > 4 else None,
        dim=32,
        n_refiner_layers=1,
        n_heads=2,
        n_kv_heads=2,
    )


def controlnet_hunyuan_dit() -> nn.Module:
    config = _config("HunyuanDiT2DModel") | {"text_len": 77, "text_len_t5": 256, "pooled_projection_dim": WIDTH}
    layers = config.pop("num_layers")
    return diffusers.HunyuanDiT2DControlNetModel(**config, transformer_num_layers=layers)
