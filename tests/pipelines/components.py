"""Tiny random components, by the class that a pipeline's constructor asks for."""

from collections.abc import Callable
from typing import Any

import diffusers
import transformers
from diffusers import FlowMatchEulerDiscreteScheduler
from diffusers.pipelines.ltx2.connectors import LTX2TextConnectors
from diffusers.pipelines.ltx2.vocoder import LTX2Vocoder
from torch import nn

from pipelines.autoencoders import CODECS
from pipelines.controls import WIDTH, XL_TEXT, controlnet
from pipelines.text import (
    bert,
    bert_tokenizer,
    chat_tokenizer,
    chatglm,
    chatglm_tokenizer,
    language_model,
    ldm_bert,
    multilingual_clip,
    processor,
)
from pipelines.vision import clip_images, clip_vision, depth_estimator, siglip_images, siglip_vision
from tiny import pipelines as stock
from tiny.models import TINY
from tiny.tokenizers import clip_tokenizer, t5_tokenizer

FLOW = FlowMatchEulerDiscreteScheduler


def denoiser(name: str, **options: Any) -> nn.Module:
    """A denoiser of the tiny configurations, with some settings changed."""
    return getattr(diffusers, TINY[name].cls or name)(**{**TINY[name].config, **options})


def unet(**options: Any) -> nn.Module:
    return stock._unet(**options)


def unet_xl(**options: Any) -> nn.Module:
    return unet(**{**XL_TEXT, **options})


def _ddim() -> Any:
    return diffusers.DDIMScheduler(clip_sample=False, set_alpha_to_one=False, steps_offset=1)


class NoChecker:
    """In the place of a safety checker that cannot be installed here."""

    def to(self, device: Any) -> "NoChecker":
        return self

    def check_text_safety(self, text: str) -> bool:
        return True

    def check_video_safety(self, video: Any) -> Any:
        return video


def deep_vae() -> nn.Module:
    """For pipelines that count on a factor of eight."""
    return diffusers.AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        block_out_channels=(4,) * 4,
        latent_channels=4,
        norm_num_groups=2,
    )


def clip_long() -> nn.Module:
    """CLIP for texts of 77 tokens, where a pipeline asks for as many."""
    config = stock._clip().config
    config.max_position_embeddings = 77
    return transformers.CLIPTextModel(config)


LONG_CLIP: dict[str, Callable[[], Any]] = {"text_encoder_2": clip_long, "tokenizer_2": lambda: clip_tokenizer(77)}


def wan(name: str = "WanTransformer3DModel", **options: Any) -> nn.Module:
    return denoiser(name, **options)


def glm_parts() -> dict[str, Callable[[], Any]]:
    return {"processor": processor, "vision_language_encoder": language_model}


def ltx2_parts() -> dict[str, Callable[[], Any]]:
    def connectors() -> nn.Module:
        sizes = {"connector_num_attention_heads": 2, "connector_attention_head_dim": 8, "connector_num_layers": 1}
        sizes = {f"{kind}_{key}": value for kind in ("video", "audio") for key, value in sizes.items()}
        registers = {f"{kind}_connector_num_learnable_registers": None for kind in ("video", "audio")}
        return LTX2TextConnectors(
            caption_channels=WIDTH, text_proj_in_factor=4, **sizes, **registers, rope_double_precision=False
        )

    return {
        "connectors": connectors,
        "vocoder": lambda: LTX2Vocoder(
            in_channels=32,
            hidden_channels=32,
            upsample_kernel_sizes=[4],
            upsample_factors=[2],
            resnet_kernel_sizes=[3],
            resnet_dilations=[[1]],
        ),
    }


MAKERS: dict[str, Callable[[], Any]] = {
    **CODECS,
    # text encoders and tokenizers
    "CLIPTextModel": stock._clip,
    "CLIPTextModelWithProjection": lambda: stock._clip(projection=True),
    "CLIPTokenizer": clip_tokenizer,
    "T5EncoderModel": stock._t5,
    "UMT5EncoderModel": lambda: stock._t5(transformers.UMT5Config, transformers.UMT5EncoderModel),
    "T5Tokenizer": t5_tokenizer,
    "T5TokenizerFast": t5_tokenizer,
    "ByT5Tokenizer": t5_tokenizer,
    "BertModel": bert,
    "BertTokenizer": bert_tokenizer,
    "ChatGLMModel": chatglm,
    "ChatGLMTokenizer": chatglm_tokenizer,
    "MultilingualCLIP": multilingual_clip,
    "XLMRobertaTokenizer": t5_tokenizer,
    "LDMBertModel": ldm_bert,
    **dict.fromkeys(
        ("AutoTokenizer", "Qwen2Tokenizer", "GemmaTokenizer", "LlamaTokenizer", "TokenizersBackend")
        + ("PreTrainedTokenizerBase", "AutoProcessor"),
        chat_tokenizer,
    ),
    **dict.fromkeys(
        ("Qwen3Model", "Qwen3ForCausalLM", "Qwen3VLModel", "Qwen3VLForConditionalGeneration", "Qwen2_5_VLTextModel")
        + ("Qwen2_5_VLForConditionalGeneration", "Qwen2VLForConditionalGeneration", "Mistral3Model", "GlmModel")
        + ("Mistral3ForConditionalGeneration", "SmolLM3ForCausalLM", "LlamaModel", "LlamaForCausalLM")
        + ("LlavaForConditionalGeneration", "GemmaPreTrainedModel", "Gemma2PreTrainedModel", "PreTrainedModel")
        + ("Gemma3ForConditionalGeneration", "T5GemmaEncoder", "T5Gemma2Encoder"),
        language_model,
    ),
    **dict.fromkeys(("Qwen2VLProcessor", "Qwen2_5_VLProcessor", "Qwen3VLProcessor"), processor),
    # pictures as conditions
    "CLIPVisionModel": clip_vision,
    "CLIPVisionModelWithProjection": lambda: clip_vision(projection=True),
    "CLIPImageProcessorPil": clip_images,
    "CLIPProcessor": clip_images,
    "SiglipVisionModel": siglip_vision,
    "SiglipImageProcessorPil": siglip_images,
    "DPTForDepthEstimation": depth_estimator,
    # control and adapters
    "ControlNetModel": controlnet,
    "T2IAdapter": lambda: diffusers.T2IAdapter(channels=[8, 16], num_res_blocks=1, downscale_factor=2),
    "MotionAdapter": lambda: diffusers.MotionAdapter(
        block_out_channels=(8, 16),
        motion_layers_per_block=1,
        motion_norm_num_groups=4,
        motion_num_attention_heads=2,
    ),
    # denoisers
    "UNet2DConditionModel": unet,
    # schedulers
    "KarrasDiffusionSchedulers": _ddim,
    "DDIMScheduler": _ddim,
    "FlowMatchEulerDiscreteScheduler": FLOW,
    "SchedulerMixin": FLOW,
    "ClassifierFreeGuidance": lambda: diffusers.ClassifierFreeGuidance(guidance_scale=1.0),
    "BaseGuidance": lambda: diffusers.ClassifierFreeGuidance(guidance_scale=1.0),
    "AdaptiveProjectedMixGuidance": lambda: None,
    "PythonBackend": t5_tokenizer,
    "PriorTransformer": lambda: diffusers.PriorTransformer(
        num_attention_heads=2, attention_head_dim=8, num_layers=1, embedding_dim=WIDTH, num_embeddings=24
    ),
}
SCHEDULERS = (
    "FlowMatchEulerDiscreteScheduler KarrasDiffusionSchedulers CogVideoXDDIMScheduler DDIMScheduler LCMScheduler "
    "CogVideoXDPMScheduler EDMEulerScheduler UniPCMultistepScheduler FlowMapEulerDiscreteScheduler HeliosScheduler "
    "EulerDiscreteScheduler DDPMScheduler DDPMWuerstchenScheduler PNDMScheduler UnCLIPScheduler DDIMParallelScheduler "
    "SCMScheduler DPMSolverMultistepScheduler LTXEulerAncestralRFScheduler UnCLIPScheduler"
).split()
