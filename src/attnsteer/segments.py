"""Segmented attention: one attention operation over image tokens and two texts that must not see each other.

The sequence holds image tokens X and, side by side, the positive text P and the negative text N. P reads P and X,
N reads N and X, and X reads the two texts separately:

    Z+ = attention(X, {P, X})        Z- = attention(X, {N, X})        output(X) = combine(Z+, Z-)

Cross-attention has X only as queries and text only as keys; joint attention has everything on both sides; hybrid
attention has X as queries and both as keys; text-only attention has no X.

X attends to X only once: that part is computed with its log-sum-exp and merged with the part of each text, as flash
decoding does (Dao et al. 2023):  out = sum_i exp(lse_i - lse) out_i,  lse = logsumexp_i lse_i.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

Rows: TypeAlias = slice | Tensor | None
"""Batch rows: a slice, a tensor of row indices, or None for all."""

Combine = Callable[[Tensor, Tensor], Tensor]
Attend = Callable[[Tensor, Tensor, Tensor, Tensor | None], Tensor]
LogSumExpKernel = Callable[[Tensor, Tensor, Tensor, float | None], tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Spans:
    """Where the two texts lie in one attention operation; the negative one follows the positive one.

    Args:
        positive: Number of positive text tokens.
        negative: Number of negative text tokens (0 when only one text is present).
        key_start: Index of the first positive token among the keys.
        query_start: The same among the queries; None when no query is a text token.
    """

    positive: int
    negative: int
    key_start: int
    query_start: int | None


@dataclass(frozen=True)
class _Parts:
    """A sequence cut into image, positive and negative tokens; None where there is no such token."""

    image: Tensor | None
    positive: Tensor | None
    negative: Tensor | None


def segmented_attention(
    query: Float[Tensor, "batch heads queries head_dim"],
    key: Float[Tensor, "batch heads keys head_dim"],
    value: Float[Tensor, "batch heads keys head_dim"],
    spans: Spans,
    combine: Combine | None,
    attend: Attend,
    *,
    mask: Tensor | None = None,
    rows: Rows = None,
    scale: float | None = None,
    merge: bool = True,
) -> Float[Tensor, "batch heads queries head_dim"]:
    """Attention in which the two texts do not see each other and image queries combine what both give them.

    Args:
        query: Queries, in the order of `spans`.
        key: Keys.
        value: Values.
        spans: Where the texts lie.
        combine: (Z+, Z-) -> output, both (rows, image tokens, heads x head_dim). None: the output is Z+.
        attend: Plain attention (query, key, value, mask) -> output, in the layout of `query`.
        mask: Additive or boolean mask that broadcasts to (batch, heads, queries, keys).
        rows: Batch rows whose image queries read the negative text; the others get Z+.
        scale: Factor on the logits; None is 1 / sqrt(head_dim). Must be what `attend` uses.
        merge: Allow the merged evaluation. It is used where the keys hold image tokens, no mask is given, no
            gradient is needed and a kernel returns the log-sum-exp; elsewhere `attend` runs once per text.

    Returns: The attention output. Merged and plain evaluation agree to rounding.
    """
    has_image_keys = key.shape[-2] > spans.positive + spans.negative
    kernel = log_sum_exp_kernel(query, key, value) if merge and mask is None and has_image_keys else None
    if kernel is not None:
        return _merged(query, key, value, spans, combine, kernel, rows, scale)
    return _plain(query, key, value, spans, combine, attend, mask, rows)


def _merged(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    spans: Spans,
    combine: Combine | None,
    kernel: LogSumExpKernel,
    rows: Rows,
    scale: float | None,
) -> Tensor:
    q, k, v = (
        _cut(query, spans, spans.query_start),
        _cut(key, spans, spans.key_start),
        _cut(value, spans, spans.key_start),
    )
    out, lse = kernel(query, _present(k.image), _present(v.image), scale)
    out_parts, lse_parts = _cut(out, spans, spans.query_start), _cut(lse[..., None], spans, spans.query_start)

    def joined(tokens: Tensor, keys: Tensor, values: Tensor, seen: Tensor, seen_lse: Tensor) -> Tensor:
        text, text_lse = kernel(tokens, keys, values, scale)
        weight = torch.sigmoid(seen_lse - text_lse[..., None].to(seen_lse.dtype))
        return torch.lerp(text.to(weight.dtype), seen.to(weight.dtype), weight).to(tokens.dtype)

    positive, negative, image = out_parts.positive, out_parts.negative, out_parts.image
    if q.positive is not None:
        positive = joined(
            q.positive, _present(k.positive), _present(v.positive), _present(positive), _present(lse_parts.positive)
        )
    if q.negative is not None:
        negative = joined(
            q.negative, _present(k.negative), _present(v.negative), _present(negative), _present(lse_parts.negative)
        )
    if q.image is not None:
        seen, seen_lse = _present(image), _present(lse_parts.image)
        image = joined(q.image, _present(k.positive), _present(v.positive), seen, seen_lse)
        if combine is not None and k.negative is not None:
            chosen = [_take(t, rows) for t in (q.image, k.negative, _present(v.negative), seen, seen_lse)]
            image = _combined(image, joined(*chosen), combine, rows)
    return _rejoin(_Parts(image, positive, negative), spans.query_start)


def _plain(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    spans: Spans,
    combine: Combine | None,
    attend: Attend,
    mask: Tensor | None,
    rows: Rows,
) -> Tensor:
    q, k, v = (
        _cut(query, spans, spans.query_start),
        _cut(key, spans, spans.key_start),
        _cut(value, spans, spans.key_start),
    )
    allowed = _cut_mask(mask, spans, query.shape[-2], key.shape[-2])

    def seen_by(who: str, text: str, only: Rows = None) -> Tensor:
        keys, values = (_chain(getattr(part, text), part.image) for part in (k, v))
        tokens = _present(getattr(q, who))
        bias = None if mask is None else _chain(allowed[who, text], allowed[who, "image"], dim=-1)
        return attend(_take(tokens, only), _take(keys, only), _take(values, only), _take_mask(bias, only))

    positive = None if q.positive is None else seen_by("positive", "positive")
    negative = None if q.negative is None else seen_by("negative", "negative")
    image = None if q.image is None else seen_by("image", "positive")
    if image is not None and combine is not None and k.negative is not None:
        image = _combined(image, seen_by("image", "negative", rows), combine, rows)
    return _rejoin(_Parts(image, positive, negative), spans.query_start)


def _combined(positive: Tensor, negative: Tensor, combine: Combine, rows: Rows) -> Tensor:
    chosen = _take(positive, rows)
    heads = chosen.shape[1]
    flat = combine(chosen.transpose(1, 2).flatten(2), negative.transpose(1, 2).flatten(2))
    guided = flat.unflatten(2, (heads, -1)).transpose(1, 2)
    if rows is None:
        return guided
    if isinstance(rows, slice):
        first, last, _ = rows.indices(positive.shape[0])
        return torch.cat([positive[:first], guided, positive[last:]])
    return positive.index_copy(0, rows.to(positive.device), guided)


def log_sum_exp_kernel(query: Tensor, key: Tensor, value: Tensor) -> LogSumExpKernel | None:
    """The fused kernel that returns the log-sum-exp for tensors like these; None where there is none.

    No fused kernel differentiates through its log-sum-exp, so None under autograd as well.
    """
    if torch.is_grad_enabled() and (query.requires_grad or key.requires_grad or value.requires_grad):
        return None
    if query.shape[1] != key.shape[1] or query.shape[-1] != value.shape[-1]:
        return None
    if query.device.type == "cpu":
        return _cpu_flash
    if query.device.type != "cuda" or query.shape[-1] % 8 != 0:
        return None
    if query.dtype in (torch.float16, torch.bfloat16) and query.shape[-1] <= 256:
        return _cuda_flash
    return _cuda_efficient if query.dtype == torch.float32 else None


def _cpu_flash(query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> tuple[Tensor, Tensor]:
    out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(query, key, value, scale=scale)
    return out, lse


def _cuda_flash(query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> tuple[Tensor, Tensor]:
    result = torch.ops.aten._scaled_dot_product_flash_attention(query, key, value, scale=scale)
    return result[0], result[1]


def _cuda_efficient(query: Tensor, key: Tensor, value: Tensor, scale: float | None) -> tuple[Tensor, Tensor]:
    result = torch.ops.aten._scaled_dot_product_efficient_attention(query, key, value, None, True, scale=scale)
    return result[0], result[1][..., : query.shape[-2]]  # this kernel pads its log-sum-exp to a multiple of 32


def _cut(tokens: Tensor, spans: Spans, start: int | None, dim: int = -2) -> _Parts:
    if start is None:
        return _Parts(tokens, None, None)
    length = tokens.shape[dim]
    middle, stop = start + spans.positive, start + spans.positive + spans.negative
    before, after = _piece(tokens, 0, start, dim), _piece(tokens, stop, length, dim)
    image = before if after is None else after if before is None else torch.cat([before, after], dim)
    return _Parts(image, _piece(tokens, start, middle, dim), _piece(tokens, middle, stop, dim))


def _piece(tokens: Tensor, start: int, stop: int, dim: int) -> Tensor | None:
    return tokens.narrow(dim, start, stop - start) if stop > start else None


def _rejoin(parts: _Parts, start: int | None) -> Tensor:
    if start is None:
        return _present(parts.image)
    texts = [part for part in (parts.positive, parts.negative) if part is not None]
    if parts.image is None:
        return torch.cat(texts, -2)
    before, after = parts.image[..., :start, :], parts.image[..., start:, :]
    return torch.cat([before, *texts, after], -2)


def _cut_mask(mask: Tensor | None, spans: Spans, queries: int, keys: int) -> dict[tuple[str, str], Tensor | None]:
    if mask is None:
        return {}
    mask = mask.expand(*mask.shape[:-2], queries, keys)
    by_query = _cut(mask, spans, spans.query_start)
    cut: dict[tuple[str, str], Tensor | None] = {}
    for who in ("image", "positive", "negative"):
        part = getattr(by_query, who)
        by_key = _Parts(None, None, None) if part is None else _cut(part, spans, spans.key_start, dim=-1)
        cut.update({(who, text): getattr(by_key, text) for text in ("image", "positive", "negative")})
    return cut


def _chain(first: Tensor | None, second: Tensor | None, dim: int = -2) -> Tensor:
    present = [part for part in (first, second) if part is not None]
    return present[0] if len(present) == 1 else torch.cat(present, dim)


def _take(tensor: Tensor, rows: Rows) -> Tensor:
    return tensor if rows is None else tensor[rows]


def _take_mask(mask: Tensor | None, rows: Rows) -> Tensor | None:
    return mask if mask is None or mask.ndim < 4 or mask.shape[0] == 1 else _take(mask, rows)


def _present(tensor: Tensor | None) -> Tensor:
    if tensor is None:
        raise ValueError("the spans of the texts do not fit the attention operation")
    return tensor
