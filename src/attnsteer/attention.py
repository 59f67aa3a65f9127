"""The attention seam: the one place that meets diffusers' attention, and sees query, key and value of it.

A `Seam` finds the attention modules of a denoiser that read text (their roles come from the family's row) and says,
as a list of changes, how to route their attention operation through `Seam.handle`. `attnsteer.install` applies the
changes and takes them back. Two drivers:

* Driver A, for processors that call diffusers' `dispatch_attention_fn`: a private attention backend on the processor,
  which hands sub-sequences to the backend it replaced, so that flash, sage and the like keep working.
* Driver B, for processors that call `scaled_dot_product_attention`: hooks on the attention module enter a function
  mode for the duration of that module's call, so a recomputation under gradient checkpointing is seen too.
"""

import itertools
from collections.abc import Callable, Iterator, MutableMapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Literal, Protocol

import torch
import torch.nn.functional as F
from diffusers.models import attention_dispatch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from attnsteer.families import Family, TextAttention
from attnsteer.segments import Attend, Combine, Rows, Spans, segmented_attention


class GuidanceBypassedError(RuntimeError):
    """An attention module that reads text ran, but its attention operation was not seen."""


@dataclass(frozen=True, eq=False)
class Hook:
    """A forward hook to register on a module; both kinds receive keyword arguments."""

    module: nn.Module
    when: Literal["before", "after"]
    function: Callable[..., Any]


@dataclass(frozen=True, eq=False)
class Attribute:
    """An instance attribute to set on any object."""

    owner: object
    name: str
    value: object


@dataclass(frozen=True, eq=False)
class Entry:
    """An entry to add to a mapping."""

    mapping: MutableMapping[Any, Any]
    key: object
    value: object


Change = Hook | Attribute | Entry


@dataclass(frozen=True, eq=False)
class TextLayer:
    """An attention module that reads text, at its place in the order of execution."""

    index: int
    name: str
    module: nn.Module
    reads: TextAttention


@dataclass(frozen=True)
class PlainAttention:
    """The attention operation that the seam replaced.

    Args:
        attend: (query, key, value, mask) -> output, all (batch, heads, tokens, head_dim).
        scale: Factor on the logits; None is 1 / sqrt(head_dim).
        mergeable: Whether PyTorch's own kernels may compute parts of it instead.
        causal: Whether it hides later tokens from earlier ones.
    """

    attend: Attend
    scale: float | None
    mergeable: bool
    causal: bool


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
        if plain.causal or (layout.rows is not None and query.shape[0] != layout.batch):
            raise ValueError(
                f"{layer.name} cannot be guided: its attention is causal or its batch ({query.shape[0]} rows) is not "
                f"the denoiser's ({layout.batch} rows)"
            )
        combine = self.combine if layer.name in self.guided_layers else None
        options = {"mask": mask, "rows": layout.rows, "scale": plain.scale, "merge": plain.mergeable}
        return segmented_attention(query, key, value, spans, combine, plain.attend, **options)

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
            own = processors.count(id(processor)) == 1
            if own and hasattr(processor, "_attention_backend"):
                yield from _private_backend(self, layer, processor)
            else:
                yield from _function_mode(self, layer)

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
    for name, module in modules.items():
        block = modules[name.rpartition(".")[0]]
        for reads in family.attention:
            if fnmatchcase(name, reads.modules) and (
                not reads.when or _has(module, reads.when) or _has(block, reads.when)
            ):
                place = next((i for i, part in enumerate(family.order) if name.startswith(part)), 0)
                found.append((place, name, reads))
                break
    found.sort(key=lambda entry: entry[0])
    return [TextLayer(i, name, modules[name], reads) for i, (_, name, reads) in enumerate(found)]


def _has(module: nn.Module, name: str) -> bool:
    """Whether the module itself (not its configuration, which diffusers also answers for) has a truthy attribute."""
    return any(bool(space.get(name)) for space in (vars(module), module._modules, module._parameters))


def select_layers(layers: list[TextLayer], wanted: "tuple[str | int, ...] | list[str | int] | None") -> frozenset[str]:
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


_serial = itertools.count()


def _private_backend(seam: Seam, layer: TextLayer, processor: Any) -> Iterator[Change]:
    """Driver A: a backend of diffusers' registry that exists for one processor, for the time of the installation."""
    replaced = processor._attention_backend
    registry = attention_dispatch._AttentionBackendRegistry
    name = f"attnsteer_{next(_serial)}"
    member = str.__new__(attention_dispatch.AttentionBackendName, name)
    member._name_, member._value_ = name, name

    def attention(query: Tensor, key: Tensor, value: Tensor, **kwargs: Any) -> Tensor:
        if kwargs.pop("_parallel_config", None) is not None:
            raise ValueError("context parallel attention cannot be guided; disable it with parallel_config=None")
        mask = kwargs.pop("attn_mask", None)

        def attend(q: Tensor, k: Tensor, v: Tensor, m: Tensor | None) -> Tensor:
            tokens_first = (t.transpose(1, 2) for t in (q, k, v))
            known = {k: kwargs[k] for k in ("dropout_p", "is_causal", "scale", "enable_gqa") if k in kwargs}
            extra = {k: v for k, v in kwargs.items() if k not in known}
            out = attention_dispatch.dispatch_attention_fn(
                *tokens_first, attn_mask=m, **known, attention_kwargs=extra, backend=replaced
            )
            return out.transpose(1, 2)

        active = registry.get_active_backend()[0] if replaced is None else replaced
        plain = PlainAttention(attend, kwargs.get("scale"), _is_native(active), bool(kwargs.get("is_causal")))
        out = seam.handle(layer, query.transpose(1, 2), key.transpose(1, 2), value.transpose(1, 2), mask, plain)
        return out.transpose(1, 2)

    known_names = frozenset().union(*registry._supported_arg_names.values())
    yield Entry(registry._backends, member, attention)
    yield Entry(registry._constraints, member, [])
    yield Entry(registry._supported_arg_names, member, set(known_names))
    yield Attribute(processor, "_attention_backend", member)


def _is_native(backend: Any) -> bool:
    return "native" in str(getattr(backend, "value", backend))


class _AttentionMode(TorchFunctionMode):
    """Routes `scaled_dot_product_attention` through the seam."""

    def __init__(self, seam: Seam, layer: TextLayer) -> None:
        super().__init__()
        self.seam, self.layer = seam, layer

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is not F.scaled_dot_product_attention:
            return func(*args, **(kwargs or {}))
        return _scaled_dot_product(self.seam, self.layer, *args, **(kwargs or {}))


def _scaled_dot_product(
    seam: Seam,
    layer: TextLayer,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    **kwargs: Any,
) -> Tensor:
    def attend(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        out: Tensor = F.scaled_dot_product_attention(
            q, k, v, attn_mask=mask, dropout_p=dropout_p, is_causal=is_causal, **kwargs
        )
        return out

    plain = PlainAttention(attend, kwargs.get("scale"), dropout_p == 0.0, is_causal)
    return seam.handle(layer, query, key, value, attn_mask, plain)


def _function_mode(seam: Seam, layer: TextLayer) -> Iterator[Change]:
    """Driver B: a function mode that is entered and left with the attention module's call."""
    entered: list[_AttentionMode] = []

    def enter(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        mode = _AttentionMode(seam, layer)
        mode.__enter__()
        entered.append(mode)

    def leave(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        if entered:
            entered.pop().__exit__(None, None, None)

    yield Hook(layer.module, "before", enter)
    yield Hook(layer.module, "after", leave)
