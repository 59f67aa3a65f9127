"""The published Learn-to-Steer checkpoints and schedules.

Source: Yiflach, Atzmon, Chechik, arXiv:2509.02295, and the checkpoint files released with it.
"""

import math
import pickle
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType
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


@dataclass(frozen=True)
class PublishedSchedule:
    """How the published method steers one model.

    Ahead of denoising step i in [start_step, stop_step), up to `max_iterations` times: one forward of the denoiser,
    CE of the classifier for relation k mod n (k counts the iterations, n the prompt's relations); stop once
    CE <= `loss_target(i)`, else latents <- latents - step_size * gradient.

    Attributes:
        model_id: Base model on the Hub.
        num_inference_steps: Denoising steps the indices count in.
        guidance_scale: Of the stock pipeline call.
        start_step, stop_step: Steered steps, half-open.
        step_size: Factor of the raw gradient, in latent units.
        dtype: Name of the torch dtype the base model runs in.
        image_size: Side of the picture in pixels, where the checkpoint does not say.
        pixels_per_cell: Pixels per cell of the unresized maps where the picture's side follows from the checkpoint's
            `orig_map_size`; None where the picture's side is fixed.
        normalise: Whether maps are resized to the classifier's map size and divided by their sum. FLUX.1-schnell's are
            of that size already and keep their magnitude.
        text_length: Text tokens the maps' softmax runs over, padding included.
        max_iterations: Forward passes per steered step at most.
        loss_targets: Cross entropy that ends a step's iterations, for steered step 0, 1, 2 and all later ones.
    """

    model_id: str
    num_inference_steps: int
    guidance_scale: float
    stop_step: int
    step_size: float
    dtype: str
    image_size: int
    pixels_per_cell: int | None
    normalise: bool
    text_length: int
    start_step: int = 0
    max_iterations: int = 16
    loss_targets: tuple[float, ...] = (1e-5, 3e-5, 5e-5, 7e-5)

    def loss_target(self, step_index: int) -> float:
        """Cross entropy at which the iterations of a denoising step end."""
        if step_index < 0:
            raise ValueError(f"step_index must be >= 0, got {step_index}")
        return self.loss_targets[min(step_index, len(self.loss_targets) - 1)]

    def relation_at(self, iteration: int, num_relations: int) -> int:
        """Which of the prompt's relations an iteration works on: they take turns."""
        if num_relations < 1:
            raise ValueError("num_relations must be >= 1; a prompt without a relation is not steered")
        return iteration % num_relations

    def image_size_for(self, orig_map_size: int | None) -> int:
        """Side of the picture in pixels for a checkpoint's `orig_map_size`."""
        if self.pixels_per_cell is None or orig_map_size is None:
            return self.image_size
        return self.pixels_per_cell * orig_map_size


_SCHNELL = PublishedSchedule(
    model_id="black-forest-labs/FLUX.1-schnell",
    num_inference_steps=4,
    guidance_scale=0.0,
    stop_step=1,
    step_size=5.0,
    dtype="bfloat16",
    image_size=256,
    pixels_per_cell=16,
    normalise=False,
    text_length=512,
)
_DEV = PublishedSchedule(
    model_id="black-forest-labs/FLUX.1-dev",
    num_inference_steps=50,
    guidance_scale=3.5,
    stop_step=25,
    step_size=5.0,
    dtype="bfloat16",
    image_size=512,
    pixels_per_cell=16,
    normalise=True,
    text_length=512,
)
_SD2 = PublishedSchedule(
    model_id="stabilityai/stable-diffusion-2-1-base",
    num_inference_steps=50,
    guidance_scale=7.5,
    stop_step=25,
    step_size=5.0,
    dtype="float32",
    image_size=512,
    pixels_per_cell=None,
    normalise=True,
    text_length=77,
)
_SD14 = replace(_SD2, model_id="CompVis/stable-diffusion-v1-4", step_size=7.5)

PUBLISHED_SCHEDULES: Mapping[str, PublishedSchedule] = MappingProxyType(
    {
        "flux_schnell": _SCHNELL,
        "flux_schnell_diagonals": _SCHNELL,
        "flux_dev": _DEV,
        "sd2": _SD2,
        "sd14": _SD14,
    }
)
"""By the stem of the published checkpoint's file name."""


def published_schedule(name: str | Path) -> PublishedSchedule:
    """The schedule that belongs to a published checkpoint, by its file name or the stem of it.

    Raises:
        ValueError: if the name is none of the published ones; a renamed file needs the schedule named explicitly.
    """
    stem = Path(name).name.removesuffix(".pth")
    if stem not in PUBLISHED_SCHEDULES:
        known = ", ".join(PUBLISHED_SCHEDULES)
        raise ValueError(f"no published schedule is called {stem!r}; name the one to use: {known}")
    return PUBLISHED_SCHEDULES[stem]


def published_classifier(name: str | Path) -> ClassifierSettings:
    """Architecture and conventions of a published classifier, for training one like it.

    Raises:
        ValueError: if the name is none of the published ones.
    """
    schedule = published_schedule(name)
    flux = schedule.pixels_per_cell is not None
    channels = 1368 if flux else 195 if schedule is _SD2 else 128
    encoder = EncoderSize(width=256, layers=4 if flux else 2, heads=4 if flux else 2, feedforward=512 if flux else 128)
    return ClassifierSettings(
        relations=("above", "below", "is", "to the left of", "to the right of"),
        channels=channels,
        map_size=16,
        extractor=encoder,
        pooling_heads=encoder.heads,
        head=replace(encoder, heads=2 * encoder.heads),
        conditioning="index",
        placement="layers",
        num_timesteps=schedule.num_inference_steps,
        source=MapSource(
            model_id=schedule.model_id,
            normalise=schedule.normalise,
            text_length=schedule.text_length,
            timesteps=(1, 3) if schedule is _SCHNELL else (5, 10, 15, 20, 25, 49),
            num_steps=schedule.num_inference_steps,
            orig_map_size=schedule.image_size // schedule.pixels_per_cell if schedule.pixels_per_cell else None,
        ),
    )


def published_source(settings: ClassifierSettings, name: str | Path) -> ClassifierSettings:
    """The settings of a published checkpoint with what its schedule says of the maps, which the file does not.

    Args:
        settings: Of the checkpoint.
        name: File name of the checkpoint, or the name of its schedule.

    Raises: ValueError if the name is none of the published ones.
    """
    schedule = published_schedule(name)
    own = settings.source
    source = replace(
        own,
        model_id=own.model_id or schedule.model_id,
        normalise=schedule.normalise,
        text_length=schedule.text_length,
        num_steps=own.num_steps or schedule.num_inference_steps,
    )
    return replace(settings, source=source)


def assign_by_intervals(num_steps: int, trained: Sequence[int]) -> list[int]:
    """Classifier timestep of every denoising step: the first trained index that is not before the step.

    Steps behind the last trained index use the last. With 4 steps and (1, 3): [1, 1, 3, 3].

    Args:
        num_steps: Denoising steps, counted as the trained indices are.
        trained: Step indices the classifier was trained on, in any order.

    Raises:
        ValueError: if there is no step or no trained index.
    """
    if num_steps < 1 or not trained:
        raise ValueError(f"need at least one step and one trained index, got {num_steps} steps and {list(trained)}")
    ordered = sorted(trained)
    return [next((index for index in ordered if index >= step), ordered[-1]) for step in range(num_steps)]


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
