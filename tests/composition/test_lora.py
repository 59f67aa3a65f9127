"""LoRA: loaded, scaled, fused, hot-swapped, and switched between guided calls or in the middle of one."""

import pytest
import torch

from attnsteer import guide
from composition.checks import (
    NEGATIVE,
    RULE,
    assert_close,
    by_lock_step,
    check_guidance,
    denoisers_of,
    differs,
    even_calls,
    every,
    generate,
    second_half,
)
from tiny import CALLS, build
from tiny.variants import lora

# peft warns of a second adapter in one model, which is what some of these tests are about
pytestmark = pytest.mark.filterwarnings("ignore:Already found a `peft_config` attribute:UserWarning")
CFG = {
    "sd": ({"guidance_scale": 5.0}, second_half),
    "sdxl": ({"guidance_scale": 1.0}, every),
    "sd3": ({"guidance_scale": 5.0}, second_half),
    "flux": ({}, every),
    "wan": ({"guidance_scale": 5.0}, even_calls),
}
ON_BOTH = pytest.mark.parametrize("name", ["sd", "flux"])  # cross-attention and joint attention


def call_of(name):
    return {**CALLS[name], **CFG[name][0]}


def weights(pipe, seed=7, text=False):
    parts = {"unet" if hasattr(pipe, "unet") else "transformer": denoisers_of(pipe)[0]}
    return lora(parts | ({"text_encoder": pipe.text_encoder} if text else {}), seed)


def guided_by(pipe, name):
    return generate(guide(pipe, RULE), call_of(name), nag_negative_prompt=NEGATIVE)


@pytest.mark.parametrize("name", sorted(CFG))
def test_loaded(name):
    pipe = build(name)
    without = guided_by(pipe, name)
    pipe.load_lora_weights(weights(pipe))
    result, _ = check_guidance(pipe, call_of(name), CFG[name][1])
    assert differs(result, without)
    pipe.unload_lora_weights()
    assert torch.equal(guided_by(pipe, name), without)


@ON_BOTH
def test_scaled(name):
    pipe = build(name)
    without = guided_by(pipe, name)
    pipe.load_lora_weights(weights(pipe), adapter_name="style")
    full = guided_by(pipe, name)
    pipe.set_adapters("style", 0.5)
    half, _ = check_guidance(pipe, call_of(name), CFG[name][1])
    assert differs(half, full) and differs(half, without)
    pipe.set_adapters("style", 0.0)
    assert_close(guided_by(pipe, name), without)


@pytest.mark.parametrize(("name", "keyword"), [("sd", "cross_attention_kwargs"), ("flux", "joint_attention_kwargs")])
def test_scaled_in_the_call(name, keyword):
    pipe = build(name)
    pipe.load_lora_weights(weights(pipe), adapter_name="style")
    result = generate(guide(pipe, RULE), call_of(name), nag_negative_prompt=NEGATIVE, **{keyword: {"scale": 0.5}})
    pipe.set_adapters("style", 0.5)
    assert_close(result, guided_by(pipe, name))


@ON_BOTH
def test_fused_and_unfused(name):
    pipe = build(name)
    without = guided_by(pipe, name)
    pipe.load_lora_weights(weights(pipe))
    loaded = guided_by(pipe, name)
    pipe.fuse_lora()
    fused, _ = check_guidance(pipe, call_of(name), CFG[name][1])
    assert_close(fused, loaded)
    pipe.unfuse_lora()
    pipe.unload_lora_weights()
    assert_close(guided_by(pipe, name), without)


@ON_BOTH
def test_hot_swapped(name):
    pipe, other = build(name), build(name)
    guided = guide(pipe, RULE)
    pipe.load_lora_weights(weights(pipe), adapter_name="style")
    first = generate(guided, call_of(name), nag_negative_prompt=NEGATIVE)
    pipe.load_lora_weights(weights(pipe, seed=8), adapter_name="style", hotswap=True)
    second = generate(guided, call_of(name), nag_negative_prompt=NEGATIVE)
    other.load_lora_weights(weights(other, seed=8))
    assert differs(second, first)
    assert torch.equal(second, guided_by(other, name))
    assert_close(second, by_lock_step(other, call_of(name), CFG[name][1]))


@ON_BOTH
def test_switched_between_guided_calls(name):
    pipe = build(name)
    guided = guide(pipe, RULE)

    def picture():
        return generate(guided, call_of(name), nag_negative_prompt=NEGATIVE)

    without = picture()
    pipe.load_lora_weights(weights(pipe), adapter_name="one")
    pipe.load_lora_weights(weights(pipe, seed=8), adapter_name="two")
    seen = {}
    for names in (["one"], ["two"], ["one", "two"], ["one"]):
        pipe.set_adapters(names)
        result = picture()
        assert torch.equal(seen.setdefault(tuple(names), result), result)
        assert torch.equal(result, guided_by(pipe, name))
    results = [without, *seen.values()]
    assert all(differs(a, b) for i, a in enumerate(results) for b in results[:i])
    pipe.disable_lora()
    assert_close(picture(), without)
    pipe.enable_lora()
    pipe.delete_adapters(["two"])
    assert torch.equal(picture(), seen["one",])


@ON_BOTH
def test_switched_in_the_middle_of_a_guided_call(name):
    pipe = build(name)
    pipe.load_lora_weights(weights(pipe), adapter_name="one")
    pipe.load_lora_weights(weights(pipe, seed=8), adapter_name="two")

    def switch(pipe, step, timestep, values):
        pipe.set_adapters(["two"])
        return values

    results = []
    for picture in (
        lambda call: generate(guide(pipe, RULE), call, nag_negative_prompt=NEGATIVE),
        lambda call: by_lock_step(pipe, call, CFG[name][1]),
    ):
        call = {**call_of(name), "num_inference_steps": 4}
        for options in ({}, {"callback_on_step_end": switch}):
            pipe.set_adapters(["one"])
            results.append(picture({**call, **options}))
    assert differs(results[1], results[0])
    assert_close(results[0], results[2])


@ON_BOTH
def test_of_the_text_encoder(name):
    """The negative prompt is encoded with the LoRA of the moment, however it came into the weights."""
    pipe = build(name)
    guided = guide(pipe, RULE)

    def picture():
        return generate(guided, call_of(name), nag_negative_prompt=NEGATIVE)

    without = picture()
    pipe.load_lora_weights(weights(pipe, text=True))
    pipe.fuse_lora(components=["text_encoder"])
    pipe.unload_lora_weights()  # what is left are other weights in the same tensors
    fused = picture()
    assert differs(fused, without)
    assert torch.equal(fused, guided_by(pipe, name))


def test_on_both_experts():
    pipe = build("wan_two_experts")
    call = {**CALLS["wan_two_experts"], "guidance_scale": 1.0, "num_inference_steps": 4}
    without = generate(guide(pipe, RULE), call, nag_negative_prompt=NEGATIVE)
    pipe.load_lora_weights(weights(pipe), adapter_name="high")
    pipe.load_lora_weights(
        lora({"transformer": pipe.transformer_2}, 8), adapter_name="low", load_into_transformer_2=True
    )
    result, _ = check_guidance(pipe, call, every)
    assert differs(result, without)
