"""Orthogonal negative guidance: the equation, and the equation in stock denoisers."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attnsteer import OrthogonalNegative, guide, guide_denoiser
from attnsteer.negative.orthogonal import orthogonal_combine
from tiny import CALLS, build, oracle
from tiny.denoisers import case

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def features(tokens=7, channels=24, seed=0, dtype=torch.float32):
    draw = torch.Generator().manual_seed(seed)
    return [torch.randn(tokens, channels, generator=draw).to(dtype) for _ in range(2)]


def least_squares(positive, negative, scale):
    """The orthogonal part is what a least-squares fit of N by a multiple of P leaves over; float64, token by token."""
    rows = []
    for p, n in zip(positive.double(), negative.double(), strict=True):
        fit = torch.linalg.lstsq(p[:, None], n[:, None]).solution
        rows.append(p - scale * (n - p * fit[0, 0]))
    return torch.stack(rows)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 99), scale=st.floats(0.0, 8.0))
def test_equals_a_least_squares_fit(seed, scale):
    positive, negative = features(seed=seed)
    result = orthogonal_combine(positive, negative, scale)
    torch.testing.assert_close(result.double(), least_squares(positive, negative, scale), atol=2e-5, rtol=2e-5)


@settings(max_examples=40, deadline=None)
@given(dtype=st.sampled_from(DTYPES), scale=st.floats(0.0, 8.0))
def test_identities_are_bit_exact(dtype, scale):
    positive, negative = features(dtype=dtype)
    assert torch.equal(orthogonal_combine(positive, positive.clone(), scale), positive)
    assert torch.equal(orthogonal_combine(positive, negative, 0.0), positive)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 99), scale=st.floats(0.1, 8.0), factor=st.floats(-5.0, 5.0))
def test_what_both_texts_share_stays(seed, scale, factor):
    positive, negative = features(seed=seed, dtype=torch.float64)
    result = orthogonal_combine(positive, negative, scale)
    square = (positive * positive).sum(-1)
    torch.testing.assert_close((result * positive).sum(-1), square)
    torch.testing.assert_close(orthogonal_combine(positive, negative + factor * positive, scale), result)


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_zero_rows_stay_finite_also_in_the_gradient(dtype):
    positive, negative = features(dtype=dtype)
    positive[0], negative[0], positive[1], negative[2] = 0, 0, 0, 0
    positive.requires_grad_(True)
    result = orthogonal_combine(positive, negative, 2.0)
    assert torch.equal(result[:2], positive[:2])
    torch.testing.assert_close(result[2], positive[2])
    result.float().sum().backward()
    assert torch.isfinite(positive.grad).all()


@pytest.mark.parametrize("size", [1e-18, 1.0, 1e18])
def test_squares_neither_overflow_nor_vanish(size):
    positive, negative = (size * t for t in features())
    result = orthogonal_combine(positive, negative, 2.0)
    torch.testing.assert_close(
        result.double() / size, least_squares(positive / size, negative / size, 2.0), atol=2e-5, rtol=2e-5
    )


@pytest.mark.parametrize("channels", [3072, 5120])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float16, 1e-3), (torch.bfloat16, 8e-3)])
def test_half_precision_at_real_widths(channels, dtype, tolerance):
    positive, negative = (40 * t for t in features(3, channels))
    positive, negative = positive.to(dtype), negative.to(dtype)
    assert positive.double().square().sum(-1).min() > 65504  # a dot product in float16 would overflow
    expected = least_squares(positive, negative, 3.0)
    result = orthogonal_combine(positive, negative, 3.0)
    assert result.dtype == dtype
    assert (result.double() - expected).abs().max() <= tolerance * expected.abs().max()


def test_gradient_against_finite_differences():
    positive, negative = (t.requires_grad_(True) for t in features(3, 5, dtype=torch.float64))
    assert torch.autograd.gradcheck(lambda p, n: orthogonal_combine(p, n, 1.5), (positive, negative))


@pytest.mark.parametrize("name", ["sd", "sd3", "flux"])
def test_a_stock_denoiser_equals_the_batch_doubled_run(name):
    example = case(name)

    def formula(positive, negative):
        p, n = positive.double(), negative.double()
        along = torch.einsum("btc,btc->bt", n, p) / torch.einsum("btc,btc->bt", p, p)
        return (p - 1.5 * (n - along[..., None] * p)).to(positive.dtype)

    with torch.no_grad():
        plain = example.denoiser(**example.call, return_dict=False)[0]
        with guide_denoiser(example.denoiser, OrthogonalNegative(1.5), negative=example.negative):
            result = example.denoiser(**example.call, return_dict=False)[0]
    expected = oracle.batch_doubled(example.denoiser, example.call, example.negative, formula)
    assert (result - plain).abs().max() > 0.01
    torch.testing.assert_close(result, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("engine", ["rows", "batch"])
def test_through_a_pipeline(engine):
    pipe = build("sd")
    call = {**CALLS["sd"], "guidance_scale": 1.0, "return_dict": False}

    def generate(target, prompt="a red circle", **options):
        return target(prompt, generator=torch.Generator().manual_seed(3), **call, **options)[0]

    plain = generate(pipe)
    guided = guide(pipe, OrthogonalNegative(), engine=engine)
    result = generate(guided, orthogonal_negative_prompt="blurry cartoon")
    assert (result - plain).abs().max() > 1e-3 * plain.abs().max()
    assert torch.equal(generate(guided, orthogonal_negative_prompt="blurry", orthogonal_scale=0.0), plain)
    if engine == "rows":
        assert torch.equal(generate(guided, orthogonal_negative_prompt="a red circle"), plain)
    else:
        rows = generate(guide(pipe, OrthogonalNegative()), orthogonal_negative_prompt="blurry cartoon")
        torch.testing.assert_close(result, rows, atol=float(1e-4 * plain.abs().max()), rtol=0)


def test_errors_name_the_remedy():
    with pytest.raises(ValueError, match="0 = off"):
        OrthogonalNegative(-1.0)
    with pytest.raises(ValueError, match="same image queries"):
        orthogonal_combine(features(5)[0], features(4)[1], 1.0)
