"""The attention seam: the one place that meets diffusers' attention, and sees query, key and value of it.

A `Seam` finds the attention modules of a denoiser that read text (their roles come from the family's row) and says,
as a list of changes, how to route their attention operation through `Seam.handle`; `attnsteer.drivers` has the two
ways to do so.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from attnsteer.changes import Change, Hook
from attnsteer.drivers import PlainAttention, function_mode, private_backend
from attnsteer.families import Family, TextAttention
from attnsteer.segments import Combine, Rows, Spans, segmented_attention


class GuidanceBypassedError(RuntimeError):
    """An attention module that reads text ran, but its attention operation was not seen."""


@dataclass(frozen=True, eq=False)
class TextLayer:
    """An attention module that reads text, at its place in the order of execution."""

    index: int
    name: str
    module: nn.Module
    reads: TextAttention


@dataclass(frozen=True)
class Layout:
    """What one denoiser call holds.

    Args:
        positive: Number of positive text tokens.
        negative: Number of negative text tokens behind them; 0 when the call is not guided.
        batch: Batch rows of the call.
        rows: Batch rows to guide; None is all.
        arguments: The keywords of the call.
    """

    positive: int
    negative: int
    batch: int
    rows: Rows
    arguments: dict[str, Any]


class Reader(Protocol):
    """Something that looks at query and key of the layers that read text."""

    def read(
        self, layer: TextLayer, query: Tensor, key: Tensor, mask: Tensor | None, spans: Spans, scale: float | None
    ) -> None:
        """Look at one attention operation; tensors are (batch, heads, tokens, head_dim)."""


class Seam:
    """Routes the attention operations of one denoiser that read text.

    Args:
        denoiser: The (uncompiled) denoiser.
        family: Its row.
    """

    def __init__(self, denoiser: nn.Module, family: Family) -> None:
        self.layers = text_layers(denoiser, family)
        self.layout: Layout | None = None
        self.combine: Combine | None = None
        self.guided_layers: frozenset[str] = frozenset()
        self.readers: list[Reader] = []
        self.set_aside: dict[str, Tensor] = {}
        self.called: set[str] = set()
        self.hit: set[str] = set()

    def begin(self, layout: Layout | None) -> None:
        """Start one call of the denoiser; None lets every attention operation pass."""
        self.layout = layout
        self.set_aside.clear()
        self.called.clear()
        self.hit.clear()

    def check_hits(self) -> None:
        """Check that every layer that reads text and ran was also seen.

        Raises: GuidanceBypassedError if one was not.
        """
        missed = [layer for layer in self.layers if layer.name in self.called - self.hit]
        if self.called and not missed:
            return
        processors = sorted({type(getattr(layer.module, "processor", None)).__name__ for layer in missed})
        detail = f"{len(missed)} of {len(self.called)}, with {', '.join(processors)}" if missed else "none of them ran"
        raise GuidanceBypassedError(
            f"attention layers that read the text were not seen ({detail}; e.g. {(missed or self.layers)[0].name}). "
            "Attention slicing, xformers and eager processors bypass attnsteer: call "
            "pipe.disable_attention_slicing() or pipe.disable_xformers_memory_efficient_attention(), or go back to "
            "the model's default processors with set_default_attn_processor()"
        )

    def handle(
        self, layer: TextLayer, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, plain: PlainAttention
    ) -> Tensor:
        """Compute one attention operation; tensors are (batch, heads, tokens, head_dim)."""
        layout = self.layout
        if layout is None:
            return plain.attend(query, key, value, mask)
        if layer.name in self.set_aside:
            key, value = self._with_set_aside(layer, key, value, layout)
        spans = spans_of(layer.reads, layout, query.shape[-2], key.shape[-2])
        if spans is None:
            return plain.attend(query, key, value, mask)
        self.hit.add(layer.name)
        for reader in self.readers:
            reader.read(layer, query, key, mask, spans, plain.scale)
        if layout.negative == 0:
            return plain.attend(query, key, value, mask)
        if plain.causal or query.shape[0] % layout.batch != 0:
            raise ValueError(
                f"{layer.name} cannot be guided: its attention is causal, or its batch ({query.shape[0]} rows) is no "
                f"multiple of the denoiser's ({layout.batch} rows)"
            )
        combine = self.combine if layer.name in self.guided_layers else None
        return segmented_attention(
            query,
            key,
            value,
            spans,
            combine,
            plain.attend,
            mask=mask,
            rows=_repeated(layout.rows, query.shape[0] // layout.batch),
            scale=plain.scale,
            merge=plain.mergeable,
        )

    def _with_set_aside(self, layer: TextLayer, key: Tensor, value: Tensor, layout: Layout) -> tuple[Tensor, Tensor]:
        if layer.reads.probe is None or key.shape[-2] != layout.positive:
            return key, value
        probe, module, text = layer.reads.probe, layer.module, self.set_aside.pop(layer.name)
        if probe.fused and getattr(module, "fused_projections", False):
            negative_key, negative_value = getattr(module, probe.fused)(text).chunk(2, dim=-1)
        else:
            negative_key, negative_value = getattr(module, probe.key)(text), getattr(module, probe.value)(text)
        if probe.norm:
            negative_key = getattr(module, probe.norm)(negative_key)
        heads = key.shape[1]
        negative_key, negative_value = (
            t.unflatten(2, (heads, -1)).transpose(1, 2).to(key.dtype) for t in (negative_key, negative_value)
        )
        return torch.cat([key, negative_key], -2), torch.cat([value, negative_value], -2)

    def changes(self) -> Iterator[Change]:
        """All changes that route the layers through `handle`."""
        processors = [id(getattr(layer.module, "processor", None)) for layer in self.layers]
        for layer in self.layers:
            yield Hook(layer.module, "before", self._note(layer))
            if layer.reads.probe is not None:
                yield Hook(layer.module, "before", self._take_aside(layer))
            processor = getattr(layer.module, "processor", None)
            handle = functools.partial(self.handle, layer)
            if processors.count(id(processor)) == 1 and hasattr(processor, "_attention_backend"):
                yield from private_backend(processor, handle)
            else:
                yield from function_mode(layer.module, handle)

    def _note(self, layer: TextLayer) -> Callable[..., None]:
        def note(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self.called.add(layer.name)

        return note

    def _take_aside(self, layer: TextLayer) -> Callable[..., Any]:
        def take_aside(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            layout = self.layout
            if layout is None or layout.negative == 0:
                return None
            keyword = "encoder_hidden_states"
            context = kwargs[keyword] if keyword in kwargs else args[1]
            kept = context.shape[1] - layout.negative
            self.set_aside[layer.name] = context[:, kept:]
            if keyword in kwargs:
                return args, {**kwargs, keyword: context[:, :kept]}
            return (args[0], context[:, :kept], *args[2:]), kwargs

        return take_aside


def text_layers(denoiser: nn.Module, family: Family) -> list[TextLayer]:
    """The attention modules of a denoiser that read text, in execution order."""
    modules = dict(denoiser.named_modules())
    found: list[tuple[int, str, TextAttention]] = []
    config = getattr(denoiser, "config", {})
    for name, module in modules.items():
        block = modules[name.rpartition(".")[0]]
        for reads in family.attention:
            if fnmatchcase(name, reads.modules) and (
                not reads.when or _has(module, reads.when) or _has(block, reads.when)
            ):
                place = next((i for i, part in enumerate(family.order) if name.startswith(part)), 0)
                found.append((place, name, reads))
                break
    for reads in family.attention:
        count = int(config.get(reads.except_last) or 0) if reads.except_last else 0
        mine = [entry for entry in found if entry[2] is reads]
        found = [entry for entry in found if entry not in mine[len(mine) - count :]] if count else found
    found.sort(key=lambda entry: entry[0])
    return [TextLayer(i, name, modules[name], reads) for i, (_, name, reads) in enumerate(found)]


def _has(module: nn.Module, name: str) -> bool:
    """Whether the module itself (not its configuration, which diffusers also answers for) has a truthy attribute."""
    return any(bool(space.get(name)) for space in (vars(module), module._modules, module._parameters))


def _repeated(rows: Rows, times: int) -> Rows:
    """The rows of a batch in which every row stands `times` times in succession (one for each frame of a video)."""
    if rows is None or times == 1:
        return rows
    if isinstance(rows, slice):
        return slice(rows.start * times, rows.stop * times)
    return (rows[:, None] * times + torch.arange(times)).flatten()


def select_layers(layers: Sequence[TextLayer], wanted: Sequence[str | int] | None) -> frozenset[str]:
    """Names of the layers chosen by name or by index in execution order; None chooses all.

    Raises: ValueError for a layer that does not exist.
    """
    if wanted is None:
        return frozenset(layer.name for layer in layers)
    names = [layer.name for layer in layers]
    for item in wanted:
        if not (item in names if isinstance(item, str) else -len(names) <= item < len(names)):
            raise ValueError(f"no layer {item!r}: give an index below {len(names)}, or a name such as {names[0]!r}")
    return frozenset(item if isinstance(item, str) else names[item] for item in wanted)


def spans_of(reads: TextAttention, layout: Layout, queries: int, keys: int) -> Spans | None:
    """Where the texts lie in an attention operation of a module; None if the operation does not read the text."""
    length = layout.positive + layout.negative
    fits = {
        "cross": keys == length + reads.offset,
        "joint": queries == keys > length,
        "hybrid": keys == length + queries,
        "text": queries == keys == length,
    }[reads.role]
    if not fits:
        return None
    start = reads.offset if reads.text == "first" else keys - length - reads.offset
    return Spans(layout.positive, layout.negative, start, start if reads.role in ("joint", "text") else None)
