"""Denoisers of a given `Size` and calls of them: imitated without memory, or real with random weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import diffusers
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from attnsteer.bench.sizes import Size
from attnsteer.families import Family, family_of


@dataclass(frozen=True)
class Call:
    """Arguments of one denoiser call.

    Attributes:
        arguments: By name, with the positive text.
        negative: The text inputs of a negative text of the same length.
    """

    arguments: dict[str, Any]
    negative: dict[str, Tensor]


def build(size: Size) -> nn.Module:
    """The denoiser with random weights, in float32, frozen. Under `imitation()` it takes no memory."""
    denoiser: nn.Module = getattr(diffusers, size.denoiser)(**size.config)
    return denoiser.eval().requires_grad_(False)


def imitation() -> FakeTensorMode:
    """A mode in which tensors have shapes but no values, and claim to be on the CPU.

    Unlike tensors on the meta device they take the code paths of real ones, the fused attention kernels included.
    """
    return FakeTensorMode(allow_non_fake_inputs=True)


def example_call(
    size: Size, denoiser: nn.Module, batch: int = 1, device: str = "cpu", dtype: torch.dtype = torch.float32
) -> Call:
    """A call of `batch` rows with random arguments."""
    family = family_of(denoiser)
    main = family.text[0].name

    def draw(shape: Any) -> Any:
        if isinstance(shape, Mapping):
            return {name: draw(entry) for name, entry in shape.items()}
        return torch.randn(batch, *shape, device=device).to(dtype)

    arguments = {family.latents: draw(size.latents), main: draw(size.text)}
    arguments |= {name: draw(shape) for name, shape in size.inputs.items()}
    return Call(arguments, {main: draw(size.text)})


def with_positions(size: Size, family: Family, call: Call, device: str = "cpu") -> Call:
    """The call with image and text positions, for denoisers that take them. They are real even in an imitation."""
    if size.grid is None:
        return call
    rows, columns = size.grid
    picture = torch.zeros(rows, columns, 3, device=device)
    picture[..., 1] += torch.arange(rows, device=device)[:, None]
    picture[..., 2] += torch.arange(columns, device=device)[None]
    names = [text.name for text in family.text if text.kind == "positions"]
    text = {name: torch.zeros(size.text[0], 3, device=device) for name in names}
    return Call({**call.arguments, "img_ids": picture.flatten(0, 1), **text}, {**call.negative, **text})
