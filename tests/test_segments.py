"""Segmented attention against dense attention with the two texts hidden from each other by a mask."""

import pytest
import torch

from attnsteer import segments
from attnsteer.segments import Spans, segmented_attention

HEADS, WIDTH = 3, 8
# name: positive, negative, image tokens before and after the texts among the keys, texts and image among the queries
CASES = {
    "cross": (5, 4, 0, 0, False, 11),
    "joint, text first": (5, 4, 0, 11, True, 11),
    "joint, text last": (5, 7, 11, 0, True, 11),
    "joint, text in the middle": (5, 4, 3, 8, True, 11),
    "hybrid, text first": (5, 4, 0, 11, False, 11),
    "hybrid, text last": (4, 5, 11, 0, False, 11),
    "text only": (5, 4, 0, 0, True, 0),
}


def combine(positive, negative):
    return positive + 0.3 * (positive - negative).square() / (1 + positive.norm(dim=-1, keepdim=True))


def attend(query, key, value, mask):
    logits = query @ key.transpose(-1, -2) / WIDTH**0.5
    if mask is not None:
        logits = logits.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else logits + mask
    return logits.softmax(-1) @ value


def setup(case, batch=3, dtype=torch.float32, seed=0):
    positive, negative, before, after, text_queries, image = CASES[case]
    draw = torch.Generator().manual_seed(seed)
    length = before + positive + negative + after
    queries = positive + negative + image if text_queries else image
    tensors = [torch.randn(batch, HEADS, n, WIDTH, generator=draw).to(dtype) for n in (queries, length, length)]
    spans = Spans(positive, negative, before, before if text_queries else None)
    return tensors, spans


def kinds(length, spans, start):
    kind = torch.zeros(length, dtype=torch.long)
    if start is not None:
        kind[start : start + spans.positive] = 1
        kind[start + spans.positive : start + spans.positive + spans.negative] = 2
    return kind


def oracle(query, key, value, spans, rows=slice(None), mask=None):
    """Dense attention in float64, once per text, with everything that a token must not see masked out."""
    query, key, value = query.double(), key.double(), value.double()
    who, what = kinds(query.shape[-2], spans, spans.query_start), kinds(key.shape[-2], spans, spans.key_start)
    outputs = []
    for text in (1, 2):
        seen = (what[None] == 0) | (what[None] == torch.where(who[:, None] == 0, text, who[:, None]))
        hidden = torch.zeros(seen.shape, dtype=torch.float64).masked_fill(~seen, -torch.inf)
        extra = 0.0 if mask is None else mask.double()
        outputs.append(attend(query, key, value, hidden + extra))
    first, second = (out.transpose(1, 2).flatten(2) for out in outputs)
    result = first.clone()
    image = who == 0
    part = result[rows]
    part[:, image] = combine(first[rows][:, image], second[rows][:, image])
    result[rows] = part
    return result.unflatten(2, (HEADS, WIDTH)).transpose(1, 2)


@pytest.mark.parametrize("merge", [True, False])
@pytest.mark.parametrize("rows", [None, slice(1, 3), torch.tensor([0, 2])], ids=["all", "slice", "indices"])
@pytest.mark.parametrize("case", CASES)
def test_equals_dense_attention(case, rows, merge):
    (query, key, value), spans = setup(case)
    result = segmented_attention(query, key, value, spans, combine, attend, rows=rows, merge=merge)
    expected = oracle(query, key, value, spans, slice(None) if rows is None else rows)
    torch.testing.assert_close(result.double(), expected, atol=3e-6, rtol=1e-5)


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("shape", ["keys", "queries", "heads"])
def test_masks_take_the_plain_way(case, shape):
    (query, key, value), spans = setup(case)
    sizes = {"keys": (3, 1, 1), "queries": (1, 1, query.shape[-2]), "heads": (3, HEADS, query.shape[-2])}[shape]
    mask = torch.randn(*sizes, key.shape[-2], generator=torch.Generator().manual_seed(5))
    result = segmented_attention(query, key, value, spans, combine, attend, mask=mask, rows=slice(0, 2))
    torch.testing.assert_close(
        result.double(), oracle(query, key, value, spans, slice(0, 2), mask), atol=3e-6, rtol=1e-5
    )


def test_boolean_masks():
    (query, key, value), spans = setup("joint, text first")
    mask = torch.ones(3, 1, 1, key.shape[-2], dtype=torch.bool)
    mask[1, ..., 2], mask[2, ..., 6] = False, False
    additive = torch.zeros(mask.shape).masked_fill(~mask, -torch.inf)
    result = segmented_attention(query, key, value, spans, combine, attend, mask=mask)
    torch.testing.assert_close(result.double(), oracle(query, key, value, spans, mask=additive), atol=3e-6, rtol=1e-5)


@pytest.mark.parametrize("case", ["cross", "joint, text first", "hybrid, text last"])
def test_without_combination_the_output_is_that_of_the_positive_text(case):
    (query, key, value), spans = setup(case)
    calls = []

    def counted(*args):
        calls.append(args)
        return attend(*args)

    result = segmented_attention(query, key, value, spans, None, counted, merge=False)
    first = segmented_attention(query, key, value, spans, lambda positive, _: positive, attend)
    torch.testing.assert_close(result, first, atol=3e-6, rtol=1e-5)
    assert len(calls) == (1 if spans.query_start is None else 3)  # never the negative text for image queries


def test_merging_attends_to_the_image_once(monkeypatch):
    (query, key, value), spans = setup("joint, text first")
    lengths = []

    def kernel(q, k, v, scale):
        lengths.append((q.shape[-2], k.shape[-2]))
        return segments._cpu_flash(q, k, v, scale)

    monkeypatch.setattr(segments, "log_sum_exp_kernel", lambda *_: kernel)
    segmented_attention(query, key, value, spans, combine, attend)
    assert sorted(lengths) == sorted([(20, 11), (5, 5), (4, 4), (11, 5), (11, 4)])


@pytest.mark.parametrize("case", ["cross", "joint, text last", "hybrid, text first"])
def test_gradients_flow_and_are_right(case):
    (query, key, value), spans = setup(case, batch=1, dtype=torch.float64)
    inputs = [t.requires_grad_(True) for t in (query, key, value)]
    assert segments.log_sum_exp_kernel(*inputs) is None
    result = segmented_attention(*inputs, spans, combine, attend)
    expected = oracle(*inputs, spans)
    weight = torch.linspace(-1, 1, result.numel(), dtype=torch.float64).view_as(result)
    got, want = (torch.autograd.grad((out * weight).sum(), inputs) for out in (result, expected))
    for first, second in zip(got, want, strict=True):
        torch.testing.assert_close(first, second)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 3e-2), (torch.float16, 5e-3)])
def test_half_precision(dtype, tolerance):
    (query, key, value), spans = setup("joint, text first", dtype=dtype)
    result = segmented_attention(query, key, value, spans, combine, attend)
    assert result.dtype == dtype
    expected = oracle(query, key, value, spans)
    torch.testing.assert_close(result.double(), expected, atol=tolerance, rtol=tolerance)


def test_a_scale_of_its_own():
    (query, key, value), spans = setup("joint, text first")
    factor = 0.7
    expected = oracle(query * factor * WIDTH**0.5, key, value, spans)
    result = segmented_attention(query, key, value, spans, combine, attend, scale=factor)
    torch.testing.assert_close(result.double(), expected, atol=3e-6, rtol=1e-5)


def test_large_logits_stay_finite():
    (query, key, value), spans = setup("joint, text first")
    result = segmented_attention(60 * query, key, value, spans, combine, attend)
    torch.testing.assert_close(result.double(), oracle(60 * query, key, value, spans), atol=1e-4, rtol=1e-4)
