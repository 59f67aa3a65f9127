"""A slow second opinion for rules and for several negative texts: dense attention over a sequence of labelled tokens.

Every token carries a label: 0 image, 1 positive text, 2, 3, ... negative texts. In float64, one softmax at a time.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn

ImageOutput = Callable[[Tensor, Tensor, Tensor, Tensor], Tensor]
"""(queries, keys, values, labels of the keys) of one head, image queries alone -> output."""


def dense(query: Tensor, key: Tensor, value: Tensor, seen: Tensor, bias: Tensor | float = 0.0) -> Tensor:
    """Softmax attention of (tokens, head_dim) tensors to the keys for which `seen` holds."""
    logits = (query @ key.T) / query.shape[-1] ** 0.5 + bias
    return logits.masked_fill(~seen[None], -torch.inf).softmax(-1) @ value


def labelled_attention(
    query: Tensor, key: Tensor, value: Tensor, who: Tensor, what: Tensor, image_output: ImageOutput
) -> Tensor:
    """Attention of (batch, heads, tokens, head_dim) tensors with labels; text reads itself and the image."""
    out = torch.empty_like(query, dtype=torch.float64)
    for row in range(query.shape[0]):
        for head in range(query.shape[1]):
            q, k, v = (t[row, head].double() for t in (query, key, value))
            for label in who.unique().tolist():
                tokens = who == label
                if label == 0:
                    out[row, head, tokens] = image_output(q[tokens], k, v, what)
                else:
                    out[row, head, tokens] = dense(q[tokens], k, v, (what == label) | (what == 0))
    return out


@contextmanager
def stock_attention(labels: Callable[[int, int], tuple[Tensor, Tensor] | None], combine: Any) -> Iterator[None]:
    """Within the block, PyTorch's attention is dense attention with labels.

    Args:
        labels: (number of queries, number of keys) -> labels of both; None leaves the operation alone.
        combine: (query, key, value, who, what) -> output, all heads.
    """
    stock = F.scaled_dot_product_attention

    def attention(query: Tensor, key: Tensor, value: Tensor, **kwargs: Any) -> Tensor:
        found = labels(query.shape[-2], key.shape[-2])
        if found is None:
            return stock(query, key, value, **kwargs)
        return combine(query, key, value, *found).to(query.dtype)

    with mock.patch.object(F, "scaled_dot_product_attention", attention):
        yield


def joined_run(denoiser: nn.Module, call: dict[str, Any], negatives: list[dict[str, Any]], combine: Any) -> Tensor:
    """A stock denoiser on [positive | negatives] text, with dense labelled attention: U-Net, Wan or FLUX.

    For denoisers whose text reaches the image through attention alone, and that treat text token by token.
    """
    texts = [call, *negatives]
    lengths = [text["encoder_hidden_states"].shape[1] for text in texts]
    total = sum(lengths)
    text = torch.cat([torch.full((n,), i + 1) for i, n in enumerate(lengths)])
    both = {**call, "encoder_hidden_states": torch.cat([t["encoder_hidden_states"] for t in texts], 1)}
    if "txt_ids" in call:
        both["txt_ids"] = torch.cat([t["txt_ids"] for t in texts])

    def labels(queries: int, keys: int) -> tuple[Tensor, Tensor] | None:
        if keys == total:
            return torch.zeros(queries, dtype=torch.long), text
        if queries == keys > total and "txt_ids" in call:
            joint = torch.cat([text, torch.zeros(keys - total, dtype=torch.long)])
            return joint, joint
        return None

    with torch.no_grad(), stock_attention(labels, combine):
        output: Tensor = denoiser(**both, return_dict=False)[0]
    return output


def over_outputs(combine: Callable[[Tensor, list[Tensor]], Tensor]) -> Any:
    """Attention whose image queries get combine(Z+, [Z-, ...]), heads flattened."""

    def attention(query: Tensor, key: Tensor, value: Tensor, who: Tensor, what: Tensor) -> Tensor:
        def reading(label: int) -> Tensor:
            return labelled_attention(
                query, key, value, who, what, lambda q, k, v, w: dense(q, k, v, (w == label) | (w == 0))
            )

        outputs = [reading(label) for label in what.unique().tolist() if label > 0]
        image, heads = who == 0, query.shape[1]
        flat = [out[:, :, image].transpose(1, 2).flatten(2) for out in outputs]
        result = outputs[0].clone()
        result[:, :, image] = combine(flat[0], flat[1:]).unflatten(2, (heads, -1)).transpose(1, 2)
        return result

    return attention
