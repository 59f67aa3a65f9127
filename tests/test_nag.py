"""The equation of Normalized Attention Guidance and its settings."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attnsteer import NAG
from attnsteer.negative.nag import nag_combine

SETTINGS = {
    "scale": st.floats(1.0, 12.0),
    "tau": st.floats(1.0, 5.0),
    "alpha": st.floats(0.0, 1.0),
    "norm": st.sampled_from([1, 2]),
}


def paper(positive, negative, phi, tau, alpha, norm=1):
    """Algorithm 1 of the paper, in float64, token by token."""
    result = torch.empty_like(positive, dtype=torch.float64)
    for index in range(positive.shape[0]):
        p, n = positive[index].double(), negative[index].double()
        z = p + phi * (p - n)
        ratio = (z.abs().sum() / p.abs().sum()) if norm == 1 else (z.square().sum().sqrt() / p.square().sum().sqrt())
        result[index] = alpha * z * min(ratio, tau) / ratio + (1 - alpha) * p
    return result


def features(tokens=7, channels=24, seed=0, dtype=torch.float32):
    draw = torch.Generator().manual_seed(seed)
    return [torch.randn(tokens, channels, generator=draw).to(dtype) for _ in range(2)]


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 99), **SETTINGS)
def test_equals_the_papers_algorithm(seed, scale, tau, alpha, norm):
    positive, negative = features(seed=seed)
    expected = paper(positive, negative, scale - 1, tau, alpha, norm)
    result = nag_combine(positive, negative, scale, tau, alpha, norm)
    torch.testing.assert_close(result.double(), expected, atol=2e-5, rtol=2e-5)


@settings(max_examples=60, deadline=None)
@given(dtype=st.sampled_from([torch.float16, torch.bfloat16, torch.float32, torch.float64]), **SETTINGS)
def test_identities_are_bit_exact(dtype, scale, tau, alpha, norm):
    positive, negative = features(dtype=dtype)
    assert torch.equal(nag_combine(positive, positive.clone(), scale, tau, alpha, norm), positive)
    assert torch.equal(nag_combine(positive, negative, 1.0, tau, alpha, norm), positive)
    assert torch.equal(nag_combine(positive, negative, scale, tau, 0.0, norm), positive)


@settings(max_examples=60, deadline=None)
@given(seed=st.integers(0, 99), **SETTINGS)
def test_the_norm_is_bounded(seed, scale, tau, alpha, norm):
    positive, negative = features(seed=seed, dtype=torch.float64)
    length = torch.linalg.vector_norm(positive, ord=norm, dim=-1)
    guided = torch.linalg.vector_norm(nag_combine(positive, negative, scale, tau, alpha, norm), ord=norm, dim=-1)
    assert torch.all(guided <= (alpha * tau + 1 - alpha) * length * (1 + 1e-9))


def test_scales_with_its_inputs_and_is_linear_below_the_bound():
    positive, negative = features(dtype=torch.float64)
    result = nag_combine(positive, negative, 5.0, 2.5, 0.25)
    torch.testing.assert_close(nag_combine(3 * positive, 3 * negative, 5.0, 2.5, 0.25), 3 * result)
    unbounded = nag_combine(positive, negative, 5.0, 1e9, 0.25)
    torch.testing.assert_close(unbounded, positive + 0.25 * 4.0 * (positive - negative))


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_zero_rows_stay_finite_also_in_the_gradient(dtype):
    positive, negative = features(dtype=dtype)
    positive[0], negative[0], positive[1], negative[2] = 0, 0, 0, 0
    positive.requires_grad_(True)
    result = nag_combine(positive, negative, 5.0, 2.5, 0.25)
    assert torch.isfinite(result).all()
    assert torch.equal(result[:2], torch.zeros_like(result[:2]))
    result.float().sum().backward()
    assert torch.isfinite(positive.grad).all()


@pytest.mark.parametrize("channels", [3072, 5120])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float16, 1e-3), (torch.bfloat16, 8e-3)])
def test_half_precision_at_real_widths(channels, dtype, tolerance):
    positive, negative = (40 * t for t in features(3, channels, dtype=torch.float32))
    positive, negative = positive.to(dtype), negative.to(dtype)
    assert positive.double().abs().sum(-1).min() > 65504  # an L1 norm in float16 would overflow
    expected = paper(positive, negative, 4.0, 2.5, 0.25)
    result = nag_combine(positive, negative, 5.0, 2.5, 0.25)
    assert result.dtype == dtype
    assert (result.double() - expected).abs().max() <= tolerance * expected.abs().max()


@pytest.mark.parametrize("norm", [1, 2])
def test_gradient_against_finite_differences(norm):
    positive, negative = (t.requires_grad_(True) for t in features(3, 5, dtype=torch.float64))
    assert torch.autograd.gradcheck(lambda p, n: nag_combine(p, n, 4.0, 1.5, 0.4, norm), (positive, negative))


def test_compiles_to_one_graph():
    positive, negative = features()
    compiled = torch.compile(lambda p, n: nag_combine(p, n, 5.0, 2.5, 0.25), fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(positive, negative), nag_combine(positive, negative, 5.0, 2.5, 0.25))


@pytest.mark.parametrize(
    ("wrong", "remedy"),
    [
        ({"scale": 0.5}, "1 = off"),
        ({"scale": float("inf")}, "scale must be"),
        ({"tau": 0.5}, "the paper's value is 2.5"),
        ({"tau": float("nan")}, "tau must be"),
        ({"alpha": 1.5}, "0 = off"),
        ({"norm": 3}, "norm must be 1"),
    ],
)
def test_settings_out_of_range_are_errors(wrong, remedy):
    with pytest.raises(ValueError, match=remedy):
        NAG(**wrong)
    with pytest.raises(ValueError, match=remedy):
        nag_combine(*features(), **{"scale": 5.0, "tau": 2.5, "alpha": 0.25, **wrong})


@pytest.mark.parametrize("window", [{"start": 0.5, "end": 0.5}, {"end": 1.1}, {"start": -0.1}])
def test_empty_or_outer_windows_are_errors(window):
    with pytest.raises(ValueError, match="start=0, end=1 guides every step"):
        NAG(**window)


def test_other_errors_name_the_remedy():
    positive, negative = features()
    with pytest.raises(ValueError, match="same image queries"):
        nag_combine(positive, negative[:3], 5.0, 2.5, 0.25)
    with pytest.raises(ValueError, match="take the model's preset"):
        NAG(scale=5.0).combine(positive, negative)
    with pytest.raises(ValueError, match="must be a list"):
        NAG(layers="attn2")


def test_combine_uses_the_settings_and_identity_tells_when_nothing_changes():
    positive, negative = features()
    expected = nag_combine(positive, negative, 4.0, 2.0, 0.5, 2)
    assert torch.equal(NAG(4.0, 2.0, 0.5, norm=2).combine(positive, negative), expected)
    assert NAG(scale=1.0).identity
    assert NAG(alpha=0.0).identity
    assert not NAG(4.0, 2.0, 0.5).identity
