"""Tiny denoisers with one call each: random latents, a positive and a negative text."""

from dataclasses import dataclass
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from torch import Tensor, nn

from tiny.pipelines import build

IF_LIKE = {
    "down_block_types": ("SimpleCrossAttnDownBlock2D", "DownBlock2D"),
    "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
    "up_block_types": ("UpBlock2D", "SimpleCrossAttnUpBlock2D"),
    "cross_attention_norm": "group_norm",
    "encoder_hid_dim_type": "text_proj",
    "cross_attention_dim": 32,
    "encoder_hid_dim": 16,
    "addition_embed_type": "text",
    "addition_embed_type_num_heads": 2,
}
SETTINGS = {
    "unet only cross-attention": {"only_cross_attention": True},
    "unet added keys": IF_LIKE,
    "unet odd size": {},
    "unet with mask": {},
}
NAMES = ("sd", "sdxl", "sd3", "flux", "wan", "wan_i2v", *SETTINGS)


@dataclass(frozen=True)
class Case:
    """A denoiser, the keywords of one call, and the text inputs of the negative text.

    `pooling` names the module, if any, that turns text into modulation.
    """

    denoiser: nn.Module
    call: dict[str, Any]
    negative: dict[str, Tensor]
    latents: str
    pooling: str = ""


def case(name: str, batch: int = 2, negative_tokens: int | None = None, grid: tuple[int, int] = (8, 8)) -> Case:
    """A denoiser of `NAMES` with a call of `batch` rows."""
    draw = torch.Generator().manual_seed(len(name))
    if name in SETTINGS:
        denoiser = _unet(SETTINGS[name])
        grid = (7, 10) if name == "unet odd size" else grid
    else:
        pipe = build(name)
        denoiser = pipe.unet if hasattr(pipe, "unet") else pipe.transformer

    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=draw)

    tokens = 512 if name == "wan_i2v" else 6
    other = tokens if negative_tokens is None else negative_tokens
    width = {"sdxl": 32, "sd3": 32}.get(name, 16)
    call: dict[str, Any] = {"encoder_hidden_states": random(batch, tokens, width)}
    negative = {"encoder_hidden_states": random(batch, other, width)}
    latents = "sample" if isinstance(denoiser, UNet2DConditionModel) else "hidden_states"
    call["timestep"] = torch.full((batch,), 500.0)
    if latents == "sample" or name == "sd3":
        call[latents] = random(batch, 4, *grid)
    if name == "unet with mask":
        call["encoder_attention_mask"] = torch.tensor([[1, 1, 1, 1, 0, 0]] * batch)
        negative["encoder_attention_mask"] = torch.tensor([[1] * (other - 1) + [0]] * batch)
    if name == "sdxl":
        call["added_cond_kwargs"] = {"text_embeds": random(batch, 16), "time_ids": torch.ones(batch, 6)}
    if name in ("sd3", "flux"):
        call["pooled_projections"] = random(batch, 32 if name == "sd3" else 16)
    if name == "flux":
        height, width = grid[0] // 2, grid[1] // 2
        ids = torch.zeros(height, width, 3)
        ids[..., 1], ids[..., 2] = torch.arange(height)[:, None], torch.arange(width)[None]
        call.update(hidden_states=random(batch, height * width, 16), img_ids=ids.flatten(0, 1))
        call.update(timestep=torch.full((batch,), 0.5), txt_ids=torch.zeros(tokens, 3))
        negative["txt_ids"] = torch.zeros(other, 3)
    if name in ("wan", "wan_i2v"):
        call[latents] = random(batch, 12 if name == "wan_i2v" else 4, 2, *grid)
    if name == "wan_i2v":
        call["encoder_hidden_states_image"] = random(batch, 5, 8)
    return Case(denoiser, call, negative, latents, "add_embedding" if name == "unet added keys" else "")


def _unet(options: dict[str, Any]) -> nn.Module:
    settings: dict[str, Any] = {
        "block_out_channels": (8, 16),
        "layers_per_block": 1,
        "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        "cross_attention_dim": 16,
        "attention_head_dim": 4,
        "norm_num_groups": 4,
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return UNet2DConditionModel(**{**settings, **options}).eval().requires_grad_(False)
