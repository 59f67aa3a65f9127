"""Steering inside a stock pipeline: move the latents ahead of a denoiser call, and let the scheduler know.

The denoiser sees the latents scaled, repeated for CFG, or joined with other channels. How its input follows from the
scheduler's sample is not assumed but solved for, and verified element by element, at every steered `scheduler.step`.
"""

import inspect
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from attnsteer.conditioning import Conditioning
from attnsteer.families import Family
from attnsteer.inject import fresh


@dataclass(frozen=True)
class SteeredInput:
    """The latents of one denoising step as the denoiser gets them, before and after steering."""

    original: Tensor
    steered: Tensor


def rows_of(family: Family, arguments: Mapping[str, Any], rows: "slice | Tensor") -> dict[str, Any]:
    """The arguments of a denoiser call for some of its batch rows only, in fresh containers."""
    total = arguments[family.latents].shape[0]
    unbatched = {text.name for text in family.text if text.kind == "positions"} | {"img_ids"}

    def take(value: Any) -> Any:
        if isinstance(value, Tensor):
            return value[rows] if value.ndim > 0 and value.shape[0] == total else value
        if isinstance(value, dict):
            return {key: take(entry) for key, entry in value.items()}
        if isinstance(value, list | tuple):
            return type(value)(take(entry) for entry in value)
        return value

    return {name: value if name in unbatched else take(value) for name, value in fresh(dict(arguments)).items()}


def spread(original: Tensor, conditional: Tensor, steered: Tensor) -> Tensor:
    """Put steered latents (n, ...) back into a batch whose every group of n rows shows the same latents (CFG).

    Raises: ValueError if the groups differ, so that it is unclear what the other rows are.
    """
    groups, rest = divmod(len(original), len(conditional))
    parts = original.unflatten(0, (groups, len(conditional))) if not rest else None
    if parts is None or any(not torch.equal(part, conditional) for part in parts):
        raise ValueError(
            f"the denoiser's batch of {len(original)} rows does not repeat the {len(conditional)} conditional rows; "
            "this pipeline cannot be steered yet"
        )
    return steered.repeat(groups, *[1] * (steered.ndim - 1))


def movable(denoiser: nn.Module, family: Family, latents: Tensor) -> Tensor:
    """1 where the denoiser's input is the latents, 0 where it is extra channels (mask, depth, first frame)."""
    mask = torch.ones(1, *latents.shape[1:], device=latents.device, dtype=latents.dtype)
    channels = getattr(getattr(denoiser, "config", None), "out_channels", None)
    if family.grid != "ids" and isinstance(channels, int) and channels < latents.shape[1]:
        mask[:, channels:] = 0
    return mask


def pull_back(sample: Tensor, step: SteeredInput) -> Tensor:
    """The scheduler's sample after steering: sample + (steered - original) / scale, with original = scale * sample.

    The denoiser's input may repeat the sample's rows, and hold more than the sample on any other axis behind it.

    Raises: ValueError if the denoiser's input is not such an image of the sample, or steering moved more than it.
    """
    original, steered = step.original, step.steered
    groups, rest = divmod(len(original), len(sample))
    fits = original.ndim == sample.ndim and not rest
    fits = fits and all(o >= s for o, s in zip(original.shape[1:], sample.shape[1:], strict=True))
    if not fits:
        raise ValueError(
            f"the scheduler steps on latents of shape {tuple(sample.shape)}, the denoiser gets "
            f"{tuple(original.shape)}: this pipeline needs a pull-back of its own and cannot be steered yet"
        )
    inside = tuple(slice(0, size) for size in sample.shape[1:])
    seen = original.unflatten(0, (groups, len(sample)))[(slice(None), slice(None), *inside)].double()
    wide = sample.double()
    scale = (seen[0] * wide).sum() / wide.square().sum().clamp_min(1e-30)
    tolerance = 8 * max(torch.finfo(original.dtype).eps, torch.finfo(sample.dtype).eps)
    error = (seen - scale * wide).abs().amax()
    if not bool(scale.abs() > 0) or not bool(error <= tolerance * seen.abs().amax()):
        raise ValueError("the denoiser's input is no multiple of the scheduler's sample; cannot steer this pipeline")
    change = steered.double() - original.double()
    kept = change.unflatten(0, (groups, len(sample)))[0][(slice(None), *inside)]
    if bool(change.abs().sum() > groups * kept.abs().sum() * (1 + 1e-6)):
        raise ValueError(
            "steering moved parts of the denoiser's input that are not latents; cannot steer this pipeline"
        )
    return (wide + kept / scale).to(sample.dtype)


class LatentSteering:
    """Applies a steering function at the denoiser calls of one pipeline run, and carries it to the scheduler.

    Args:
        denoiser: The pipeline's denoiser.
        capture: Tells the conditional rows of its calls.
        window: Half-open range of step indices to steer, or a predicate of (step index, number of steps).
        move: (conditional call's arguments, step index) -> moved latents of these rows.
        total: Number of denoising steps.
    """

    def __init__(self, denoiser: nn.Module, capture: Conditioning, window: Any, move: Any, total: Any) -> None:
        self.denoiser, self.capture, self.family = denoiser, capture, capture.family
        self.window, self.move, self.total = window, move, total
        self.step_index = 0
        self.current: SteeredInput | None = None

    def before(
        self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]] | None:
        """Ahead of a denoiser call: steer it if it is the first conditional one of a steered step."""
        latents = kwargs[self.family.latents]
        if self.current is not None:  # a further call of the same step: CFG in two calls, guiders
            if latents.shape == self.current.original.shape and torch.equal(latents, self.current.original):
                return (), {**kwargs, self.family.latents: self.current.steered}
            return None
        if not self.window.contains(self.step_index, self.total()):
            return None
        rows = self.capture.rows(kwargs)
        if rows is None:
            return None
        conditional = latents[rows]
        moved = self.move(rows_of(self.family, kwargs, rows), self.step_index)
        mask = movable(module, self.family, conditional)
        moved = torch.where(mask > 0, moved, conditional)
        self.current = SteeredInput(latents, spread(latents, conditional, moved))
        return (), {**kwargs, self.family.latents: self.current.steered}

    def step(self, step: Any, *args: Any, **kwargs: Any) -> Any:
        """In place of `scheduler.step`: hand it the steered sample."""
        if self.current is not None:
            bound = inspect.signature(step).bind(*args, **kwargs)
            bound.arguments["sample"] = pull_back(bound.arguments["sample"], self.current)
            args, kwargs = bound.args, bound.kwargs
        self.current = None
        result = step(*args, **kwargs)
        self.step_index += 1
        return result
