"""An independent computation of the published relation classifier with torch's own attention, and random checkpoints.

Used as an oracle: it shares no code with the package.
"""

import math
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

RELATIONS = ("above", "below", "is", "to the left of", "to the right of")


def attention(state: dict[str, Tensor], name: str, query: Tensor, context: Tensor, heads: int) -> Tensor:
    """torch's functional multi-head attention; (batch, tokens, width)."""
    output, _ = F.multi_head_attention_forward(
        query.transpose(0, 1), context.transpose(0, 1), context.transpose(0, 1), query.shape[-1], heads,
        state[f"{name}.in_proj_weight"], state[f"{name}.in_proj_bias"], None, None, False, 0.0,
        state[f"{name}.out_proj.weight"], state[f"{name}.out_proj.bias"], training=False, need_weights=True,
    )  # fmt: skip
    return output.transpose(0, 1)


def linear(state: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    return F.linear(x, state[f"{name}.weight"], state[f"{name}.bias"])


def norm(state: dict[str, Tensor], name: str, x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], state[f"{name}.weight"], state[f"{name}.bias"])


def encoder_layer(state: dict[str, Tensor], name: str, x: Tensor, heads: int) -> Tensor:
    normed = norm(state, f"{name}.norm1", x)
    x = x + attention(state, f"{name}.self_attn", normed, normed, heads)
    hidden = F.relu(linear(state, f"{name}.linear1", norm(state, f"{name}.norm2", x)))
    return x + linear(state, f"{name}.linear2", hidden)


def logits_of(checkpoint: dict[str, Any], maps: Tensor, timestep: Tensor) -> Tensor:
    """Logits (batch, relations), one object and one layer at a time."""
    state, config = checkpoint["model_state_dict"], checkpoint["config"]
    extractor, head = config["extractor"], config["classifier"]
    embedded = extractor["timestep_embedding"]
    mode = embedded["mode"] if embedded["enable"] else "none"
    index = timestep.long().flatten()
    condensed = []
    for which in range(2):
        x = linear(state, "object_extractor.input_projection", maps[:, which].flatten(2))
        x = x + state["object_extractor.positional_encoding.pe"][:, : x.shape[1]]
        added = 0.0 if mode == "none" else state["object_extractor.timestep_embedding.weight"][index].unsqueeze(1)
        x = x + added if mode == "start" else x
        for number in range(extractor["num_layers"]):
            x = x + added if mode == "mid" else x
            x = encoder_layer(state, f"object_extractor.transformer.layers.{number}", x, extractor["nhead"])
        x = x + added if mode == "end" else x
        query = state["object_extractor.query_vector"].repeat(len(x), 1, 1)
        pooled = attention(state, "object_extractor.layer_attention", query, x, extractor["layer_attn_nheads"])
        condensed.append(linear(state, "object_extractor.output_projection", pooled[:, 0]))
    x = linear(state, "relation_classifier.projection", torch.cat(condensed, dim=1)).unsqueeze(1)
    x = x + state["relation_classifier.positional_encoding.pe"][:, :1]
    for number in range(head["num_layers"]):
        x = encoder_layer(state, f"relation_classifier.transformer.layers.{number}", x, head["nhead"])
    x = torch.cat([x[:, 0], state["relation_classifier.timestep_embedding.weight"][index]], dim=1)
    for number in (0, 4):
        x = linear(state, f"relation_classifier.fc.{number}", x)
        x = F.leaky_relu(norm(state, f"relation_classifier.fc.{number + 1}", x), 0.1)
    return linear(state, "relation_classifier.fc.8", x)


def random_checkpoint(
    mode: str = "mid",
    enable: bool = True,
    table: int = 14,
    map_size: int = 6,
    width: int = 12,
    layers: tuple[int, int] = (3, 1),
    heads: tuple[int, int, int] = (3, 2, 6),
    seed: int = 0,
    orig_map_size: int = 32,
) -> dict[str, Any]:
    """A checkpoint dict of the published format with random weights; heads are extractor, pooling, classifier."""
    draw = torch.Generator().manual_seed(seed)
    pixels, num_timesteps, head_timestep = map_size**2, 7, 5
    state: dict[str, Tensor] = {}

    def add(name: str, *shape: int) -> None:
        scale = 1 / math.sqrt(shape[-1]) if len(shape) > 1 else 0.3
        state[name] = torch.randn(*shape, generator=draw) * scale

    def add_linear(name: str, out: int, into: int) -> None:
        add(f"{name}.weight", out, into)
        add(f"{name}.bias", out)

    def add_attention(name: str) -> None:
        add(f"{name}.in_proj_weight", 3 * width, width)
        add(f"{name}.in_proj_bias", 3 * width)
        add_linear(f"{name}.out_proj", width, width)

    def add_layers(part: str, count: int, feedforward: int) -> None:
        for number in range(count):
            layer = f"{part}.transformer.layers.{number}"
            add_attention(f"{layer}.self_attn")
            add_linear(f"{layer}.linear1", feedforward, width)
            add_linear(f"{layer}.linear2", width, feedforward)
            for which in ("norm1", "norm2"):
                add(f"{layer}.{which}.weight", width)
                add(f"{layer}.{which}.bias", width)

    add("object_extractor.query_vector", 1, 1, width)
    add_linear("object_extractor.input_projection", width, pixels)
    if enable:
        add("object_extractor.timestep_embedding.weight", num_timesteps, width)
    add("object_extractor.positional_encoding.pe", 1, table, width)
    add_layers("object_extractor", layers[0], 20)
    add_attention("object_extractor.layer_attention")
    add_linear("object_extractor.output_projection", pixels, width)
    add("relation_classifier.timestep_embedding.weight", num_timesteps, head_timestep)
    add("relation_classifier.positional_encoding.pe", 1, 256, width)
    add_linear("relation_classifier.projection", width, 2 * pixels)
    add_layers("relation_classifier", layers[1], 10)
    for number, (into, out) in zip((0, 4), ((width + head_timestep, 40), (40, 24)), strict=True):
        add_linear(f"relation_classifier.fc.{number}", out, into)
        add_linear(f"relation_classifier.fc.{number + 1}", out, 1)
        state[f"relation_classifier.fc.{number + 1}.weight"] = torch.rand(out, generator=draw) + 0.5
    add_linear("relation_classifier.fc.8", len(RELATIONS), 24)
    return {
        "model_state_dict": state,
        "rel_name_to_idx": {name: index for index, name in enumerate(RELATIONS)},
        "idx_to_rel_name": dict(enumerate(RELATIONS)),
        "input_channels": 1368,
        "config": {
            "extractor": {
                "nhead": heads[0], "num_layers": layers[0], "dim_feedforward": 20, "layer_attn_nheads": heads[1],
                "dropout": 0.3, "timestep_embedding": {"enable": enable, "mode": mode},
            },
            "classifier": {
                "mode": "multiclass", "timestep_embedding_dim": head_timestep, "nhead": heads[2],
                "num_layers": layers[1], "dim_feedforward": 10, "fc_ver": "v1", "dropout": 0.3,
            },
            "map_size": map_size, "d_model": width, "num_timesteps": num_timesteps, "architecture": "attention",
        },
        "training_config": {"timesteps": [1, 3, 6], "num_timesteps": num_timesteps, "orig_map_size": orig_map_size},
    }  # fmt: skip


def save(checkpoint: dict[str, Any], folder: Path) -> Path:
    path = folder / "flux_dev.pth"
    torch.save(checkpoint, path)
    return path
