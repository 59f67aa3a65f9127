"""Tiny configurations and calls of transformers that hold text and picture in one sequence or cache, as data."""

import torch
from diffusers.models.transformers.transformer_wan_animate_2 import WanAnimate2KVCache
from torch import Tensor

from tiny.model import HEADS, WAN, Random, Tiny, fractions, with_image_of, with_mask


def _waves(*shape: int) -> Tensor:
    """Latents that are the same for every text."""
    return torch.sin(torch.arange(torch.Size(shape).numel()) * 0.7).reshape(shape)


def _ideogram_text(r: Random, b: int, n: int) -> dict[str, Tensor]:
    total = n + 16
    places = torch.arange(total)
    positions = torch.stack([places, places, places], dim=-1)
    positions[n:] = 100 + torch.stack([places[n:] * 0, (places[n:] - n) // 4, (places[n:] - n) % 4], dim=-1)
    indicator = torch.tensor([3] * n + [2] * 16).repeat(b, 1)
    indicator[-1, 0] = 0  # the last row is padded on the left
    return {
        "hidden_states": torch.cat([torch.zeros(b, n, 8), _waves(b, 16, 8)], dim=1),
        "encoder_hidden_states": r(b, total, 16),
        "position_ids": positions.repeat(b, 1, 1),
        "segment_ids": torch.where(indicator == 0, -1, 1),
        "indicator": indicator,
    }


def _minimax_text(r: Random, b: int, n: int) -> dict[str, Tensor]:
    audio, video = 3, 8
    picture = torch.tensor([[100 + t, t, t] for t in range(audio + video)])
    return {
        "encoder_hidden_states": r(b, n, 16),
        "text_indices": torch.arange(n),
        "audio_indices": n + torch.arange(audio),
        "video_indices": n + audio + torch.arange(video),
        "token_tags": torch.tensor([1] * n + [2] * audio + [0] * video),
        "timestep_indices": torch.tensor([0] * (n + audio) + [1] * video),
        "position_ids": torch.cat([torch.arange(n)[:, None].repeat(1, 3), picture]),
    }


def _fibo_text(r: Random, b: int, n: int) -> dict[str, Tensor]:
    mask = torch.ones(b, n, dtype=torch.bool)
    mask[-1, 0] = False
    return {"encoder_hidden_states": r(b, 2, n, 16), "encoder_attention_mask": mask}


def _cosmos_text(r: Random, b: int, n: int) -> dict[str, object]:
    vision = n + torch.arange(32)
    grid = torch.stack(torch.meshgrid(torch.arange(2), torch.arange(4), torch.arange(4), indexing="ij")).flatten(1)
    return {
        "input_ids": (r(n) * 1e4).long() % 300,
        "text_indexes": torch.arange(n),
        "position_ids": torch.cat([torch.arange(n)[None].repeat(3, 1), 100 + grid], dim=1),
        "und_len": n,
        "sequence_length": n + 32,
        "vision_sequence_indexes": vision,
        "vision_mse_loss_indexes": vision,
    }


_ANIMATE = {
    "in_dim": 8,
    "dim": 24,
    "ffn_dim": 16,
    "freq_dim": 8,
    "text_dim": 16,
    "text_len": 8,
    "out_dim": 4,
    "num_heads": 2,
    "num_layers": 2,
}

SEQUENCE: dict[str, Tiny] = {
    "AnyFlowFARTransformer3DModel": Tiny(
        WAN,
        lambda r, b: {
            "hidden_states": r(b, 2, 4, 8, 8),
            "timestep": torch.full((b, 2), 500.0),
            "r_timestep": torch.full((b, 2), 250.0),
            "chunk_partition": [1, 1],
        },
        lambda r, b, n: {"encoder_hidden_states": r(b, n, 16)},
    ),
    "AnyFlowFARTransformer3DModel with earlier frames": Tiny(
        WAN,
        lambda r, b: {
            "hidden_states": r(b, 1, 4, 8, 8),
            "timestep": torch.full((b, 1), 500.0),
            "r_timestep": torch.full((b, 1), 250.0),
            "chunk_partition": [1, 1],
            "kv_cache": [
                {"compressed_cache": r(2, b, 2, 4, 12), "full_cache": r(2, b, 2, 16, 12)}
                for _ in range(WAN["num_layers"])
            ],
            "kv_cache_flag": {"is_cache_step": False, "num_cached_chunks": 1},
        },
        lambda r, b, n: {"encoder_hidden_states": r(b, n, 16)},
        cls="AnyFlowFARTransformer3DModel",
    ),
    "WanAnimate2Transformer3DModel": Tiny(
        {**_ANIMATE, "use_img_emb": True},
        lambda r, b: {
            "hidden_states": [r(4, 2, 4, 4) for _ in range(b)],
            "condition_latents": [r(4, 2, 4, 4) for _ in range(b)],
            "timestep": torch.full((b,), 500.0),
            "kv_cache": WanAnimate2KVCache(2),
            "kv_cache_mode": "extract",
            "seq_len": 8,
            "offset_grid_sizes": torch.tensor([[2, 2, 2]] * b),
            "encoder_hidden_states_image": r(b, 3, 1280),
        },
        lambda r, b, n: {"encoder_hidden_states": [r(n - row, 16) for row in range(b)]},
    ),
    "Ideogram4Transformer2DModel": Tiny(
        {
            "in_channels": 8,
            "num_layers": 2,
            "attention_head_dim": 12,
            "num_attention_heads": 2,
            "intermediate_size": 16,
            "adaln_dim": 8,
            "llm_features_dim": 16,
            "mrope_section": (2, 2, 2),
        },
        lambda r, b: {"timestep": fractions(b)},
        _ideogram_text,
        padded=True,
        shown=slice(-16, None),
    ),
    "MiniMaxH3Transformer3DModel": Tiny(
        {
            **HEADS,
            "hidden_size": 24,
            "num_layers": 2,
            "num_refiner_layers": 1,
            "ffn_dim": 16,
            "in_channels": 4,
            "audio_in_channels": 4,
            "text_dim": 16,
            "freq_dim": 8,
            "time_embed_hidden_dim": 8,
            "time_embed_dim": 8,
            "rope_freq_dim": 2,
        },
        lambda r, b: {
            "hidden_states": r(b, 8, 16),
            "audio_hidden_states": r(b, 3, 4),
            "timestep": torch.tensor([0.3, 0.6]),
        },
        _minimax_text,
    ),
    "BriaFibo2Transformer2DModel": Tiny(
        {
            "in_channels": 4,
            "dim": 24,
            "n_layers": 3,
            "n_refiner_layers": 1,
            "n_heads": 2,
            "cap_feat_dim": 16,
            "injection_layer_ids": (1,),
            "perceiver_num_layers": 1,
            "min_num_gist_tokens": 2,
            "max_num_gist_tokens": 8,
            "gist_step": 1,
            "gist_min_text_len": 2,
            "gist_max_text_len": 8,
            "axes_dims": (4, 4, 4),
            "axes_lens": (64, 32, 32),
        },
        lambda r, b: {"hidden_states": r(b, 4, 8, 8), "timestep": fractions(b), "context_latents": [r(b, 4, 4, 4)]},
        _fibo_text,
        apart=("perceiver",),
    ),
    "QwenImage21Transformer2DModel": Tiny(
        {
            "in_channels": 8,
            "out_channels": 8,
            "num_layers": 2,
            "attention_head_dim": 16,
            "num_attention_heads": 2,
            "context_in_dim": 16,
            "axes_dims_rope": (4, 6, 6),
        },
        lambda r, b: {"hidden_states": r(b, 16, 8), "timestep": fractions(b), "img_shapes": [[(1, 4, 4)]] * b},
        lambda r, b, n: {
            **with_mask("encoder_hidden_states_mask")(r, b, n),
            "img_mask": torch.tensor([[False] * n + [True] * 4] * b),
        },
        shown=slice(-16, None),
        align={"pos_embed": with_image_of(slice(-16, None))},
    ),
    "Cosmos3OmniTransformer": Tiny(
        {
            "head_dim": 12,
            "hidden_size": 24,
            "intermediate_size": 16,
            "latent_channel": 4,
            "num_attention_heads": 2,
            "num_hidden_layers": 2,
            "num_key_value_heads": 1,
            "patch_latent_dim": 16,
            "vocab_size": 300,
            "rope_axes_dim": (2, 2, 2),
        },
        lambda r, b: {
            "vision_tokens": [r(1, 4, 2, 8, 8)],
            "vision_token_shapes": [(2, 4, 4)],
            "vision_timesteps": torch.full((32,), 500.0),
            "vision_noisy_frame_indexes": [torch.arange(2)],
        },
        _cosmos_text,
        batch=1,
    ),
}
