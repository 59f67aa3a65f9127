"""Tiny autoencoders."""

from collections.abc import Callable
from typing import Any

import diffusers
from diffusers.pipelines.stable_cascade.pipeline_stable_cascade import PaellaVQModel
from diffusers.pipelines.stable_diffusion.stable_unclip_image_normalizer import StableUnCLIPImageNormalizer

from tiny import pipelines as stock
from tiny.families import _flux2_vae

WAN = {
    "base_dim": 3,
    "z_dim": 4,
    "dim_mult": [1, 1, 1, 1],
    "num_res_blocks": 1,
    "temperal_downsample": [False, True, True],
    "latents_mean": [0.0] * 4,
    "latents_std": [1.0] * 4,
}
HUNYUAN = {
    "latent_channels": 4,
    "down_block_types": ("HunyuanVideoDownBlock3D",) * 4,
    "up_block_types": ("HunyuanVideoUpBlock3D",) * 4,
    "block_out_channels": (4, 4, 4, 4),
    "layers_per_block": 1,
    "norm_num_groups": 2,
    "mid_block_add_attention": False,
}
COGVIDEO = {
    "latent_channels": 4,
    "block_out_channels": (4, 4, 4, 4),
    "layers_per_block": 1,
    "norm_num_groups": 2,
    "temporal_compression_ratio": 4,
}
MAGVIT = {"latent_channels": 4, "block_out_channels": [4, 4, 4, 4], "layers_per_block": 1, "norm_num_groups": 2}
LTX = {
    "latent_channels": 4,
    "block_out_channels": (4, 4),
    "down_block_types": ("LTXVideoDownBlock3D",) * 2,
    "decoder_block_out_channels": (4, 4),
    "layers_per_block": (1, 1, 1),
    "decoder_layers_per_block": (1, 1, 1),
    "spatio_temporal_scaling": (True, True),
    "decoder_spatio_temporal_scaling": (True, True),
    "decoder_inject_noise": (False,) * 3,
    "downsample_type": ("conv", "conv"),
    "upsample_residual": (False, False),
    "upsample_factor": (1, 1),
    "patch_size": 1,
}
LTX2 = {
    "latent_channels": 4,
    "block_out_channels": (8, 8),
    "down_block_types": ("LTX2VideoDownBlock3D",) * 2,
    "decoder_block_out_channels": (8,),
    "layers_per_block": (1, 1, 1),
    "decoder_layers_per_block": (1, 1),
    "spatio_temporal_scaling": (True, True),
    "decoder_spatio_temporal_scaling": (True,),
    "decoder_inject_noise": (False, False),
    "downsample_type": ("spatial", "temporal"),
    "upsample_type": ("spatiotemporal",),
    "upsample_residual": (False,),
    "upsample_factor": (1,),
    "patch_size": 1,
}
DC = {
    "latent_channels": 4,
    "attention_head_dim": 2,
    "encoder_block_types": ("ResBlock", "EfficientViTBlock"),
    "decoder_block_types": ("ResBlock", "EfficientViTBlock"),
    "encoder_block_out_channels": (8, 8),
    "decoder_block_out_channels": (8, 8),
    "encoder_layers_per_block": (1, 1),
    "decoder_layers_per_block": (1, 1),
    "encoder_qkv_multiscales": ((), (5,)),
    "decoder_qkv_multiscales": ((), (5,)),
    "downsample_block_type": "Conv",
    "upsample_block_type": "interpolate",
}
HUNYUAN15 = {
    "latent_channels": 4,
    "block_out_channels": (8, 8, 8, 8, 8),
    "layers_per_block": 1,
}


def sana_vae() -> Any:
    return diffusers.AutoencoderKLLTX2Video(**LTX2, spatial_compression_ratio=2, temporal_compression_ratio=2)


def vq(channels: int = 4) -> Any:
    return diffusers.VQModel(
        block_out_channels=(4, 4),
        down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2,
        latent_channels=channels,
        norm_num_groups=2,
        num_vq_embeddings=8,
        vq_embed_dim=channels,
        mid_block_add_attention=False,
    )


CODECS: dict[str, Callable[[], Any]] = {
    "AutoencoderKL": lambda: stock._vae(shift_factor=0.0, scaling_factor=1.5),
    "AutoencoderKLWan": lambda: diffusers.AutoencoderKLWan(**WAN),
    "AutoencoderKLQwenImage": lambda: diffusers.AutoencoderKLQwenImage(**WAN),
    "AutoencoderKLFlux2": _flux2_vae,
    "AutoencoderKLCogVideoX": lambda: diffusers.AutoencoderKLCogVideoX(**COGVIDEO),
    "AutoencoderKLHunyuanVideo": lambda: diffusers.AutoencoderKLHunyuanVideo(**HUNYUAN),
    "AutoencoderKLHunyuanVideo15": lambda: diffusers.AutoencoderKLHunyuanVideo15(**HUNYUAN15),
    "AutoencoderKLHunyuanImageRefiner": lambda: diffusers.AutoencoderKLHunyuanImageRefiner(**HUNYUAN15),
    "AutoencoderKLHunyuanImage": lambda: diffusers.AutoencoderKLHunyuanImage(
        in_channels=3,
        out_channels=3,
        latent_channels=4,
        block_out_channels=(32, 32),
        layers_per_block=1,
        spatial_compression_ratio=2,
        sample_size=16,
        scaling_factor=1.0,
    ),
    "AutoencoderKLLTXVideo": lambda: diffusers.AutoencoderKLLTXVideo(**LTX),
    "AutoencoderKLLTX2Video": lambda: diffusers.AutoencoderKLLTX2Video(**LTX2),
    "AutoencoderKLLTX2Audio": lambda: diffusers.AutoencoderKLLTX2Audio(
        base_channels=8, ch_mult=(1,), num_res_blocks=1, resolution=32, latent_channels=2, mel_bins=16
    ),
    "AutoencoderKLMagvit": lambda: diffusers.AutoencoderKLMagvit(**MAGVIT),
    "AutoencoderKLMochi": lambda: None,
    "AutoencoderKLAllegro": lambda: None,
    "AutoencoderKLCosmos": lambda: diffusers.AutoencoderKLCosmos(
        latent_channels=4,
        encoder_block_out_channels=(8, 8, 8, 8),
        decode_block_out_channels=(8, 8, 8, 8),
        attention_resolutions=(8,),
        resolution=32,
        num_layers=1,
    ),
    "AutoencoderDC": lambda: diffusers.AutoencoderDC(**DC),
    "AutoencoderTiny": lambda: diffusers.AutoencoderTiny(
        encoder_block_out_channels=(4, 4),
        decoder_block_out_channels=(4, 4),
        num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1),
    ),
    "VQModel": vq,
    "PaellaVQModel": lambda: PaellaVQModel(
        levels=1, bottleneck_blocks=1, embed_dim=4, latent_channels=4, num_vq_embeddings=8
    ),
    "StableUnCLIPImageNormalizer": lambda: StableUnCLIPImageNormalizer(embedding_dim=16),
}
