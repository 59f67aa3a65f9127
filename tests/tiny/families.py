"""Tiny random stock pipelines of further families: real diffusers classes on the denoisers of `tiny.models`."""

import inspect
from collections.abc import Callable
from typing import Any

import diffusers
import torch
from diffusers import DiffusionPipeline
from PIL import Image
from torch import nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    Gemma2Config,
    Gemma2Model,
    LlamaConfig,
    LlamaModel,
    Qwen3Config,
    Qwen3Model,
    UMT5Config,
    UMT5EncoderModel,
)

from tiny import pipelines
from tiny.models import TINY
from tiny.tokenizers import clip_tokenizer, t5_tokenizer

FLOW = diffusers.FlowMatchEulerDiscreteScheduler
SIZES = {
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "head_dim": 8,
}
CLIP_SIZES = {
    "vocab_size": len(clip_tokenizer()),
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "bos_token_id": clip_tokenizer().bos_token_id,
    "eos_token_id": clip_tokenizer().eos_token_id,
    "pad_token_id": clip_tokenizer().pad_token_id,
}


def _denoiser(name: str, **options: Any) -> nn.Module:
    return getattr(diffusers, name)(**{**TINY[name].config, **options})


def _chat_tokenizer() -> Any:
    tokenizer = t5_tokenizer()
    tokenizer.chat_template = "{% for message in messages %}{{ message['content'] }}{% endfor %}"
    return tokenizer


def _decoder(model: type, config: type) -> nn.Module:
    return model(config(vocab_size=len(t5_tokenizer()), pad_token_id=0, **SIZES))


def _t5_pipeline(
    name: str, denoiser: str, scheduler: Any = FLOW, vae: Any = None, **options: Any
) -> DiffusionPipeline:
    return getattr(diffusers, name)(
        tokenizer=t5_tokenizer(),
        text_encoder=pipelines._t5(),
        vae=vae,
        transformer=_denoiser(denoiser, **options),
        scheduler=scheduler(),
    )


def _decoder_pipeline(
    name: str, denoiser: str, model: type = Qwen3Model, config: type = Qwen3Config, vae: Any = None, **options: Any
) -> DiffusionPipeline:
    return getattr(diffusers, name)(
        tokenizer=_chat_tokenizer(),
        text_encoder=_decoder(model, config),
        vae=vae,
        transformer=_denoiser(denoiser, **options),
        scheduler=FLOW(),
    )


def _flux2_vae() -> nn.Module:
    return diffusers.AutoencoderKLFlux2(
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        block_out_channels=(4, 4),
        latent_channels=4,
        norm_num_groups=2,
        sample_size=16,
    )


def _animatediff() -> DiffusionPipeline:
    unet = _denoiser("UNetMotionModel")
    channels = TINY["UNetMotionModel"].config["block_out_channels"]
    adapter = diffusers.MotionAdapter(
        block_out_channels=channels,
        motion_layers_per_block=1,
        motion_norm_num_groups=4,
        motion_num_attention_heads=2,
    )
    return diffusers.AnimateDiffPipeline(
        vae=pipelines._vae(),
        text_encoder=pipelines._clip(),
        tokenizer=clip_tokenizer(),
        unet=unet,
        motion_adapter=adapter,
        scheduler=diffusers.DDIMScheduler(clip_sample=False),
    )


def _auraflow() -> DiffusionPipeline:
    return diffusers.AuraFlowPipeline(
        tokenizer=t5_tokenizer(),
        text_encoder=pipelines._t5(UMT5Config, UMT5EncoderModel),
        vae=pipelines._vae(),
        transformer=_denoiser("AuraFlowTransformer2DModel"),
        scheduler=FLOW(),
    )


def _flux(name: str, channels: int = 16) -> DiffusionPipeline:
    stock = pipelines._flux()
    parts = dict(stock.components)
    if channels != 16:
        parts["transformer"] = type(stock.transformer).from_config(
            {**stock.transformer.config, "in_channels": channels}
        )
        parts["transformer"].proj_out = nn.Linear(32, 16)
    wanted = inspect.signature(getattr(diffusers, name).__init__).parameters
    return getattr(diffusers, name)(**{key: part for key, part in parts.items() if key in wanted})


def _wan_like(name: str, denoiser: str, **options: Any) -> DiffusionPipeline:
    return getattr(diffusers, name)(**pipelines._wan_parts(), transformer=_denoiser(denoiser, **options))


def _hunyuan_video() -> DiffusionPipeline:
    return diffusers.HunyuanVideoPipeline(
        text_encoder=_decoder(LlamaModel, LlamaConfig),
        tokenizer=t5_tokenizer(),
        text_encoder_2=CLIPTextModel(CLIPTextConfig(**CLIP_SIZES)),
        tokenizer_2=clip_tokenizer(77),
        vae=None,
        transformer=_denoiser("HunyuanVideoTransformer3DModel", pooled_projection_dim=16),
        scheduler=FLOW(),
    )


_STEPS: dict[str, Any] = {"num_inference_steps": 2, "output_type": "latent"}
_SMALL = {**_STEPS, "height": 16, "width": 16}
_VIDEO = {**_STEPS, "height": 64, "width": 64, "num_frames": 5}

FAMILY_PIPELINES: dict[str, tuple[Callable[[], DiffusionPipeline], dict[str, Any], dict[str, Any]]] = {
    # name: (builder, call without CFG, keywords that switch CFG on)
    "PixArt": (
        lambda: _t5_pipeline(
            "PixArtSigmaPipeline", "PixArtTransformer2DModel", diffusers.DDIMScheduler, pipelines._vae()
        ),
        {**_SMALL, "guidance_scale": 1.0, "use_resolution_binning": False, "max_sequence_length": 12},
        {"guidance_scale": 5.0},
    ),
    "Chroma": (
        lambda: _t5_pipeline("ChromaPipeline", "ChromaTransformer2DModel", vae=pipelines._vae()),
        {**_SMALL, "guidance_scale": 1.0, "max_sequence_length": 16},
        {"guidance_scale": 5.0},
    ),
    "LTX": (
        lambda: _t5_pipeline("LTXPipeline", "LTXVideoTransformer3DModel"),
        {**_STEPS, "height": 128, "width": 128, "num_frames": 9, "guidance_scale": 1.0, "max_sequence_length": 12},
        {"guidance_scale": 5.0},
    ),
    "CogVideoX": (
        lambda: _t5_pipeline(
            "CogVideoXPipeline",
            "CogVideoXTransformer3DModel",
            diffusers.CogVideoXDDIMScheduler,
            max_text_seq_length=12,
        ),
        {**_VIDEO, "guidance_scale": 1.0, "max_sequence_length": 12},
        {"guidance_scale": 5.0},
    ),
    "AuraFlow": (
        _auraflow,
        {**_SMALL, "guidance_scale": 1.0, "max_sequence_length": 12},
        {"guidance_scale": 5.0},
    ),
    "Mochi": (
        lambda: _t5_pipeline("MochiPipeline", "MochiTransformer3DModel"),
        {**_STEPS, "height": 64, "width": 64, "num_frames": 7, "guidance_scale": 1.0, "max_sequence_length": 12},
        {"guidance_scale": 5.0},
    ),
    "AnimateDiff": (
        _animatediff,
        {**_SMALL, "num_frames": 2, "guidance_scale": 1.0},
        {"guidance_scale": 5.0},
    ),
    "Z-Image": (
        lambda: _decoder_pipeline("ZImagePipeline", "ZImageTransformer2DModel", vae=pipelines._vae()),
        {**_STEPS, "height": 32, "width": 32, "guidance_scale": 0.0, "max_sequence_length": 40},
        {"guidance_scale": 3.0},
    ),
    "Lumina2": (
        lambda: _decoder_pipeline(
            "Lumina2Pipeline", "Lumina2Transformer2DModel", Gemma2Model, Gemma2Config, pipelines._vae()
        ),
        {**_SMALL, "guidance_scale": 1.0, "max_sequence_length": 40, "system_prompt": "a"},
        {"guidance_scale": 4.0},
    ),
    "Qwen-Image": (
        lambda: _decoder_pipeline("QwenImagePipeline", "QwenImageTransformer2DModel"),
        {**_SMALL, "height": 32, "width": 32},
        {"true_cfg_scale": 4.0},
    ),
    "HunyuanVideo": (
        _hunyuan_video,
        {
            **_VIDEO,
            "max_sequence_length": 12,
            "prompt_template": {"template": "{}", "crop_start": 0},
        },
        {"true_cfg_scale": 4.0},
    ),
    "Sana": (
        lambda: _decoder_pipeline("SanaPipeline", "SanaTransformer2DModel", Gemma2Model, Gemma2Config),
        {
            **_STEPS,
            "height": 256,
            "width": 256,
            "guidance_scale": 1.0,
            "max_sequence_length": 12,
            "use_resolution_binning": False,
            "complex_human_instruction": None,
        },
        {"guidance_scale": 5.0},
    ),
    "FLUX.2 klein": (
        lambda: _decoder_pipeline(
            "Flux2KleinPipeline", "Flux2Transformer2DModel", vae=_flux2_vae(), joint_attention_dim=48
        ),
        {
            **_SMALL,
            "height": 32,
            "width": 32,
            "guidance_scale": 1.0,
            "max_sequence_length": 24,
            "text_encoder_out_layers": (1, 2, 3),
        },
        {"guidance_scale": 4.0},
    ),
}


_PHOTO = Image.new("RGB", (16, 16), (200, 30, 90))
FAMILY_PIPELINES |= {
    "FLUX.1 Kontext": (
        lambda: _flux("FluxKontextPipeline"),
        {**_SMALL, "image": _PHOTO, "max_sequence_length": 12, "max_area": 256, "_auto_resize": False},
        {"true_cfg_scale": 3.0, "negative_prompt": "low quality"},
    ),
    "FLUX.1 Fill": (
        lambda: _flux("FluxFillPipeline", 16 + 16 + 16),
        {**_SMALL, "image": _PHOTO, "mask_image": _PHOTO.convert("L"), "max_sequence_length": 12},
        {},
    ),
    "FLUX.1 Control": (
        lambda: _flux("FluxControlPipeline", 32),
        {**_SMALL, "control_image": _PHOTO, "max_sequence_length": 12},
        {},
    ),
    "FLUX.1 img2img": (
        lambda: _flux("FluxImg2ImgPipeline"),
        {**_SMALL, "image": _PHOTO, "strength": 1.0, "max_sequence_length": 12},
        {"true_cfg_scale": 3.0, "negative_prompt": "low quality"},
    ),
    "CogView4": (
        lambda: _decoder_pipeline("CogView4Pipeline", "CogView4Transformer2DModel", vae=pipelines._vae()),
        {**_SMALL, "guidance_scale": 1.0, "max_sequence_length": 24},
        {"guidance_scale": 5.0},
    ),
    "Latte": (
        lambda: _t5_pipeline("LattePipeline", "LatteTransformer3DModel", diffusers.DDIMScheduler, pipelines._vae()),
        {**_SMALL, "video_length": 2, "guidance_scale": 1.0, "mask_feature": False, "clean_caption": False},
        {"guidance_scale": 5.0},
    ),
    "SkyReels V2": (
        lambda: _wan_like("SkyReelsV2Pipeline", "SkyReelsV2Transformer3DModel"),
        {**_SMALL, "num_frames": 5, "guidance_scale": 1.0, "max_sequence_length": 16},
        {"guidance_scale": 5.0},
    ),
    "Wan VACE": (
        lambda: _wan_like("WanVACEPipeline", "WanVACETransformer3DModel", vace_in_channels=4 + 4 + 64),
        {**_SMALL, "num_frames": 5, "guidance_scale": 1.0, "max_sequence_length": 16},
        {"guidance_scale": 5.0},
    ),
}


def build_family(name: str) -> DiffusionPipeline:
    """A tiny pipeline of `FAMILY_PIPELINES`, made like those of `tiny.build`."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        pipe = FAMILY_PIPELINES[name][0]()
        for component in pipe.components.values():
            if isinstance(component, nn.Module):
                component.eval().requires_grad_(False)
                for parameter in component.parameters():
                    parameter.add_(0.05 * torch.randn_like(parameter))
    pipe.set_progress_bar_config(disable=True)
    return pipe
