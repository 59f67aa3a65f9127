"""A slow second opinion: negative guidance by doubling the batch, knowing nothing of families, roles or spans.

The stock denoiser runs on rows [positive text; negative text] with the same latents. Every attention operation is
computed densely; query tokens that are the same in both halves are image tokens, and get the combined output in both.
Texts must be random and of equal length, so that no text token is the same in both halves.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn

Combine = Callable[[Tensor, Tensor], Tensor]


def nag_formula(scale: float, tau: float, alpha: float, norm: int = 1) -> Combine:
    """The paper's equations in float64."""

    def combine(positive: Tensor, negative: Tensor) -> Tensor:
        p, n = positive.double(), negative.double()
        z = p + (scale - 1) * (p - n)
        ratio = z.norm(p=norm, dim=-1, keepdim=True) / p.norm(p=norm, dim=-1, keepdim=True).clamp_min(1e-30)
        z = z * ratio.clamp(max=tau) / ratio.clamp_min(1e-30)
        return (alpha * z + (1 - alpha) * p).to(positive.dtype)

    return combine


def batch_doubled(
    denoiser: nn.Module,
    call: dict[str, Any],
    negative: dict[str, Any],
    combine: Combine,
    pooling: str = "",
    padding: Callable[[int], slice] | None = None,
) -> Tensor:
    """The guided output of one denoiser call. `negative` holds tensors that replace the call's in the second half.

    The module named `pooling` turns text into modulation, which is the positive text's in both halves. Given the
    number of keys, `padding` tells which of them are padding of a shorter negative text.
    """
    both = {}
    for name, value in call.items():
        unbatched = not isinstance(value, Tensor) or value.ndim == 0 or name.endswith("_ids")
        both[name] = value if unbatched else torch.cat([value, negative.get(name, value)])
        if isinstance(value, dict):
            both[name] = {key: torch.cat([entry, entry]) for key, entry in value.items()}
    hook = None
    if pooling:
        pooler = denoiser.get_submodule(pooling)
        hook = pooler.register_forward_hook(lambda module, args, output: torch.cat([output.chunk(2)[0]] * 2))
    with torch.no_grad(), _dense_attention(combine, padding):
        output: Tensor = denoiser(**both, return_dict=False)[0]
    if hook is not None:
        hook.remove()
    return output.chunk(2)[0]


@contextmanager
def _dense_attention(combine: Combine, padding: Callable[[int], slice] | None) -> Iterator[None]:
    def attention(query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, **_: Any) -> Tensor:
        logits = query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5
        if padding is not None:
            logits[len(logits) // 2 :, :, :, padding(key.shape[-2])] = -torch.inf
        out = (logits if attn_mask is None else logits + attn_mask).softmax(-1) @ value
        first, second = out.transpose(1, 2).flatten(2).chunk(2)
        q_first, q_second = query.transpose(1, 2).flatten(2).chunk(2)
        shared = ((q_first - q_second).abs().amax(-1, keepdim=True) < 1e-4 * query.abs().max()).expand_as(first)
        guided = combine(first, second)
        joined = torch.cat([torch.where(shared, guided, first), torch.where(shared, guided, second)])
        return joined.unflatten(2, (query.shape[1], -1)).transpose(1, 2)

    with mock.patch.object(F, "scaled_dot_product_attention", attention):
        yield
