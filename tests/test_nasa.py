"""Negative-away steer attention: the equation, and the equation in stock denoisers."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attnsteer import NASA, guide, guide_denoiser
from attnsteer.negative.nasa import nasa_combine
from tiny import CALLS, build
from tiny.denoisers import case
from tiny.texts import joined_run, over_outputs


def features(tokens=7, channels=24, seed=0, dtype=torch.float32):
    draw = torch.Generator().manual_seed(seed)
    return [torch.randn(tokens, channels, generator=draw).to(dtype) for _ in range(2)]


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 99), scale=st.floats(0.0, 4.0))
def test_equals_the_equation(seed, scale):
    positive, negative = features(seed=seed)
    expected = torch.tensor(
        [
            [p - scale * n for p, n in zip(*rows, strict=True)]
            for rows in zip(positive.tolist(), negative.tolist(), strict=True)
        ]
    )
    torch.testing.assert_close(nasa_combine(positive, negative, scale), expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_off_is_bit_exact_and_zero_rows_stay_zero(dtype):
    positive, negative = features(dtype=dtype)
    assert torch.equal(nasa_combine(positive, negative, 0.0), positive)
    positive[0], negative[0] = 0, 0
    assert torch.equal(nasa_combine(positive, negative, 0.7)[0], torch.zeros_like(positive[0]))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float16, 1e-3), (torch.bfloat16, 8e-3)])
def test_half_precision_at_real_widths(dtype, tolerance):
    positive, negative = (40 * t for t in features(3, 3072))
    positive, negative = positive.to(dtype), negative.to(dtype)
    expected = positive.double() - 0.3 * negative.double()
    result = nasa_combine(positive, negative, 0.3)
    assert result.dtype == dtype
    assert (result.double() - expected).abs().max() <= tolerance * expected.abs().max()


@pytest.mark.parametrize("name", ["sd", "wan", "flux"])
def test_a_stock_denoiser_equals_dense_attention(name):
    example = case(name, batch=1, negative_tokens=5)
    with torch.no_grad():
        plain = example.denoiser(**example.call, return_dict=False)[0]
        with guide_denoiser(example.denoiser, NASA(0.4), negative=example.negative):
            result = example.denoiser(**example.call, return_dict=False)[0]
    attention = over_outputs(lambda positive, negatives: positive - 0.4 * negatives[0])
    expected = joined_run(example.denoiser, example.call, [example.negative], attention)
    assert (result - plain).abs().max() > 0.01
    torch.testing.assert_close(result, expected, atol=1e-5, rtol=0)


def test_through_a_pipeline():
    pipe = build("sd")
    call = {**CALLS["sd"], "guidance_scale": 1.0, "return_dict": False}

    def generate(target, **options):
        return target("a red circle", generator=torch.Generator().manual_seed(3), **call, **options)[0]

    plain = generate(pipe)
    guided = guide(pipe, NASA())
    result = generate(guided, nasa_negative_prompt="blurry cartoon")
    assert (result - plain).abs().max() > 1e-3 * plain.abs().max()
    assert torch.equal(generate(guided, nasa_negative_prompt="blurry", nasa_scale=0.0), plain)
    assert torch.equal(generate(guided, nasa_negative_prompt="a red circle"), plain)  # not guided at all


def test_errors_name_the_remedy():
    with pytest.raises(ValueError, match="0 = off"):
        NASA(-1.0)
    with pytest.raises(ValueError, match="cannot tell which attention reads the text"):
        guide(build("sd"), NASA(), engine="batch")
    with pytest.raises(ValueError, match="same image queries"):
        nasa_combine(features(5)[0], features(4)[1], 1.0)
