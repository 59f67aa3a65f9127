"""A slow second opinion for any denoiser: two forwards, one for each text, that meet at every attention operation.

The stock denoiser runs twice, in two threads. At each attention operation the threads exchange queries and outputs.
Query tokens that are the same in both runs are image tokens; both runs go on with the combined output for them. No
knowledge of families, roles, spans, masks or padding; the texts may differ in length.
"""

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Combine = Callable[[Tensor, Tensor], Tensor]
Align = Callable[[Any, Any], Any]


@dataclass
class _Meeting:
    """Where the two runs wait for each other and exchange values."""

    barrier: threading.Barrier = field(default_factory=lambda: threading.Barrier(2, timeout=60))
    values: list[Any] = field(default_factory=lambda: [None, None])
    role: threading.local = field(default_factory=threading.local)

    def exchange(self, value: Any, meet: Callable[[Any, Any], tuple[Any, Any]]) -> Any:
        place = self.role.place
        self.values[place] = value
        if self.barrier.wait() == 0:
            self.values[:] = meet(*self.values)
        self.barrier.wait()
        return self.values[place]


def lock_step(
    denoiser: nn.Module,
    call: Mapping[str, Any],
    positive: Mapping[str, Any],
    negative: Mapping[str, Any],
    combine: Combine,
    pooling: tuple[str, ...] = (),
    image: slice | None = None,
    apart: tuple[str, ...] = (),
    align: Mapping[str, Align] | None = None,
) -> Any:
    """The guided output of one denoiser call: the first output of the run with the positive text.

    Args:
        denoiser: A stock denoiser.
        call: Keywords without text.
        positive: Keywords with the positive text.
        negative: Keywords with the negative text.
        combine: (Z+, Z-) -> output.
        pooling: Names of modules that turn text into modulation, which is the positive text's in both runs.
        image: Bounds the tokens that can be image tokens, in operations with text queries.
        align: For modules whose output holds positions of the image that depend on the length of the text: (output
            for the positive text, output for the negative one) -> the latter with the image where the former has it.
        apart: Names of modules that hold no image tokens, though queries of theirs may look the same for both texts.
    """
    meeting, outputs, errors = _Meeting(), [None, None], []

    def run(place: int) -> None:
        meeting.role.place, meeting.role.apart = place, False
        text = (positive, negative)[place]
        try:
            with torch.no_grad():
                result = denoiser(**{**call, **text}, return_dict=False)
                outputs[place] = result[0] if isinstance(result, tuple | list) else result
        except BaseException as error:
            errors.append(error)
            meeting.barrier.abort()

    def share(module: nn.Module, args: Any, output: Any) -> Any:
        return meeting.exchange(output, lambda first, second: (first, _first_pooled(first, second)))

    def enter(module: nn.Module, args: Any) -> None:
        meeting.role.apart = True

    def leave(module: nn.Module, args: Any, output: Any) -> None:
        meeting.role.apart = False

    def aligning(how: Align) -> Callable[..., Any]:
        return lambda module, args, output: meeting.exchange(output, lambda a, b: (a, how(a, b)))

    hooks = [denoiser.get_submodule(name).register_forward_hook(share) for name in pooling]
    hooks += [denoiser.get_submodule(name).register_forward_hook(aligning(how)) for name, how in (align or {}).items()]
    hooks += [denoiser.get_submodule(name).register_forward_pre_hook(enter) for name in apart]
    hooks += [denoiser.get_submodule(name).register_forward_hook(leave) for name in apart]
    with _exchanging_attention(meeting, combine, image):
        threads = [threading.Thread(target=run, args=(place,)) for place in (0, 1)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    for hook in hooks:
        hook.remove()
    if errors:
        raise errors[0]
    return outputs[0]


def _first_pooled(first: Any, second: Any) -> Any:
    """Modulation of the first run; a module may also return its text, which stays its own."""
    return (first[0], *second[1:]) if isinstance(first, tuple) else first


@contextmanager
def _exchanging_attention(meeting: _Meeting, combine: Combine, image: slice | None) -> Iterator[None]:
    def meet(first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        (q1, out1), (q2, out2) = first, second
        if len(q1) != len(q2):  # one batch row for each text token: no image tokens
            return out1, out2
        matches = [_same_tokens(a, b, image) for a, b in zip(q1, q2, strict=True)]
        results = out1.clone(), out2.clone()
        for row, (mine, theirs) in enumerate(matches):
            if len(mine):
                guided = combine(out1[row, mine][None], out2[row, theirs][None])[0]
                results[0][row, mine], results[1][row, theirs] = guided, guided
        return results

    def attention(
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        if enable_gqa:
            key, value = (t.repeat_interleave(query.shape[1] // t.shape[1], dim=1) for t in (key, value))
        if query.dtype == torch.float32:
            out = _dense(query, key, value, attn_mask, is_causal, scale)
        else:  # parts of some stock models compute in half precision
            out = stock(query, key, value, attn_mask=attn_mask, is_causal=is_causal, scale=scale)
        if meeting.role.apart:
            return out
        out = out.transpose(1, 2).flatten(2)
        out = meeting.exchange((query.transpose(1, 2).flatten(2), out), meet)
        return out.unflatten(2, (query.shape[1], -1)).transpose(1, 2)

    stock = F.scaled_dot_product_attention
    with mock.patch.object(F, "scaled_dot_product_attention", attention):
        yield


def _dense(
    query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None, is_causal: bool, scale: float | None
) -> Tensor:
    logits = query @ key.transpose(-1, -2) * (query.shape[-1] ** -0.5 if scale is None else scale)
    if attn_mask is not None:
        logits = logits.masked_fill(~attn_mask, -torch.inf) if attn_mask.dtype == torch.bool else logits + attn_mask
    if is_causal:
        logits = logits.masked_fill(~torch.ones(logits.shape[-2:], dtype=torch.bool).tril(), -torch.inf)
    return logits.softmax(-1).nan_to_num() @ value


def _same_tokens(first: Tensor, second: Tensor, image: slice | None) -> tuple[Tensor, Tensor]:
    """Places of the tokens of one row that are the same in both runs, in each of them."""
    limits = (image.stop, image.stop) if image is not None and first.shape[0] > image.stop else (None, None)
    first, second = first[: limits[0]], second[: limits[1]]
    if first.shape == second.shape and torch.allclose(first, second, rtol=1e-4, atol=1e-4):
        everything = torch.arange(first.shape[0])
        return everything, everything
    distances = torch.cdist(first.double(), second.double())
    nearest = distances.min(dim=1)
    mine = torch.nonzero(nearest.values < 1e-4 * first.abs().max())[:, 0]
    return mine, nearest.indices[mine]
