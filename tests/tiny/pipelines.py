"""Builders of tiny random pipelines."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import torch
from diffusers import (
    AutoencoderKL,
    AutoencoderKLWan,
    DDIMScheduler,
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
    WanImageToVideoPipeline,
    WanPipeline,
    WanTransformer3DModel,
)
from diffusers.pipelines.wan import pipeline_wan_i2v
from PIL import Image
from torch import nn
from transformers import (
    CLIPImageProcessorPil,
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPVisionConfig,
    CLIPVisionModel,
    T5Config,
    T5EncoderModel,
    UMT5Config,
    UMT5EncoderModel,
)

from tiny.tokenizers import clip_tokenizer, t5_tokenizer

SIZE = 16


def _clip(projection: bool = False) -> nn.Module:
    tokenizer = clip_tokenizer()
    config = CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=24,
        projection_dim=16,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    return (CLIPTextModelWithProjection if projection else CLIPTextModel)(config)


def _t5(config: type = T5Config, model: type = T5EncoderModel, width: int = 16) -> nn.Module:
    sizes = {"d_model": width, "d_kv": 8, "d_ff": 16, "num_layers": 2, "num_heads": 2}
    return model(config(vocab_size=len(t5_tokenizer()), **sizes))


def _vae(channels: int = 4, **options: Any) -> nn.Module:
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(4, 4),
        latent_channels=channels,
        norm_num_groups=2,
        sample_size=SIZE,
        **options,
    )


def _unet(**options: Any) -> nn.Module:
    settings: dict[str, Any] = {
        "sample_size": SIZE // 2,
        "block_out_channels": (8, 16),
        "layers_per_block": 1,
        "down_block_types": ("CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
        "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        "cross_attention_dim": 16,
        "attention_head_dim": 4,
        "norm_num_groups": 4,
    }
    return UNet2DConditionModel(**{**settings, **options})


def _sd() -> DiffusionPipeline:
    return StableDiffusionPipeline(
        vae=_vae(),
        text_encoder=_clip(),
        tokenizer=clip_tokenizer(),
        unet=_unet(),
        scheduler=DDIMScheduler(clip_sample=False, set_alpha_to_one=False, steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def _sdxl() -> DiffusionPipeline:
    return StableDiffusionXLPipeline(
        vae=_vae(),
        text_encoder=_clip(),
        tokenizer=clip_tokenizer(),
        text_encoder_2=_clip(projection=True),
        tokenizer_2=clip_tokenizer(),
        unet=_unet(
            cross_attention_dim=32,
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=16 + 6 * 8,
            use_linear_projection=True,
        ),
        scheduler=DDIMScheduler(clip_sample=False, set_alpha_to_one=False, steps_offset=1),
        add_watermarker=False,
    )


def _sd3() -> DiffusionPipeline:
    return StableDiffusion3Pipeline(
        vae=_vae(shift_factor=0.0, scaling_factor=1.5),
        text_encoder=_clip(projection=True),
        tokenizer=clip_tokenizer(),
        text_encoder_2=_clip(projection=True),
        tokenizer_2=clip_tokenizer(),
        text_encoder_3=_t5(width=32),
        tokenizer_3=t5_tokenizer(),
        transformer=SD3Transformer2DModel(
            sample_size=SIZE // 2,
            patch_size=2,
            in_channels=4,
            out_channels=4,
            num_layers=3,
            attention_head_dim=8,
            num_attention_heads=2,
            joint_attention_dim=32,
            caption_projection_dim=16,
            pooled_projection_dim=32,
            pos_embed_max_size=16,
            dual_attention_layers=(0,),
            qk_norm="rms_norm",
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(),
    )


def _flux() -> DiffusionPipeline:
    return FluxPipeline(
        vae=_vae(shift_factor=0.0, scaling_factor=1.5),
        text_encoder=_clip(),
        tokenizer=clip_tokenizer(),
        text_encoder_2=_t5(),
        tokenizer_2=t5_tokenizer(),
        transformer=FluxTransformer2DModel(
            patch_size=1,
            in_channels=16,
            num_layers=1,
            num_single_layers=2,
            attention_head_dim=16,
            num_attention_heads=2,
            joint_attention_dim=16,
            pooled_projection_dim=16,
            axes_dims_rope=(4, 4, 8),
            guidance_embeds=False,
        ),
        scheduler=FlowMatchEulerDiscreteScheduler(),
    )


def _wan_transformer(**options: Any) -> nn.Module:
    settings: dict[str, Any] = {
        "patch_size": (1, 2, 2),
        "num_attention_heads": 2,
        "attention_head_dim": 12,
        "in_channels": 4,
        "out_channels": 4,
        "text_dim": 16,
        "freq_dim": 16,
        "ffn_dim": 32,
        "num_layers": 2,
        "rope_max_seq_len": 32,
    }
    return WanTransformer3DModel(**{**settings, **options})


def _wan_parts() -> dict[str, Any]:
    return {
        "tokenizer": t5_tokenizer(),
        "text_encoder": _t5(UMT5Config, UMT5EncoderModel),
        "vae": AutoencoderKLWan(
            base_dim=3,
            z_dim=4,
            dim_mult=[1, 1, 1, 1],
            num_res_blocks=1,
            temperal_downsample=[False, True, True],
            latents_mean=[0.0] * 4,
            latents_std=[1.0] * 4,
        ),
        "scheduler": FlowMatchEulerDiscreteScheduler(shift=3.0),
    }


def _wan() -> DiffusionPipeline:
    return WanPipeline(**_wan_parts(), transformer=_wan_transformer())


def _wan_two_experts() -> DiffusionPipeline:
    experts = {"transformer": _wan_transformer(), "transformer_2": _wan_transformer()}
    return WanPipeline(**_wan_parts(), **experts, boundary_ratio=0.7)


def _wan_i2v() -> DiffusionPipeline:
    if not hasattr(
        pipeline_wan_i2v, "ftfy"
    ):  # the stock pipeline needs ftfy to repair mojibake; our prompts have none
        pipeline_wan_i2v.ftfy = SimpleNamespace(fix_text=lambda text: text)
    transformer = _wan_transformer(in_channels=4 + 4 + 4, image_dim=8, added_kv_proj_dim=24)
    vision = CLIPVisionConfig(
        hidden_size=8, intermediate_size=8, num_hidden_layers=2, num_attention_heads=2, image_size=SIZE, patch_size=8
    )
    sizes = {"size": {"shortest_edge": SIZE}, "crop_size": {"height": SIZE, "width": SIZE}}
    return WanImageToVideoPipeline(
        **_wan_parts(),
        transformer=transformer,
        image_encoder=CLIPVisionModel(vision),
        image_processor=CLIPImageProcessorPil(**sizes),
    )


_BUILDERS: dict[str, Callable[[], DiffusionPipeline]] = {
    "sd": _sd,
    "sdxl": _sdxl,
    "sd3": _sd3,
    "flux": _flux,
    "wan": _wan,
    "wan_two_experts": _wan_two_experts,
    "wan_i2v": _wan_i2v,
}
NAMES = tuple(_BUILDERS)

_PICTURE: dict[str, Any] = {"height": SIZE, "width": SIZE, "num_inference_steps": 2, "output_type": "latent"}
_VIDEO: dict[str, Any] = {**_PICTURE, "num_frames": 5}
CALLS: dict[str, dict[str, Any]] = {
    "sd": _PICTURE,
    "sdxl": _PICTURE,
    "sd3": {**_PICTURE, "max_sequence_length": 12},
    "flux": {**_PICTURE, "max_sequence_length": 12},
    "wan": {**_VIDEO, "max_sequence_length": 16},
    "wan_two_experts": {**_VIDEO, "max_sequence_length": 16},
    "wan_i2v": {
        **_VIDEO,
        "image": Image.new("RGB", (SIZE, SIZE), (200, 30, 90)),
        "max_sequence_length": 512,  # the stock model splits text from image context at 512
    },
}


def build(name: str, seed: int = 0) -> DiffusionPipeline:
    """A tiny pipeline with random weights (no layer left at zero), in eval mode, progress bar off."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        pipe = _BUILDERS[name]()
        for component in pipe.components.values():
            if isinstance(component, nn.Module):
                component.eval().requires_grad_(False)
                for parameter in component.parameters():
                    parameter.add_(0.05 * torch.randn_like(parameter))
    pipe.set_progress_bar_config(disable=True)
    return pipe
