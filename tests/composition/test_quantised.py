"""Guidance and steering of denoisers with quantised linear layers."""

import importlib.util

import pytest
import torch
from torch import nn

from attnsteer import record_maps
from composition.features import call_of, check_feature, denoiser_of
from steered import pointed
from tiny.denoisers import case

NEEDS_TORCHAO = pytest.mark.skipif(importlib.util.find_spec("torchao") is None, reason="torchao is not installed")
NEEDS_BITSANDBYTES = pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed"
)


class EightBits(nn.Module):
    """A linear layer whose weights are stored in eight bits, with a scale per output: no `nn.Linear`, no `weight`."""

    def __init__(self, linear):
        super().__init__()
        scale = linear.weight.abs().amax(1, keepdim=True) / 127
        self.register_buffer("scale", scale)
        self.register_buffer("levels", (linear.weight / scale).round().to(torch.int8))
        self.bias = linear.bias

    def forward(self, inputs):
        return nn.functional.linear(inputs, self.levels.to(inputs.dtype) * self.scale, self.bias)


def linears(denoiser):
    """The linear layers of the blocks; those around them are usually left in full precision."""
    return [
        (name, module)
        for name, module in denoiser.named_modules()
        if isinstance(module, nn.Linear) and ("block" in name)
    ]


def rounded_to_eight_bits(pipe):
    for _, linear in linears(denoiser_of(pipe)):
        stored = EightBits(linear)
        linear.weight.copy_(stored.levels * stored.scale)
    return pipe


def with_eight_bits(pipe):
    denoiser = denoiser_of(pipe)
    for name, linear in linears(denoiser):
        parent, _, child = name.rpartition(".")
        setattr(denoiser.get_submodule(parent), child, EightBits(linear))


@pytest.mark.parametrize("name", ["sd", "wan", "flux", "sd3"])
def test_layers_that_are_no_linear_layers(name):
    check_feature(pointed(name), call_of(name), with_eight_bits, rounded_to_eight_bits(pointed(name)), 1e-4)


def quantise_with_torchao(pipe):
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    chosen = {name for name, _ in linears(denoiser_of(pipe))}
    quantize_(denoiser_of(pipe), Int8WeightOnlyConfig(), lambda module, name: name in chosen)


def dequantised(pipe):
    """The same pipeline with plain weights of the quantised values."""
    for _, linear in linears(denoiser_of(pipe)):
        linear.weight = nn.Parameter(linear.weight.dequantize(), requires_grad=False)
    return pipe


@NEEDS_TORCHAO
@pytest.mark.parametrize("name", ["sd", "wan", "flux"])
def test_torchao(name):
    reference = pointed(name)
    quantise_with_torchao(reference)
    assert type(linears(denoiser_of(reference))[0][1].weight.data) is not torch.Tensor
    check_feature(pointed(name), call_of(name), quantise_with_torchao, dequantised(reference), 1e-4)


def quantise_with_bitsandbytes(pipe):
    import bitsandbytes as bnb

    denoiser = denoiser_of(pipe)
    for name, linear in linears(denoiser):
        four = bnb.nn.Linear4bit(linear.in_features, linear.out_features, linear.bias is not None, quant_type="nf4")
        four.weight = bnb.nn.Params4bit(linear.weight.data, requires_grad=False, quant_type="nf4")
        four.bias = linear.bias
        parent, _, child = name.rpartition(".")
        setattr(denoiser.get_submodule(parent), child, four.to("cpu"))


@NEEDS_BITSANDBYTES
@pytest.mark.parametrize("name", ["sd", "flux"])
def test_bitsandbytes(name):
    import bitsandbytes as bnb

    reference, cast = pointed(name), pointed(name)
    quantise_with_bitsandbytes(cast)
    for key, linear in linears(denoiser_of(reference)):
        weight = denoiser_of(cast).get_submodule(key).weight
        linear.weight.copy_(bnb.functional.dequantize_4bit(weight.data, weight.quant_state))
    check_feature(pointed(name), call_of(name), quantise_with_bitsandbytes, reference, 1e-3)


@pytest.mark.parametrize("name", ["sd", "flux"])
def test_maps(name):
    call = case(name).call
    found = []
    for pipe, change in ((rounded_to_eight_bits(pointed(name)), lambda _: None), (pointed(name), with_eight_bits)):
        change(pipe)
        with torch.no_grad(), record_maps(denoiser_of(pipe), [[2], [4, 5]], size=8) as recorder:
            denoiser_of(pipe)(**call)
        found.append(recorder.maps[1])
    torch.testing.assert_close(*found)
