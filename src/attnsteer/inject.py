"""Putting the negative text behind the positive one: at the denoiser's input, and in modules that need it apart.

Every layer that works token by token then handles both texts by itself; only attention (`attnsteer.attention`) and the
modules named in the family's `split` must know where one text ends and the other begins.
"""

import functools
import inspect
from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from attnsteer.attention import Layout, Seam
from attnsteer.changes import Attribute, Change
from attnsteer.families import Family, SplitRun, TextInput
from attnsteer.segments import Rows


def named_arguments(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """All arguments of a call to `module` by name, in new containers.

    Stock forwards remove entries from the dictionaries and lists they are given, so every extra forward needs its own.
    """
    names = list(inspect.signature(type(module).forward).parameters)[1:]
    return {name: fresh(value) for name, value in {**dict(zip(names, args, strict=False)), **kwargs}.items()}


def fresh(value: Any) -> Any:
    """A copy of the plain dictionaries and lists in `value`; everything else (tensors, generators) is shared."""
    if type(value) is dict:
        return {key: fresh(entry) for key, entry in value.items()}
    return [fresh(entry) for entry in value] if type(value) is list else value


def text_length(family: Family, arguments: Mapping[str, Any]) -> int:
    """Number of text tokens in a denoiser call.

    Raises: ValueError if the call has no text.
    """
    main = family.text[0]
    if not isinstance(arguments.get(main.name), Tensor):
        raise ValueError(f"the call of the {family.denoiser} has no {main.name}: pass it by name, as a tensor")
    return int(arguments[main.name].shape[main.axis])


def with_negative(
    family: Family, arguments: Mapping[str, Any], negative: Mapping[str, Any], rows: Rows
) -> tuple[dict[str, Any], Layout]:
    """Join the negative text to the positive one in all text inputs of a denoiser call.

    Args:
        family: The denoiser's row.
        arguments: The call's arguments by name.
        negative: The same text inputs for the negative text; batch of one, of the guided rows or of the whole call.
        rows: Batch rows to guide; None is all.

    Returns: New arguments, and what they hold.

    Raises: ValueError if the negative text is missing, or its batch fits neither the rows nor the call.
    """
    main = family.text[0]
    positive_length, positive = text_length(family, arguments), arguments[main.name]
    if not isinstance(negative.get(main.name), Tensor):
        raise ValueError(
            f"negative must hold {main.name!r}, the text input of {family.denoiser}, got {sorted(negative)}"
        )
    unknown = sorted(set(negative) - {text.name for text in family.text})
    if unknown:
        raise ValueError(f"negative holds {unknown}, not text inputs of {family.denoiser}; remove them")
    if isinstance(rows, slice):
        rows = slice(*rows.indices(positive.shape[0]))
    negative_length = negative[main.name].shape[main.axis]
    joined = dict(arguments)
    for text in family.text:
        first, second = arguments.get(text.name), negative.get(text.name)
        if text.kind == "mask" and (first is None) != (second is None):
            some = second if first is None else first
            first = _ones(positive, positive_length, some) if first is None else first
            second = _ones(negative[main.name], negative_length, some) if second is None else second
        if first is None:
            continue
        if second is None:
            raise ValueError(f"negative must hold {text.name!r} too, because the call has it")
        joined[text.name] = _joined(text, first, second, rows)
    return joined, Layout(positive_length, negative_length, positive.shape[0], rows, joined)


def _ones(tokens: Tensor, length: int, like: Tensor) -> Tensor:
    return torch.ones(tokens.shape[0], length, dtype=like.dtype, device=like.device)


def _joined(text: TextInput, first: Tensor, second: Tensor, rows: Rows) -> Tensor:
    second = second.to(first.device, first.dtype)
    if text.kind == "positions":
        if second.ndim != first.ndim:
            second = second.expand(*first.shape[: first.ndim - second.ndim], *second.shape)
        return torch.cat([first, second], text.axis)
    batch = first.shape[0]
    guided = batch if rows is None else len(range(batch)[rows]) if isinstance(rows, slice) else len(rows)
    if second.shape[0] not in (1, guided, batch):
        raise ValueError(
            f"the negative {text.name} has {second.shape[0]} rows, but the call guides {guided} of {batch} rows; "
            "give one row, one per guided row, or one per row of the call"
        )
    if second.shape[0] == 1:
        second = second.expand(batch, *second.shape[1:])
    if second.shape[0] != batch:
        filled = second[:1].repeat(batch, *(1 for _ in second.shape[1:]))
        filled[rows] = second
        second = filled
    return torch.cat([first, second], text.axis)


def split_changes(denoiser: nn.Module, family: Family, seam: Seam) -> Iterator[Change]:
    """Changes that give each text separately to the modules named in the family's `split`."""
    for name, module in denoiser.named_modules():
        for split in family.split:
            if type(module).__name__ == split.cls and fnmatchcase(name, split.modules):
                yield _split_run(module, split, seam)


def _split_run(module: nn.Module, split: SplitRun, seam: Seam) -> Change:
    forward = module.forward

    @functools.wraps(forward)
    def apart(text: Tensor, *args: Any, **kwargs: Any) -> Any:
        layout = seam.layout
        if layout is None or layout.negative == 0 or text.shape[split.axis] != layout.positive + layout.negative:
            return forward(text, *args, **kwargs)
        positive, negative = text.split([layout.positive, layout.negative], dim=split.axis)
        if split.keep == "positive":
            return forward(positive, *args, **kwargs)
        both = [forward(part, *args, **kwargs) for part in (positive, negative)]
        return torch.cat(both, split.axis)

    return Attribute(module, "forward", apart)
