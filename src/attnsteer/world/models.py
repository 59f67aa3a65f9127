"""The embedded text-to-image models: how they are built, and where they lie in the package."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from diffusers import StableDiffusionPipeline, UNet2DConditionModel

WEIGHTS = Path(__file__).parent / "weights"
DEFAULT_MODEL = "shapes-unet"


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


@dataclass(frozen=True)
class UNetSize:
    """Sizes of the embedded U-Net. Attention to the text happens at one half and one quarter of the resolution."""

    picture: int = 24
    channels: tuple[int, ...] = (32, 64, 112)
    heads: int = 4


def build_unet(size: UNetSize, text_width: int) -> UNet2DConditionModel:
    """A small random UNet2DConditionModel that works on pixels and reads text of `text_width` channels."""
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        sample_size=size.picture, in_channels=3, out_channels=3, block_out_channels=size.channels,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
        layers_per_block=(0, 1, 1), attention_head_dim=size.heads, cross_attention_dim=text_width,
        norm_num_groups=8,
    )  # fmt: skip


def assemble_pipeline(unet, tokenizer, text_encoder) -> StableDiffusionPipeline:  # type: ignore[no-untyped-def]
    """A stock StableDiffusionPipeline around a trained U-Net: DDIM, x_0 prediction, zero terminal SNR.

    Thresholding at 1 keeps the predicted pixels in range (StableDiffusionPipeline insists on `clip_sample=False`).
    """
    from diffusers import DDIMScheduler, StableDiffusionPipeline

    from attnsteer.world.autoencoder import pixel_autoencoder

    scheduler = DDIMScheduler(
        beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012, prediction_type="sample",
        timestep_spacing="trailing", rescale_betas_zero_snr=True, clip_sample=False, thresholding=True,
        sample_max_value=1.0, steps_offset=1,
    )  # fmt: skip
    return StableDiffusionPipeline(
        vae=pixel_autoencoder(unet.config.sample_size), text_encoder=text_encoder, tokenizer=tokenizer, unet=unet,
        scheduler=scheduler, safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip
