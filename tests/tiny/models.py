"""Tiny configurations and calls of denoiser classes, as data: one entry for each row of `attnsteer.families`."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

Random = Callable[..., Tensor]


@dataclass(frozen=True)
class Tiny:
    """A denoiser class at its smallest.

    `call` gives the keywords without text for a batch, `text` those that hold a text of so many tokens. `pooling`
    names modules that turn text into modulation. `image` bounds the image tokens in attention where others look the
    same for both texts. `batch` is the largest batch of the class; `lengths` the token numbers of the two texts.
    `shifts`: the image's positions depend on the length of the text, so one picture cannot have two lengths.
    """

    config: Mapping[str, Any]
    call: Callable[[Random, int], dict[str, Any]]
    text: Callable[[Random, int, int], dict[str, Any]]
    cls: str = ""
    pooling: tuple[str, ...] = ()
    image: slice | None = None
    batch: int = 2
    lengths: tuple[int, int] = (6, 4)
    shifts: bool = False


def steps(batch: int) -> Tensor:
    return torch.full((batch,), 500.0)


def fractions(batch: int) -> Tensor:
    return torch.full((batch,), 0.5)


def tokens(width: int = 16) -> Callable[[Random, int, int], dict[str, Any]]:
    return lambda r, b, n: {"encoder_hidden_states": r(b, n, width)}


def with_ids(width: int = 16, axes: int = 3, counted: bool = False) -> Callable[[Random, int, int], dict[str, Any]]:
    def text(r: Random, b: int, n: int) -> dict[str, Any]:
        ids = torch.zeros(n, axes)
        if counted:
            ids[:, -1] = torch.arange(n)
        return {"encoder_hidden_states": r(b, n, width), "txt_ids": ids}

    return text


def with_mask(name: str = "encoder_attention_mask", width: int = 16) -> Callable[[Random, int, int], dict[str, Any]]:
    def text(r: Random, b: int, n: int) -> dict[str, Any]:
        mask = torch.ones(b, n, dtype=torch.long)
        mask[-1, n - 1 :] = 0
        return {"encoder_hidden_states": r(b, n, width), name: mask}

    return text


def picture_ids(axes: int = 3, size: int = 4) -> Tensor:
    ids = torch.zeros(size, size, axes)
    ids[..., 1], ids[..., 2] = torch.arange(size)[:, None], torch.arange(size)[None]
    return ids.flatten(0, 1)


def latents(*shape: int, **more: Any) -> Callable[[Random, int], dict[str, Any]]:
    return lambda r, b: {"hidden_states": r(b, *shape), "timestep": steps(b), **more}


def flux_call(
    axes: int = 3, channels: int = 16, **more: Callable[[Random, int], Any]
) -> Callable[..., dict[str, Any]]:
    return lambda r, b: {
        "hidden_states": r(b, 16, channels),
        "timestep": fractions(b),
        "img_ids": picture_ids(axes),
        **{name: make(r, b) for name, make in more.items()},
    }


def padded_square(batch: int, text: int, total: int) -> Tensor:
    """Additive mask of queries and keys: nobody reads the text's last token."""
    mask = torch.zeros(batch, 1, total, total)
    mask[..., text - 1] = -torch.inf
    return mask


def causal_text(batch: int, text: int, total: int) -> Tensor:
    """Text reads earlier text only; the others read everything."""
    mask = torch.ones(batch, total, total)
    mask[:, :text, text:] = 0
    mask[:, :text, :text] = mask[:, :text, :text].tril()
    return mask


HEADS = {"num_attention_heads": 2, "attention_head_dim": 12}
FLUX = {
    "in_channels": 16,
    "num_layers": 1,
    "num_single_layers": 2,
    "attention_head_dim": 16,
    "num_attention_heads": 2,
    "joint_attention_dim": 16,
    "axes_dims_rope": (4, 4, 8),
}
WAN = {
    **HEADS,
    "in_channels": 4,
    "out_channels": 4,
    "text_dim": 16,
    "freq_dim": 16,
    "ffn_dim": 32,
    "num_layers": 2,
    "rope_max_seq_len": 32,
}
HUNYUAN = {
    "in_channels": 4,
    "out_channels": 4,
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "num_layers": 1,
    "num_single_layers": 2,
    "num_refiner_layers": 1,
    "text_embed_dim": 16,
    "rope_axes_dim": (4, 6, 6),
}
VIDEO = latents(4, 2, 8, 8)

UNETS: dict[str, Tiny] = {
    "UNet3DConditionModel": Tiny(
        {
            "block_out_channels": (4, 8),
            "norm_num_groups": 2,
            "down_block_types": ("CrossAttnDownBlock3D", "DownBlock3D"),
            "up_block_types": ("UpBlock3D", "CrossAttnUpBlock3D"),
            "cross_attention_dim": 16,
            "attention_head_dim": 4,
            "layers_per_block": 1,
        },
        lambda r, b: {"sample": r(b, 4, 2, 8, 8), "timestep": steps(b)},
        tokens(),
    ),
    "UNetMotionModel": Tiny(
        {
            "block_out_channels": (8, 16),
            "norm_num_groups": 4,
            "down_block_types": ("CrossAttnDownBlockMotion", "DownBlockMotion"),
            "up_block_types": ("UpBlockMotion", "CrossAttnUpBlockMotion"),
            "cross_attention_dim": 16,
            "num_attention_heads": 2,
            "motion_num_attention_heads": 2,
            "layers_per_block": 1,
        },
        lambda r, b: {"sample": r(b, 4, 2, 8, 8), "timestep": steps(b)},
        lambda r, b, n: {"encoder_hidden_states": r(b, n, 16).repeat_interleave(2, dim=0)},
    ),
    "UNetControlNetXSModel": Tiny(
        {
            "sample_size": 8,
            "block_out_channels": (8, 16),
            "norm_num_groups": 4,
            "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
            "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
            "cross_attention_dim": 16,
            "num_attention_heads": 2,
            "ctrl_block_out_channels": (4, 8),
            "ctrl_num_attention_heads": 2,
            "ctrl_max_norm_num_groups": 2,
            "ctrl_conditioning_embedding_out_channels": (4, 4),
        },
        lambda r, b: {"sample": r(b, 4, 8, 8), "timestep": steps(b), "controlnet_cond": r(b, 3, 16, 16)},
        tokens(),
    ),
    "Kandinsky3UNet": Tiny(
        {
            "time_embedding_dim": 16,
            "groups": 2,
            "attention_head_dim": 4,
            "layers_per_block": 3,
            "block_out_channels": (8, 16),
            "cross_attention_dim": 16,
            "encoder_hid_dim": 16,
        },
        lambda r, b: {"sample": r(b, 4, 8, 8), "timestep": steps(b)},
        lambda r, b, n: {"encoder_hidden_states": r(b, n, 16), "encoder_attention_mask": torch.ones(b, n)},
        pooling=("add_time_condition",),
    ),
    "DreamLiteUNetModel": Tiny(
        {
            "block_out_channels": (16, 16, 32),
            "cross_attention_dim": 16,
            "attention_head_dim": 8,
            "layers_per_block": 1,
            "norm_num_groups": 4,
            "num_kv_heads": 1,
            "ff_mult": 1,
        },
        lambda r, b: {"sample": r(b, 4, 8, 8), "timestep": steps(b)},
        tokens(),
    ),
    "StableCascadeUNet": Tiny(
        {
            "in_channels": 4,
            "out_channels": 4,
            "conditioning_dim": 16,
            "block_out_channels": (16, 16),
            "num_attention_heads": (2, 2),
            "down_num_layers_per_block": (1, 1),
            "up_num_layers_per_block": (1, 1),
            "down_blocks_repeat_mappers": (1, 1),
            "up_blocks_repeat_mappers": (1, 1),
            "clip_text_in_channels": 16,
            "clip_text_pooled_in_channels": 16,
            "clip_image_in_channels": 16,
            "timestep_ratio_embedding_dim": 8,
            "switch_level": (False,),
        },
        lambda r, b: {"sample": r(b, 4, 8, 8), "timestep_ratio": fractions(b), "clip_img": r(b, 1, 16)},
        lambda r, b, n: {"clip_text": r(b, n, 16), "clip_text_pooled": r(b, 1, 16)},
    ),
}

CROSS: dict[str, Tiny] = {
    "PixArtTransformer2DModel": Tiny(
        {**HEADS, "num_layers": 2, "cross_attention_dim": 24, "caption_channels": 16, "sample_size": 8},
        latents(4, 8, 8, added_cond_kwargs={"resolution": None, "aspect_ratio": None}),
        with_mask(),
    ),
    "SanaTransformer2DModel": Tiny(
        {
            **HEADS,
            "in_channels": 4,
            "out_channels": 4,
            "num_layers": 2,
            "num_cross_attention_heads": 2,
            "cross_attention_head_dim": 12,
            "cross_attention_dim": 24,
            "caption_channels": 16,
            "sample_size": 8,
        },
        latents(4, 8, 8),
        with_mask(),
    ),
    "SanaVideoTransformer3DModel": Tiny(
        {
            **HEADS,
            "in_channels": 4,
            "out_channels": 4,
            "num_layers": 2,
            "num_cross_attention_heads": 2,
            "cross_attention_head_dim": 12,
            "cross_attention_dim": 24,
            "caption_channels": 16,
            "sample_size": 8,
            "rope_max_seq_len": 32,
        },
        VIDEO,
        with_mask(),
    ),
    "LatteTransformer3DModel": Tiny(
        {
            **HEADS,
            "in_channels": 4,
            "out_channels": 8,
            "num_layers": 2,
            "patch_size": 2,
            "cross_attention_dim": 24,
            "caption_channels": 16,
            "sample_size": 8,
            "video_length": 2,
            "norm_type": "ada_norm_single",
            "attention_bias": True,
            "norm_elementwise_affine": False,
        },
        VIDEO,
        tokens(),
    ),
    "AllegroTransformer3DModel": Tiny(
        {
            **HEADS,
            "num_layers": 2,
            "cross_attention_dim": 24,
            "caption_channels": 16,
            "sample_width": 8,
            "sample_height": 8,
            "sample_frames": 2,
        },
        lambda r, b: {
            "hidden_states": r(b, 4, 2, 8, 8),
            "timestep": steps(b),
            "image_rotary_emb": (
                [(torch.ones(4, 4), torch.zeros(4, 4))] * 3,
                [torch.zeros(1, 32, dtype=torch.long)] * 3,
            ),
        },
        with_mask(),
    ),
    "CosmosTransformer3DModel": Tiny(
        {
            **HEADS,
            "in_channels": 4,
            "out_channels": 4,
            "num_layers": 2,
            "mlp_ratio": 1.0,
            "text_embed_dim": 16,
            "adaln_lora_dim": 4,
            "max_size": (4, 16, 16),
            "concat_padding_mask": False,
        },
        lambda r, b: {**VIDEO(r, b), "fps": 24},
        lambda r, b, n: {
            "encoder_hidden_states": r(b, n, 16),
            "attention_mask": torch.tensor([[1] * (n - 1) + [0]] * b).bool(),
        },
    ),
    "SanaWMTransformer3DModel": Tiny(
        {
            "in_channels": 4,
            "num_layers": 3,
            "hidden_size": 24,
            "num_attention_heads": 2,
            "linear_head_dim": 12,
            "caption_channels": 16,
            "mlp_ratio": 1.0,
            "chunk_plucker_channels": 4,
            "chunk_plucker_post_attn_blocks": 4,
        },
        lambda r, b: {"hidden_states": r(b, 4, 2, 8, 8), "timestep": torch.full((b, 1, 2), 500.0)},
        with_mask(),
    ),
    "SanaWMLTX2RefinerTransformer3DModel": Tiny(
        {
            **HEADS,
            "in_channels": 4,
            "out_channels": 4,
            "cross_attention_dim": 24,
            "num_layers": 2,
            "caption_channels": 16,
        },
        lambda r, b: {
            "hidden_states": r(b, 32, 4),
            "timestep": steps(b),
            "video_rotary_emb": (torch.ones(b, 32, 24), torch.zeros(b, 32, 24)),
        },
        with_mask(),
    ),
    "Kandinsky6Transformer3DModel": Tiny(
        {
            "in_visual_dim": 4,
            "out_visual_dim": 4,
            "in_text_dim": 16,
            "in_text_dim2": 8,
            "time_dim": 16,
            "model_dim": 24,
            "ff_dim": 24,
            "num_text_blocks": 1,
            "num_visual_blocks": 2,
            "axes_dims": (4, 4, 4),
            "in_audio_dim": 4,
            "out_audio_dim": 4,
            "visual_cond": False,
        },
        lambda r, b: {
            "hidden_states": r(b, 2, 8, 8, 4),
            "timestep": steps(b),
            "pooled_projections": r(b, 8),
            "audio_hidden_states": r(b, 3, 4),
        },
        lambda r, b, n: {
            "encoder_hidden_states": r(b, n, 16),
            "encoder_attention_mask": torch.tensor([[1] * (n - 1) + [0]] * b).bool(),
        },
    ),
    "LuminaNextDiT2DModel": Tiny(
        {
            "sample_size": 8,
            "hidden_size": 24,
            "num_layers": 2,
            "num_attention_heads": 2,
            "num_kv_heads": 1,
            "multiple_of": 8,
            "cross_attention_dim": 16,
        },
        lambda r, b: {
            "hidden_states": r(b, 4, 8, 8),
            "timestep": fractions(b),
            "image_rotary_emb": torch.polar(torch.ones(8, 8, 6), r(8, 8, 6)),
            "cross_attention_kwargs": {},
        },
        with_mask("encoder_mask"),
        pooling=("time_caption_embed",),
    ),
    "HunyuanDiT2DModel": Tiny(
        {
            "sample_size": 8,
            "num_layers": 4,
            "patch_size": 2,
            "num_attention_heads": 2,
            "attention_head_dim": 12,
            "hidden_size": 24,
            "in_channels": 4,
            "cross_attention_dim": 16,
            "cross_attention_dim_t5": 16,
            "pooled_projection_dim": 8,
            "text_len": 6,
            "text_len_t5": 5,
        },
        lambda r, b: {
            "hidden_states": r(b, 4, 8, 8),
            "timestep": steps(b),
            "image_meta_size": torch.ones(b, 6),
            "style": torch.zeros(b, dtype=torch.long),
            "image_rotary_emb": (torch.ones(16, 12), torch.zeros(16, 12)),
        },
        lambda r, b, n: {
            "encoder_hidden_states": r(b, 6, 16),
            "text_embedding_mask": torch.tensor([[1] * n + [0] * (6 - n)] * b),
            "encoder_hidden_states_t5": r(b, 5, 16),
            "text_embedding_mask_t5": torch.tensor([[1] * (n - 1) + [0] * (6 - n)] * b),
        },
        pooling=("time_extra_emb",),
    ),
    "LTXVideoTransformer3DModel": Tiny(
        {
            **HEADS,
            "in_channels": 4,
            "out_channels": 4,
            "num_layers": 2,
            "cross_attention_dim": 24,
            "caption_channels": 16,
        },
        lambda r, b: {
            "hidden_states": r(b, 32, 4),
            "timestep": steps(b),
            "num_frames": 2,
            "height": 4,
            "width": 4,
        },
        with_mask(),
    ),
    "LTX2VideoTransformer3DModel": Tiny(
        {
            **HEADS,
            "in_channels": 4,
            "out_channels": 4,
            "cross_attention_dim": 24,
            "audio_in_channels": 4,
            "audio_out_channels": 4,
            "audio_num_attention_heads": 2,
            "audio_attention_head_dim": 6,
            "audio_cross_attention_dim": 12,
            "num_layers": 2,
            "caption_channels": 16,
            "gated_attn": True,
            "audio_gated_attn": True,
            "cross_attn_mod": True,
            "audio_cross_attn_mod": True,
            "rope_double_precision": False,
        },
        lambda r, b: {
            "hidden_states": r(b, 32, 4),
            "audio_hidden_states": r(b, 5, 4),
            "timestep": steps(b),
            "sigma": steps(b),
            "num_frames": 2,
            "height": 4,
            "width": 4,
            "audio_num_frames": 5,
        },
        lambda r, b, n: {
            "encoder_hidden_states": r(b, n, 16),
            "audio_encoder_hidden_states": r(b, n, 16),
            "encoder_attention_mask": torch.tensor([[1] * (n - 1) + [0]] * b),
            "audio_encoder_attention_mask": torch.tensor([[1] * (n - 1) + [0]] * b),
        },
    ),
    "WanTransformer3DModel": Tiny(WAN, VIDEO, tokens()),
    "WanTransformer3DModel image": Tiny(
        {**WAN, "image_dim": 8, "added_kv_proj_dim": 24},
        lambda r, b: {**VIDEO(r, b), "encoder_hidden_states_image": r(b, 5, 8)},
        tokens(),
        cls="WanTransformer3DModel",
        lengths=(512, 512),
    ),
    "WanVACETransformer3DModel": Tiny(
        {**WAN, "vace_layers": [0], "vace_in_channels": 6},
        lambda r, b: {**VIDEO(r, b), "control_hidden_states": r(b, 6, 2, 8, 8)},
        tokens(),
    ),
    "WanAnimateTransformer3DModel": Tiny(
        {
            **WAN,
            "in_channels": 12,
            "latent_channels": 4,
            "image_dim": 8,
            "added_kv_proj_dim": 24,
            "motion_encoder_channel_sizes": {"4": 8, "8": 8, "16": 8},
            "motion_encoder_size": 16,
            "motion_style_dim": 8,
            "motion_dim": 4,
            "motion_encoder_dim": 8,
            "face_encoder_hidden_dim": 16,
            "face_encoder_num_heads": 2,
            "inject_face_latents_blocks": 2,
        },
        lambda r, b: {
            "hidden_states": r(b, 12, 3, 8, 8),
            "timestep": steps(b),
            "encoder_hidden_states_image": r(b, 5, 8),
            "pose_hidden_states": r(b, 4, 2, 8, 8),
            "face_pixel_values": r(b, 3, 5, 16, 16),
        },
        tokens(),
        lengths=(512, 512),
    ),
    "SkyReelsV2Transformer3DModel": Tiny(WAN, VIDEO, tokens()),
    "ChronoEditTransformer3DModel": Tiny(
        {**WAN, "image_dim": 8, "added_kv_proj_dim": 24},
        lambda r, b: {**VIDEO(r, b), "encoder_hidden_states_image": r(b, 5, 8)},
        tokens(),
        lengths=(512, 512),
    ),
    "AnyFlowTransformer3DModel": Tiny(
        WAN,
        lambda r, b: {
            "hidden_states": r(b, 2, 4, 8, 8),
            "timestep": torch.full((b, 2), 500.0),
            "r_timestep": torch.full((b, 2), 250.0),
        },
        tokens(),
    ),
    "HeliosTransformer3DModel": Tiny(
        {k: v for k, v in WAN.items() if k != "rope_max_seq_len"} | {"rope_dim": (4, 4, 4)}, VIDEO, tokens()
    ),
    "Kandinsky5Transformer3DModel": Tiny(
        {
            "in_text_dim": 16,
            "in_text_dim2": 8,
            "time_dim": 16,
            "model_dim": 24,
            "ff_dim": 24,
            "num_text_blocks": 1,
            "num_visual_blocks": 2,
            "axes_dims": (4, 4, 4),
        },
        lambda r, b: {
            "hidden_states": r(b, 2, 8, 8, 4),
            "timestep": steps(b),
            "pooled_projections": r(b, 8),
            "visual_rope_pos": [torch.arange(2), torch.arange(4), torch.arange(4)],
        },
        lambda r, b, n: {"encoder_hidden_states": r(b, n, 16), "text_rope_pos": torch.arange(n)},
        batch=1,
    ),
}

JOINT: dict[str, Tiny] = {
    "SD3Transformer2DModel": Tiny(
        {
            "sample_size": 8,
            "in_channels": 4,
            "out_channels": 4,
            "num_layers": 3,
            "attention_head_dim": 8,
            "num_attention_heads": 2,
            "joint_attention_dim": 16,
            "caption_projection_dim": 16,
            "pooled_projection_dim": 8,
            "pos_embed_max_size": 16,
            "dual_attention_layers": (0,),
            "qk_norm": "rms_norm",
        },
        lambda r, b: {"hidden_states": r(b, 4, 8, 8), "timestep": steps(b), "pooled_projections": r(b, 8)},
        tokens(),
    ),
    "FluxTransformer2DModel": Tiny(
        {**FLUX, "pooled_projection_dim": 8, "guidance_embeds": True},
        flux_call(pooled_projections=lambda r, b: r(b, 8), guidance=lambda r, b: torch.full((b,), 3.5)),
        with_ids(),
    ),
    "FluxTransformer2DModel with a reference": Tiny(
        {**FLUX, "pooled_projection_dim": 8},
        lambda r, b: {
            "hidden_states": r(b, 32, 16),
            "timestep": fractions(b),
            "img_ids": torch.cat([picture_ids(), picture_ids() + torch.tensor([1.0, 0, 0])]),
            "pooled_projections": r(b, 8),
        },
        with_ids(),
        cls="FluxTransformer2DModel",
    ),
    "Flux2Transformer2DModel": Tiny(
        {**FLUX, "axes_dims_rope": (4, 4, 4, 4), "timestep_guidance_channels": 16},
        flux_call(4, guidance=lambda r, b: torch.full((b,), 3.5)),
        with_ids(axes=4, counted=True),
    ),
    "Flux3Transformer2DModel": Tiny(
        {
            **FLUX,
            "axes_dims_rope": (4, 4, 4, 4),
            "timestep_channels": 16,
            "cond_in_channels": 16,
        },
        flux_call(4),
        with_ids(axes=4, counted=True),
    ),
    "ChromaTransformer2DModel": Tiny(
        {
            **FLUX,
            "approximator_num_channels": 8,
            "approximator_hidden_dim": 16,
            "approximator_layers": 1,
        },
        flux_call(),
        lambda r, b, n: {**with_ids()(r, b, n), "attention_mask": torch.ones(b, n + 16)},
    ),
    "BriaTransformer2DModel": Tiny(FLUX, flux_call(), with_ids()),
    "LongCatImageTransformer2DModel": Tiny({**FLUX, "pooled_projection_dim": 8}, flux_call(), with_ids(counted=True)),
    "OvisImageTransformer2DModel": Tiny({**FLUX, "out_channels": 16}, flux_call(), with_ids()),
    "AuraFlowTransformer2DModel": Tiny(
        {
            "sample_size": 8,
            "num_mmdit_layers": 2,
            "num_single_dit_layers": 1,
            "attention_head_dim": 12,
            "num_attention_heads": 2,
            "joint_attention_dim": 16,
            "caption_projection_dim": 24,
            "pos_embed_max_size": 64,
        },
        lambda r, b: {"hidden_states": r(b, 4, 8, 8), "timestep": fractions(b)},
        tokens(),
    ),
    "CogVideoXTransformer3DModel": Tiny(
        {
            "num_attention_heads": 2,
            "attention_head_dim": 16,
            "in_channels": 4,
            "out_channels": 4,
            "time_embed_dim": 8,
            "text_embed_dim": 16,
            "num_layers": 2,
            "sample_width": 8,
            "sample_height": 8,
            "sample_frames": 5,
            "max_text_seq_length": 6,
        },
        latents(2, 4, 8, 8),
        tokens(),
        lengths=(6, 6),
    ),
    "ConsisIDTransformer3DModel": Tiny(
        {
            "num_attention_heads": 2,
            "attention_head_dim": 16,
            "in_channels": 4,
            "out_channels": 4,
            "time_embed_dim": 8,
            "text_embed_dim": 16,
            "num_layers": 2,
            "sample_width": 8,
            "sample_height": 8,
            "sample_frames": 5,
            "max_text_seq_length": 6,
        },
        latents(2, 4, 8, 8),
        tokens(),
        lengths=(6, 6),
    ),
    "CogView3PlusTransformer2DModel": Tiny(
        {
            **HEADS,
            "in_channels": 4,
            "out_channels": 4,
            "num_layers": 2,
            "text_embed_dim": 16,
            "time_embed_dim": 8,
            "condition_dim": 4,
            "pos_embed_max_size": 8,
            "sample_size": 8,
        },
        lambda r, b: {
            "hidden_states": r(b, 4, 8, 8),
            "timestep": steps(b),
            **{name: torch.full((b, 2), 8.0) for name in ("original_size", "target_size", "crop_coords")},
        },
        tokens(),
    ),
    "CogView4Transformer2DModel": Tiny(
        {
            **HEADS,
            "in_channels": 4,
            "out_channels": 4,
            "num_layers": 2,
            "text_embed_dim": 16,
            "time_embed_dim": 8,
            "condition_dim": 4,
            "sample_size": 8,
            "rope_axes_dim": (8, 8),
        },
        lambda r, b: {
            "hidden_states": r(b, 4, 8, 8),
            "timestep": steps(b),
            **{name: torch.full((b, 2), 8.0) for name in ("original_size", "target_size", "crop_coords")},
        },
        with_mask("attention_mask"),
    ),
    "GlmImageTransformer2DModel": Tiny(
        {
            **HEADS,
            "in_channels": 4,
            "out_channels": 4,
            "num_layers": 2,
            "text_embed_dim": 16,
            "time_embed_dim": 8,
            "condition_dim": 4,
            "prior_vq_quantizer_codebook_size": 8,
        },
        lambda r, b: {
            "hidden_states": r(b, 4, 8, 8),
            "timestep": steps(b),
            "prior_token_id": torch.ones(b, 16, dtype=torch.long),
            "prior_token_drop": torch.zeros(b, 16, dtype=torch.bool),
            **{name: torch.full((b, 2), 8.0) for name in ("target_size", "crop_coords")},
        },
        with_mask("attention_mask"),
    ),
    "EasyAnimateTransformer3DModel": Tiny(
        {
            **HEADS,
            "in_channels": 4,
            "out_channels": 4,
            "patch_size": 2,
            "num_layers": 2,
            "mmdit_layers": 1,
            "time_embed_dim": 8,
            "text_embed_dim": 16,
            "text_embed_dim_t5": 8,
            "attention_head_dim": 16,
        },
        VIDEO,
        lambda r, b, n: {"encoder_hidden_states": r(b, n, 16), "encoder_hidden_states_t5": r(b, n - 1, 8)},
    ),
    "HiDreamImageTransformer2DModel": Tiny(
        {
            "patch_size": 2,
            "in_channels": 4,
            "out_channels": 4,
            "num_layers": 2,
            "num_single_layers": 2,
            "attention_head_dim": 8,
            "num_attention_heads": 2,
            "caption_channels": [16, 8],
            "text_emb_dim": 8,
            "num_routed_experts": 2,
            "axes_dims_rope": (4, 2, 2),
            "max_resolution": (8, 8),
            "llama_layers": [0, 1, 1, 0],
        },
        lambda r, b: {"hidden_states": r(b, 4, 8, 8), "timesteps": steps(b), "pooled_embeds": r(b, 8)},
        lambda r, b, n: {
            "encoder_hidden_states_t5": r(b, n, 16),
            "encoder_hidden_states_llama3": r(2, b, n, 8),
        },
    ),
    "JoyImageEditTransformer3DModel": Tiny(
        {"in_channels": 4, "hidden_size": 24, "num_attention_heads": 2, "text_dim": 16, "num_layers": 2}
        | {"rope_dim_list": [4, 4, 4]},
        VIDEO,
        tokens(),
    ),
    "JoyImageEditPlusTransformer3DModel": Tiny(
        {"in_channels": 4, "hidden_size": 24, "num_attention_heads": 2, "text_dim": 16, "num_layers": 2}
        | {"rope_dim_list": [4, 4, 4]},
        lambda r, b: {
            "hidden_states": r(b, 16, 4, 1, 2, 2),
            "timestep": steps(b),
            "shape_list": [[(1, 4, 2), (1, 4, 2)]] * b,
        },
        with_mask("encoder_hidden_states_mask"),
    ),
    "MotifVideoTransformer3DModel": Tiny(
        {k: v for k, v in HUNYUAN.items() if k != "num_refiner_layers"}
        | {
            "num_decoder_layers": 1,
            "num_single_layers": 3,
            "enable_text_cross_attention_dual": True,
            "enable_text_cross_attention_single": True,
        },
        VIDEO,
        with_mask(),
    ),
    "Krea2Transformer2DModel": Tiny(
        {
            "in_channels": 16,
            "num_layers": 2,
            "attention_head_dim": 12,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "intermediate_size": 16,
            "timestep_embed_dim": 8,
            "text_hidden_dim": 16,
            "num_text_layers": 2,
            "text_num_attention_heads": 2,
            "text_num_key_value_heads": 2,
            "text_intermediate_size": 16,
            "num_layerwise_text_blocks": 1,
            "num_refiner_text_blocks": 1,
            "axes_dims_rope": (4, 4, 4),
        },
        lambda r, b: {"hidden_states": r(b, 16, 16), "timestep": fractions(b)},
        lambda r, b, n: {
            "encoder_hidden_states": r(b, n, 2, 16),
            "encoder_attention_mask": torch.tensor([[1] * (n - 1) + [0]] * b).bool(),
            "position_ids": torch.cat([torch.zeros(n, 3), picture_ids()]),
        },
    ),
    "PRXTransformer2DModel": Tiny(
        {
            "in_channels": 4,
            "context_in_dim": 16,
            "hidden_size": 24,
            "num_heads": 2,
            "depth": 2,
            "axes_dim": [6, 6],
        },
        latents(4, 8, 8),
        with_mask("attention_mask"),
    ),
}

PACKED: dict[str, Tiny] = {
    "QwenImageTransformer2DModel": Tiny(
        {
            "in_channels": 16,
            "out_channels": 4,
            "num_layers": 2,
            "attention_head_dim": 16,
            "num_attention_heads": 2,
            "joint_attention_dim": 16,
            "axes_dims_rope": (4, 6, 6),
        },
        lambda r, b: {
            "hidden_states": r(b, 32, 16),
            "timestep": fractions(b),
            "img_shapes": [[(1, 4, 4), (1, 4, 4)]] * b,
        },
        with_mask("encoder_hidden_states_mask"),
    ),
    "NucleusMoEImageTransformer2DModel": Tiny(
        {
            "in_channels": 16,
            "out_channels": 4,
            "num_layers": 2,
            "attention_head_dim": 16,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "joint_attention_dim": 16,
            "axes_dims_rope": (4, 6, 6),
            "moe_enabled": False,
            "capacity_factors": [8.0, 8.0],
        },
        lambda r, b: {
            "hidden_states": r(b, 16, 16),
            "timestep": fractions(b),
            "img_shapes": [(1, 4, 4)] * b,
        },
        with_mask("encoder_hidden_states_mask"),
    ),
    "HunyuanVideoTransformer3DModel": Tiny(
        {**HUNYUAN, "pooled_projection_dim": 8},
        lambda r, b: {**VIDEO(r, b), "pooled_projections": r(b, 8), "guidance": torch.full((b,), 6000.0)},
        with_mask(),
    ),
    "HunyuanVideoFramepackTransformer3DModel": Tiny(
        {**HUNYUAN, "pooled_projection_dim": 8, "has_image_proj": True, "image_proj_dim": 8}
        | {"has_clean_x_embedder": True},
        lambda r, b: {
            **VIDEO(r, b),
            "pooled_projections": r(b, 8),
            "guidance": torch.full((b,), 6000.0),
            "image_embeds": r(b, 3, 8),
            "indices_latents": torch.arange(2),
            "latents_clean": r(b, 4, 2, 8, 8),
            "indices_latents_clean": torch.arange(2),
            "latents_history_2x": r(b, 4, 2, 8, 8),
            "indices_latents_history_2x": torch.arange(2),
            "latents_history_4x": r(b, 4, 4, 8, 8),
            "indices_latents_history_4x": torch.arange(4),
        },
        with_mask(),
        image=slice(0, 69),
    ),
    "HunyuanImageTransformer2DModel": Tiny(
        {**HUNYUAN, "in_channels": 4, "patch_size": (2, 2), "rope_axes_dim": (8, 8), "text_embed_2_dim": 8},
        latents(4, 8, 8),
        lambda r, b, n: {
            **with_mask()(r, b, n),
            "encoder_hidden_states_2": r(b, n - 1, 8),
            "encoder_attention_mask_2": torch.tensor([[1] * (n - 2) + [0]] * b),
        },
    ),
    "HunyuanVideo15Transformer3DModel": Tiny(
        {k: v for k, v in HUNYUAN.items() if k != "num_single_layers"}
        | {"num_layers": 2, "patch_size": 2, "text_embed_2_dim": 8, "image_embed_dim": 8, "in_channels": 4},
        lambda r, b: {**VIDEO(r, b), "image_embeds": r(b, 3, 8)},
        lambda r, b, n: {
            **with_mask()(r, b, n),
            "encoder_hidden_states_2": r(b, n - 1, 8),
            "encoder_attention_mask_2": torch.tensor([[1] * (n - 2) + [0]] * b),
        },
        image=slice(0, 32),
    ),
    "ZImageTransformer2DModel": Tiny(
        {
            "in_channels": 4,
            "dim": 32,
            "n_layers": 2,
            "n_refiner_layers": 1,
            "n_heads": 2,
            "n_kv_heads": 2,
            "cap_feat_dim": 16,
            "axes_dims": [4, 6, 6],
            "axes_lens": [256, 32, 32],
        },
        lambda r, b: {"x": [r(4, 1, 8, 16) for _ in range(b)], "t": fractions(b)},
        lambda r, b, n: {"cap_feats": [r(n, 16) for _ in range(b)]},
        lengths=(32, 64),
        shifts=True,
    ),
    "Lumina2Transformer2DModel": Tiny(
        {
            "sample_size": 8,
            "in_channels": 4,
            "hidden_size": 24,
            "num_layers": 2,
            "num_refiner_layers": 1,
            "num_attention_heads": 2,
            "num_kv_heads": 1,
            "multiple_of": 8,
            "scaling_factor": 1.0,
            "axes_dim_rope": (4, 4, 4),
            "axes_lens": (64, 32, 32),
            "cap_feat_dim": 16,
        },
        latents(4, 8, 8),
        with_mask(),
        shifts=True,
    ),
    "ErnieImageTransformer2DModel": Tiny(
        {
            "hidden_size": 24,
            "num_attention_heads": 2,
            "num_layers": 2,
            "ffn_hidden_size": 16,
            "in_channels": 4,
            "out_channels": 4,
            "text_in_dim": 16,
            "rope_axes_dim": (4, 4, 4),
        },
        latents(4, 4, 4),
        lambda r, b, n: {"text_bth": r(b, n, 16), "text_lens": torch.full((b,), n - 1)},
        shifts=True,
    ),
    "BriaFiboTransformer2DModel": Tiny(
        {**FLUX, "text_encoder_dim": 8},
        flux_call(),
        lambda r, b, n: {
            **with_ids()(r, b, n),
            "text_encoder_layers": [r(b, n, 8) for _ in range(3)],
            "joint_attention_kwargs": {"attention_mask": padded_square(b, n, n + 16)},
        },
    ),
    "OmniGenTransformer2DModel": Tiny(
        {
            "in_channels": 4,
            "hidden_size": 24,
            "num_attention_heads": 2,
            "num_key_value_heads": 1,
            "intermediate_size": 16,
            "num_layers": 2,
            "pad_token_id": 0,
            "vocab_size": 300,
            "time_step_dim": 8,
            "pos_embed_max_size": 8,
            "rope_scaling": {"long_factor": [1.0] * 6, "short_factor": [1.0] * 6},
        },
        lambda r, b: {
            "hidden_states": r(b, 4, 8, 8),
            "timestep": fractions(b),
            "input_img_latents": [],
            "input_image_sizes": {},
        },
        lambda r, b, n: {
            "input_ids": (r(b, n) * 1e4).long() % 300,
            "attention_mask": causal_text(b, n, n + 17),
            "position_ids": torch.arange(n + 17)[None].repeat(b, 1),
        },
        shifts=True,
    ),
    "MochiTransformer3DModel": Tiny(
        {
            **HEADS,
            "num_layers": 3,
            "pooled_projection_dim": 16,
            "in_channels": 4,
            "text_embed_dim": 16,
            "time_embed_dim": 8,
            "max_sequence_length": 6,
        },
        VIDEO,
        with_mask(),
        pooling=("time_embed.pooler",),
    ),
}

TINY: dict[str, Tiny] = {**UNETS, **CROSS, **JOINT, **PACKED}
