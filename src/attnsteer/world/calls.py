"""How the embedded models' stock pipelines are called: what differs between Stable Diffusion's, FLUX's and Wan's."""

from __future__ import annotations

from typing import Any

from diffusers import WanTransformer3DModel
from torch import nn

from attnsteer.world.blocks import SCALE
from attnsteer.world.clips import FRAMES, SIDE
from attnsteer.world.text import MAX_TOKENS


def denoiser_of(pipe: Any) -> nn.Module:
    """The U-Net or the transformer of a pipeline of the shapes world."""
    denoiser: nn.Module = pipe.components.get("unet") or pipe.transformer
    return denoiser


def draws_clips(pipe: Any) -> bool:
    """Whether a pipeline of the shapes world draws clips, not pictures."""
    return isinstance(denoiser_of(pipe), WanTransformer3DModel)


def side_of(pipe: Any) -> int:
    """Side in pixels of the pictures or clips that a pipeline of the shapes world was trained for.

    Wan's autoencoder does not keep it; all clips of the world have one size.
    """
    return SCALE * SIDE if draws_clips(pipe) else int(pipe.vae.config.sample_size)


def text_keywords(pipe: Any) -> dict[str, Any]:
    """Keywords that keep the text at the length the model was trained with; a U-Net's pipeline needs none."""
    return {} if "unet" in pipe.components else {"max_sequence_length": MAX_TOKENS}


def call_keywords(
    pipe: Any, count: int, steps: int, guidance_scale: float, negative_prompt: str | None = None
) -> dict[str, Any]:
    """Keywords of one call of `pipe` for `count` prompts, in the words of its class; the prompts are not among them.

    Args:
        pipe: A StableDiffusionPipeline, FluxPipeline or WanPipeline of the shapes world.
        count: Prompts, one picture or clip each.
        steps: Denoising steps, >= 1.
        guidance_scale: Of classifier-free guidance; 1 turns it off. FLUX's pipeline calls it `true_cfg_scale`.
        negative_prompt: CFG's, the same for all; None is the empty text.
    """
    keywords: dict[str, Any] = {"num_inference_steps": steps, **text_keywords(pipe)}
    if "unet" not in pipe.components:
        keywords |= {"height": side_of(pipe), "width": side_of(pipe)}
    if draws_clips(pipe):
        keywords["num_frames"] = FRAMES
    if "unet" in pipe.components or draws_clips(pipe):
        keywords["guidance_scale"] = guidance_scale
        if negative_prompt is not None:  # stock pipelines want a list beside a list
            keywords["negative_prompt"] = [negative_prompt] * count
    elif guidance_scale > 1:
        keywords |= {"true_cfg_scale": guidance_scale, "negative_prompt": [negative_prompt or ""] * count}
    return keywords
