"""Guidance with diffusers' caches, which answer layers or blocks from earlier steps."""

import pytest
import torch
from diffusers import (
    FasterCacheConfig,
    FirstBlockCacheConfig,
    MagCacheConfig,
    PyramidAttentionBroadcastConfig,
    TaylorSeerCacheConfig,
)

from attnsteer import guide, guide_denoiser, record_maps
from composition.checks import NEGATIVE, PROMPT, assert_close, differs, generate, modules_of
from composition.features import RULE, call_of, guided, steering
from tiny import build
from tiny.denoisers import case
from tiny.state import fingerprint

STEPS = 6
ATTENTION = [r".*blocks\.\d+\.attn\d?"]
SKIPPING = {
    "first block": lambda: FirstBlockCacheConfig(threshold=1e6),
    "magnitude": lambda: MagCacheConfig(threshold=1e6, num_inference_steps=STEPS, mag_ratios=[1.0] * STEPS),
    "broadcast": lambda: PyramidAttentionBroadcastConfig(
        spatial_attention_block_skip_range=2,
        cross_attention_block_skip_range=2,
        spatial_attention_timestep_skip_range=(-1, 2000),
        cross_attention_timestep_skip_range=(-1, 2000),
        spatial_attention_block_identifiers=("blocks", "transformer_blocks"),
        cross_attention_block_identifiers=("blocks", "transformer_blocks"),
        current_timestep_callback=lambda: 500,
    ),
    "taylor": lambda: TaylorSeerCacheConfig(
        cache_interval=3, disable_cache_before_step=2, taylor_factors_dtype=torch.float32, cache_identifiers=ATTENTION
    ),
    "taylor lite": lambda: TaylorSeerCacheConfig(cache_interval=3, disable_cache_before_step=2, use_lite_mode=True),
    "faster": lambda: FasterCacheConfig(
        is_guidance_distilled=True,
        tensor_format="BCHW",
        spatial_attention_block_skip_range=2,
        spatial_attention_timestep_skip_range=(-1, 700),
        attention_weight_callback=lambda _: 0.5,
        current_timestep_callback=iter_timesteps(),
    ),
}
EXACT = {
    "first block": lambda: FirstBlockCacheConfig(threshold=0.0),
    "magnitude": lambda: MagCacheConfig(threshold=0.0, num_inference_steps=STEPS, mag_ratios=[0.5] * STEPS),
    "broadcast": lambda: PyramidAttentionBroadcastConfig(
        spatial_attention_block_skip_range=1,
        cross_attention_block_skip_range=1,
        spatial_attention_block_identifiers=("blocks", "transformer_blocks"),
        cross_attention_block_identifiers=("blocks", "transformer_blocks"),
        current_timestep_callback=lambda: 500,
    ),
    "taylor": lambda: TaylorSeerCacheConfig(
        disable_cache_before_step=99, taylor_factors_dtype=torch.float32, cache_identifiers=ATTENTION
    ),
}
FAMILIES = ("wan", "flux")


def iter_timesteps():
    """A clock that leaves the first two steps of any run outside of the range in which FasterCache skips."""
    return lambda: CLOCK["timestep"]


CLOCK = {"timestep": 1000}


def set_clock(pipe, step, timestep, values):
    CLOCK["timestep"] = 1000 if step < 1 else 500
    return values


def cached(name, config):
    pipe = build(name)
    pipe.transformer.enable_cache(config)
    return pipe


def call(name):
    CLOCK["timestep"] = 1000
    return call_of(name, num_inference_steps=STEPS, callback_on_step_end=set_clock)


def attention_calls(pipe, run):
    """How many attention modules compute anything in `run`; a cache answers for the others."""
    count = [0]
    layers = [m for n, m in pipe.transformer.named_modules() if n.endswith(("attn", "attn1", "attn2"))]
    hooks = [m.to_q.register_forward_hook(lambda *_: count.__setitem__(0, count[0] + 1)) for m in layers]
    result = run()
    for hook in hooks:
        hook.remove()
    return count[0], result


@pytest.mark.parametrize("cache", EXACT)
@pytest.mark.parametrize("name", FAMILIES)
def test_a_cache_that_never_answers(name, cache):
    """Everywhere, in a window of steps, and steered, the result is that without the cache."""
    plain = build(name)
    methods = guide(plain, RULE), guide(plain, steering())
    half = {"nag_negative_prompt": NEGATIVE, "nag_end": 0.5}
    expected = [guided(plain, call(name)), generate(methods[0], call(name), **half), generate(methods[1], call(name))]
    pipe = cached(name, EXACT[cache]())
    before = fingerprint(*modules_of(pipe))
    methods = guide(pipe, RULE), guide(pipe, steering())
    found = [guided(pipe, call(name)), generate(methods[0], call(name), **half), generate(methods[1], call(name))]
    assert fingerprint(*modules_of(pipe)) == before
    for result, other in zip(found, expected, strict=True):
        assert_close(result, other, 1e-4)
        assert differs(result, generate(plain, call(name)))


@pytest.mark.parametrize(
    ("name", "cache"), [(n, c) for n in FAMILIES for c in SKIPPING if (n, c) not in [("wan", "faster")]]
)
def test_a_cache_that_answers(name, cache):
    """Guidance computes as many layers as a plain run does, the same text changes nothing, and no trace stays."""
    pipe = cached(name, SKIPPING[cache]())
    count, plain = attention_calls(pipe, lambda: generate(pipe, call(name)))
    without = build(name)
    whole, exact = attention_calls(without, lambda: generate(without, call(name)))
    assert count < whole and differs(plain, exact)
    before = fingerprint(*modules_of(pipe))
    both = guide(pipe, RULE)
    number, result = attention_calls(pipe, lambda: generate(both, call(name), nag_negative_prompt=NEGATIVE))
    assert number == count
    assert differs(result, plain)
    assert_close(generate(both, call(name), nag_negative_prompt=PROMPT), plain, 1e-4)
    half = generate(both, call(name), nag_negative_prompt=NEGATIVE, nag_end=0.5)
    assert differs(half, plain) and differs(half, result)
    assert torch.equal(generate(pipe, call(name)), plain)
    assert fingerprint(*modules_of(pipe)) == before


@pytest.mark.parametrize("cache", ["first block", "magnitude", "broadcast", "taylor"])
@pytest.mark.parametrize("name", FAMILIES)
def test_steering_and_self_checks_neither_use_nor_fill_a_cache(name, cache):
    """The first step's move is that without a cache; the pipeline's own calls are counted as in a plain run."""
    plain, pipe = build(name), cached(name, SKIPPING[cache]())
    first = steering()
    first = type(first)(first.objective, first.rule, end=0.1, recording=first.recording)
    expected = guide(plain, first)
    generate(expected, call(name))
    found = guide(pipe, RULE, first, validate=True)
    count, _ = attention_calls(pipe, lambda: generate(pipe, call(name)))
    result = generate(found, call(name), nag_negative_prompt=NEGATIVE)
    assert found.steering_report.steps == expected.steering_report.steps
    assert differs(result, guided(pipe, call(name)))
    again, _ = attention_calls(pipe, lambda: generate(pipe, call(name)))
    assert again == count


@pytest.mark.parametrize("cache", ["first block", "broadcast"])
@pytest.mark.parametrize("name", FAMILIES)
def test_maps_are_those_without_a_cache(name, cache):
    example = case(name)
    with torch.no_grad(), record_maps(example.denoiser, [[2], [4, 5]]) as recorder:
        example.denoiser(**example.call)
    expected = recorder.maps[1]
    example.denoiser.enable_cache(SKIPPING[cache]())
    with (
        torch.no_grad(),
        example.denoiser.cache_context("cond"),
        record_maps(example.denoiser, [[2], [4, 5]]) as found,
    ):
        for _ in range(3):
            example.denoiser(**example.call)
    assert torch.equal(found.maps[1], expected)


@pytest.mark.filterwarnings("ignore:torch.meshgrid:UserWarning")  # of diffusers
def test_faster_cache_that_leaves_out_the_unconditional_half():
    """The denoiser gets half of the batch that guidance was told of; it must guide the rows that are left."""
    example = case("wan")
    denoiser = example.denoiser
    rows = slice(1, 2)
    with torch.no_grad(), guide_denoiser(denoiser, RULE, negative=example.negative, rows=rows):
        expected = denoiser(**example.call, return_dict=False)[0]
    time = [900]
    denoiser.enable_cache(
        FasterCacheConfig(
            spatial_attention_block_skip_range=1,
            unconditional_batch_skip_range=2,
            unconditional_batch_timestep_skip_range=(-1, 1000),
            tensor_format="BCFHW",
            attention_weight_callback=lambda _: 0.5,
            current_timestep_callback=lambda: time[0],
        )
    )
    with torch.no_grad():
        plain = [denoiser(**example.call, return_dict=False)[0] for _ in range(2)]
        with guide_denoiser(denoiser, RULE, negative=example.negative, rows=rows):
            found = [denoiser(**example.call, return_dict=False)[0] for _ in range(2)]
    assert_close(found[0], expected, 1e-5)
    assert_close(found[1][1:], expected[1:], 1e-5)  # the conditional half is computed in both
    assert differs(found[1][1:], plain[1][1:])


def test_a_cache_survives_an_error_in_the_middle():
    pipe = cached("flux", SKIPPING["first block"]())
    plain = generate(pipe, call("flux"))

    def broken(pipe, step, timestep, values):
        if step == 2:
            raise KeyboardInterrupt
        return values

    with pytest.raises(KeyboardInterrupt):
        guided(pipe, {**call("flux"), "callback_on_step_end": broken})
    assert torch.equal(generate(pipe, call("flux")), plain)
