"""Reading the published Learn-to-Steer checkpoint files safely, with every size taken from the weights.

Source: the checkpoint files released with Yiflach, Atzmon, Chechik, arXiv:2509.02295.
"""

import math
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from attnsteer.steering.classifier_settings import ClassifierSettings, EncoderSize, MapSource, Placement

_PLACEMENTS: dict[str, Placement] = {
    "mid": "layers",
    **dict.fromkeys(("start", "early", "pre", "begin", "first", "input"), "input"),
    **dict.fromkeys(("end", "late", "post", "last", "output"), "output"),
}
# "mid" is what every released checkpoint says. The other names are read as what they say: once, ahead of the
# extractor's encoder or behind it.


def read_published(path: str | Path) -> tuple[ClassifierSettings, dict[str, Tensor]]:
    """Settings and weights of a published checkpoint, safely read, with every size taken from the weights.

    The file's own `input_channels` is not used: the published files say 1368 whatever the model.

    Raises:
        ValueError: if the file is not such a checkpoint, would need unsafe unpickling, or names a mode unknown here.
    """
    checkpoint = _load(path)
    state: dict[str, Tensor] = dict(checkpoint["model_state_dict"])
    config, training = checkpoint["config"], checkpoint.get("training_config") or {}
    try:
        settings = _settings_of(state, config, training, _relations_of(checkpoint))
    except (KeyError, IndexError, TypeError) as problem:
        raise ValueError(f"{path} is not a published relation classifier: {problem!r} is missing or odd") from problem
    table = "relation_classifier.positional_encoding.pe"
    state[table] = state[table][:, :1]  # the head reads a sequence of one token
    return settings, state


def _load(path: str | Path) -> dict[str, Any]:
    try:
        checkpoint = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as problem:
        raise ValueError(
            f"{path} cannot be read safely (torch.load with weights_only=True refuses it). A published checkpoint "
            "holds tensors and plain Python types only: download it again, or save it again without other objects."
        ) from problem
    except (RuntimeError, EOFError) as problem:
        raise ValueError(f"{path} is damaged or no file of torch.save ({problem}): download it again") from problem
    wanted = ("model_state_dict", "config")
    if not isinstance(checkpoint, dict) or any(not isinstance(checkpoint.get(key), dict) for key in wanted):
        raise ValueError(
            f"{path} is not a published relation classifier: expected a dict with {' and '.join(wanted)}. "
            "A classifier saved by attnsteer is a folder: use RelationClassifier.from_pretrained(folder)."
        )
    return checkpoint


def _relations_of(checkpoint: Mapping[str, Any]) -> tuple[str, ...]:
    names = checkpoint.get("rel_name_to_idx") or {v: k for k, v in checkpoint["idx_to_rel_name"].items()}
    index = {int(i): str(name) for name, i in names.items()}
    return tuple(index[i] for i in range(len(index)))


def _settings_of(
    state: Mapping[str, Tensor], config: Mapping[str, Any], training: Mapping[str, Any], relations: tuple[str, ...]
) -> ClassifierSettings:
    extractor, head = config["extractor"], config["classifier"]
    table = state.get("object_extractor.timestep_embedding.weight")
    head_table = state.get("relation_classifier.timestep_embedding.weight")
    timesteps = [t for t in (table, head_table) if t is not None]
    orig_map_size, num_steps = training.get("orig_map_size"), training.get("num_timesteps")
    return ClassifierSettings(
        relations=relations,
        channels=state["object_extractor.positional_encoding.pe"].shape[1],
        map_size=math.isqrt(state["object_extractor.input_projection.weight"].shape[1]),
        extractor=_encoder_size(state, "object_extractor", int(extractor["nhead"])),
        pooling_heads=int(extractor["layer_attn_nheads"]),
        head=_encoder_size(state, "relation_classifier", int(head["nhead"])),
        head_widths=_mlp_widths(state, head),
        head_timestep_width=0 if head_table is None else head_table.shape[1],
        dropout=float(extractor.get("dropout", 0.3)),
        conditioning="index",
        placement="none" if table is None else _placement(extractor),
        num_timesteps=timesteps[0].shape[0] if timesteps else 1,
        fewer_channels=True,
        source=MapSource(
            timesteps=tuple(int(t) for t in training.get("timesteps", ())),
            num_steps=None if num_steps is None else int(num_steps),
            orig_map_size=None if orig_map_size is None else int(orig_map_size),
        ),
    )


def _placement(extractor: Mapping[str, Any]) -> Placement:
    mode = str(extractor["timestep_embedding"]["mode"])
    if mode not in _PLACEMENTS:
        raise ValueError(f"unknown timestep_embedding mode {mode!r}; known are {', '.join(_PLACEMENTS)}")
    return _PLACEMENTS[mode]


def _encoder_size(state: Mapping[str, Tensor], part: str, heads: int) -> EncoderSize:
    prefix = f"{part}.transformer.layers."
    layers = {key[len(prefix) :].split(".")[0] for key in state if key.startswith(prefix)}
    feedforward, width = state[f"{prefix}0.linear1.weight"].shape
    return EncoderSize(width=width, layers=len(layers), heads=heads, feedforward=feedforward)


def _mlp_widths(state: Mapping[str, Tensor], head: Mapping[str, Any]) -> tuple[int, ...]:
    version = head.get("fc_ver", "v1")
    prefix = "relation_classifier.fc."
    linear = sorted(int(k.split(".")[2]) for k, v in state.items() if k.startswith(prefix) and v.ndim == 2)
    if version != "v1" or linear != list(range(0, 4 * len(linear), 4)):
        raise ValueError(
            f"unknown final layers fc_ver={version!r}; known is v1: Linear, LayerNorm, LeakyReLU, Dropout"
        )
    return tuple(state[f"{prefix}{index}.weight"].shape[0] for index in linear[:-1])
