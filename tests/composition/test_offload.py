"""Guidance and steering of denoisers whose weights come and go, on the CPU: every hook runs, no weight moves far."""

import pytest
import torch
from accelerate import cpu_offload, cpu_offload_with_hook, dispatch_model
from diffusers import DiffusionPipeline

from attnsteer import guide, record_maps
from composition.checks import assert_close, differs, generate
from composition.features import CPU, RULE, call_of, check_feature, denoiser_of, guided, steering
from steered import pointed
from tiny.denoisers import case

FAMILIES = ("sd", "wan", "flux")  # both drivers, cross-attention and joint attention
HOW = ("block_level", "leaf_level", "sequential", "model", "dispatched", "float8")


def enable(how):
    def switch(pipe):
        denoiser = denoiser_of(pipe)
        if how in ("block_level", "leaf_level"):
            number = 1 if how == "block_level" else None
            denoiser.enable_group_offload(
                onload_device=CPU, offload_device=CPU, offload_type=how, num_blocks_per_group=number
            )
        elif how == "sequential":
            cpu_offload(denoiser, execution_device=CPU)
            assert next(denoiser.parameters()).device.type == "meta"
        elif how == "model":
            cpu_offload_with_hook(denoiser, execution_device=CPU)
        elif how == "dispatched":
            names = [""] if denoiser._parameters else [name for name, _ in denoiser.named_children()]
            dispatch_model(denoiser, dict.fromkeys(names, CPU), main_device=CPU, force_hooks=True)
            assert hasattr(denoiser, "_hf_hook")
        else:
            denoiser.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
            assert any(weight.dtype == torch.float8_e4m3fn for weight in denoiser.parameters())

    return switch


def rounded(name):
    """A pipeline whose weights are rounded to the eight bits in which layer-wise casting stores some of them."""
    reference, cast = pointed(name), pointed(name)
    enable("float8")(cast)
    stored = dict(denoiser_of(cast).named_parameters())
    for key, weight in denoiser_of(reference).named_parameters():
        weight.copy_(stored[key].to(torch.float32))
    return reference


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("name", FAMILIES)
def test_guided_and_steered(name, how):
    pipe = pointed(name)
    check_feature(pipe, call_of(name), enable(how), rounded(name) if how == "float8" else None)


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("name", ["sd", "flux"])
def test_maps(name, how):
    call = case(name).call

    def maps(pipe):
        with torch.no_grad(), record_maps(denoiser_of(pipe), [[2], [4, 5]], size=8) as recorder:
            denoiser_of(pipe)(**call)
        return recorder.maps[1]

    pipe = pointed(name)
    expected = maps(rounded(name) if how == "float8" else pipe)
    enable(how)(pipe)
    torch.testing.assert_close(maps(pipe), expected)


@pytest.mark.parametrize("name", ["sd", "flux"])
def test_a_pipeline_loaded_with_a_device_map(name, tmp_path):
    pipe = pointed(name)
    expected, plain = guided(pipe, call_of(name)), generate(pipe, call_of(name))
    pipe.save_pretrained(tmp_path)
    loaded = DiffusionPipeline.from_pretrained(tmp_path, device_map="cpu")
    loaded.set_progress_bar_config(disable=True)
    assert loaded.hf_device_map
    assert_close(guided(loaded, call_of(name)), expected)
    assert_close(generate(loaded, call_of(name)), plain)


@pytest.mark.parametrize("name", ["sd", "flux"])
def test_offload_switched_on_between_guided_calls(name):
    pipe = pointed(name)
    both = guide(pipe, RULE, steering())
    options = {"nag_negative_prompt": "blurry"}
    expected = generate(both, call_of(name), **options)
    enable("leaf_level")(pipe)
    assert_close(generate(both, call_of(name), **options), expected)
    assert differs(expected, generate(pipe, call_of(name)))


@pytest.mark.parametrize("name", ["sd", "flux"])
def test_gradient_checkpointing(name):
    """The recomputation for the gradient meets the seam and the recorder as they were in the forward."""
    pipe = pointed(name)
    check_feature(pipe, call_of(name), lambda pipe: denoiser_of(pipe).enable_gradient_checkpointing())


@pytest.mark.parametrize("name", ["sd", "flux"])
def test_gradient_checkpointing_with_early_exit(name):
    pipe = pointed(name)
    first = "down_blocks.0.attentions.0.transformer_blocks.0.attn2" if name == "sd" else "transformer_blocks.0.attn"
    guided_pipe = guide(pipe, steering((first,)))
    expected = generate(guided_pipe, call_of(name))
    denoiser_of(pipe).enable_gradient_checkpointing()
    assert_close(generate(guided_pipe, call_of(name)), expected)
    assert differs(expected, generate(pipe, call_of(name)))
