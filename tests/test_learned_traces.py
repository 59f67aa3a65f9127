"""Steering leaves no trace, and fits: exceptions, random states, narrow types, offloaded weights, early exit."""

from dataclasses import replace

import pytest
import torch
from accelerate import cpu_offload
from diffusers import EulerAncestralDiscreteScheduler
from diffusers.hooks import apply_group_offloading

from attnsteer import guide
from attnsteer.families import family_of
from attnsteer.install import record_maps
from attnsteer.seam.layers import text_layers
from attnsteer.steering.learned import LearnedSteering
from attnsteer.steering.offload import weights_by_reference
from attnsteer.steering.recording import Recording
from attnsteer.steering.relations import Span
from steered import (
    CFG_ON,
    FAMILIES,
    PROMPT,
    RULE,
    Spy,
    calls_of,
    centroid,
    denoiser_of,
    differs,
    generate,
    places,
    pointed,
)
from tiny.state import fingerprint

# diffusers' own schedulers hand tensors to numpy in a way that numpy 2 deprecates
pytestmark = pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")


# Nothing stays behind


class Broken(Spy):
    """Fails the second time it is asked."""

    def __call__(self, maps, timestep, relations):
        if self.asked:
            raise RuntimeError("broken objective")
        return super().__call__(maps, timestep, relations)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("layers", [False, True], ids=["whole", "early exit"])
def test_an_exception_in_the_middle_leaves_no_trace(name, layers):
    pipe = pointed(name)
    denoiser = denoiser_of(pipe)
    denoiser.requires_grad_(True)
    denoiser.get_parameter(next(iter(dict(denoiser.named_parameters())))).requires_grad_(False)
    trained = [p.requires_grad for p in denoiser.parameters()]
    plain = generate(pipe, name, **CFG_ON[name])
    stateful = getattr(pipe, "vae", None)  # Wan's keeps caches of its own
    modules = [m for m in pipe.components.values() if isinstance(m, torch.nn.Module) and m is not stateful]
    before, step = fingerprint(*modules), pipe.scheduler.step
    recording = Recording((text_layers(denoiser, family_of(denoiser))[0].name,) if layers else None, size=4)
    guided = guide(pipe, LearnedSteering(Broken(), rule=RULE, recording=recording))
    with pytest.raises(RuntimeError, match="broken objective"):
        generate(guided, name, **CFG_ON[name])
    assert fingerprint(*modules) == before
    assert [p.requires_grad for p in denoiser.parameters()] == trained
    assert pipe.scheduler.step == step and "step" not in vars(pipe.scheduler)
    assert torch.equal(generate(pipe, name, **CFG_ON[name]), plain)
    steered = generate(guide(pipe, centroid()), name, **CFG_ON[name])
    assert not steered.requires_grad and differs(steered, plain)
    assert fingerprint(*modules) == before and all(p.grad is None for p in denoiser.parameters())


def test_the_global_random_state_is_that_of_the_stock_pipeline():
    pipe, states = pointed("sd"), []
    pipe.scheduler = EulerAncestralDiscreteScheduler()
    for run in (pipe, guide(pipe, centroid())):
        torch.manual_seed(4)
        generate(run, "sd", generator=None)
        states.append(torch.get_rng_state())
    assert torch.equal(*states)


def test_inference_mode_is_an_error_that_says_so():
    guided = guide(pointed("sd"), centroid())
    with torch.inference_mode(), pytest.raises(RuntimeError, match="torch.inference_mode"):
        generate(guided, "sd")


def test_embeddings_made_in_inference_mode_do_no_harm():
    pipe = pointed("flux")
    with torch.inference_mode():
        latents = torch.randn(1, 16, 16, generator=torch.Generator().manual_seed(1))
    guided = guide(pipe, centroid())
    expected = generate(guided, "flux", latents=latents.clone())
    assert torch.equal(generate(guided, "flux", latents=latents), expected)


# Memory and cost


@pytest.mark.parametrize("name", ["sd", "sd3", "flux", "wan"])
def test_early_exit_has_the_gradient_of_the_full_forward(name):
    pipe = pointed(name)
    denoiser = denoiser_of(pipe)
    with calls_of(denoiser) as calls:
        generate(pipe, name, num_inference_steps=1)
    family = family_of(denoiser)
    layers = [layer.name for layer in text_layers(denoiser, family)]
    chosen = tuple(dict.fromkeys((layers[0], layers[(len(layers) - 1) // 2])))
    spans = {Span("dog", 0, 3): [1, 2], Span("cat", 4, 7): [4]}
    pair = [(0, *spans)]

    def gradient(record):
        latents = calls[0][family.latents].clone().requires_grad_()
        maps = record({**calls[0], family.latents: latents})
        return maps.detach(), torch.autograd.grad(maps.square().sum(), latents)[0]

    def early(arguments):
        return Recording(chosen, size=8).pair_maps(denoiser, arguments, [spans], pair)

    def full(arguments):
        with record_maps(denoiser, list(spans.values()), layers=chosen, size=8) as recorder:
            denoiser(**arguments)
        return torch.stack(recorder.maps, dim=1)

    with torch.enable_grad(), calls_of(denoiser.get_submodule(layers[-1])) as last:
        maps, gradients = gradient(early)
        assert not last
        expected, expected_gradients = gradient(full)
        assert len(last) == 1
    torch.testing.assert_close(maps, expected)
    torch.testing.assert_close(gradients, expected_gradients)
    assert gradients.abs().max() > 0


@pytest.mark.parametrize("name", ["sd", "flux"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_narrow_types(name, dtype):
    pipe = pointed(name).to(dtype=dtype)
    guided = guide(pipe, centroid())
    result = generate(guided, name, **CFG_ON[name])
    assert result.dtype == dtype and bool(result.isfinite().all())
    assert guided.steering_report.steps[0].after > guided.steering_report.steps[0].before


@pytest.mark.parametrize("name", ["sd", "flux"])
def test_group_offloading(name):
    pipe = pointed(name)
    expected = generate(guide(pipe, centroid()), name)
    cpu = torch.device("cpu")
    denoiser_of(pipe).enable_group_offload(onload_device=cpu, offload_device=cpu, offload_type="leaf_level")
    guided = guide(pipe, centroid())
    assert torch.equal(generate(guided, name), expected)


@pytest.mark.parametrize("name", ["sd", "flux"])
def test_sequential_offloading(name):
    """Every weight is replaced by another object around each module's forward; it must be as before afterwards."""
    pipe = pointed(name)
    denoiser = denoiser_of(pipe)
    denoiser.requires_grad_(True)
    expected = generate(guide(pipe, centroid()), name)
    cpu_offload(denoiser, execution_device=torch.device("cpu"))
    assert next(denoiser.parameters()).device.type == "meta"
    assert torch.equal(generate(guide(pipe, centroid()), name), expected)
    assert all(p.requires_grad for p in denoiser.parameters())


def test_offloaded_weights_are_loaded_again_for_the_backward_pass():
    """Loaded weights are spoilt when they are offloaded, so any copy that autograd kept would spoil the gradient."""
    torch.manual_seed(0)
    layers = [torch.nn.Linear(6, 8), torch.nn.LayerNorm(8), torch.nn.Linear(8, 3)]
    net, x = torch.nn.Sequential(*layers).requires_grad_(False), torch.randn(2, 6, requires_grad=True)
    (expected,) = torch.autograd.grad(net(x).square().sum(), x)
    stored = {p: p.data for p in net.parameters()}

    def load(module, args):
        for p in module.parameters(recurse=False):
            p.data = stored[p].clone()

    def spoil(module, args, output):
        for p in module.parameters(recurse=False):
            p.data.fill_(torch.nan)
            p.data = stored[p]

    cpu = torch.device("cpu")
    apply_group_offloading(net, onload_device=cpu, offload_device=cpu, offload_type="leaf_level")
    for layer in layers:
        layer.register_forward_pre_hook(load)
        layer.register_forward_hook(spoil)
    (spoilt,) = torch.autograd.grad(net(x).square().sum(), x)
    assert bool(spoilt.isnan().any())
    with weights_by_reference(net):
        (gradient,) = torch.autograd.grad(net(x).square().sum(), x)
    torch.testing.assert_close(gradient, expected)


def test_offloading_to_disk_is_an_error(tmp_path):
    pipe = pointed("sd")
    cpu = torch.device("cpu")
    pipe.unet.enable_group_offload(
        onload_device=cpu, offload_device=cpu, offload_type="leaf_level", offload_to_disk_path=str(tmp_path)
    )
    with pytest.raises(ValueError, match="offload_to_disk_path"):
        generate(guide(pipe, centroid()), "sd")


def test_explain_tells_what_would_be_steered():
    text = str(guide(pointed("sd"), centroid()).explain([PROMPT, "a dog"]))
    assert "'red circle' to the left of 'dog'\n" in text and "no relation in the prompt" in text
    assert "from 0 to 0.5 of the steps" in text


def test_explain_tells_what_the_text_encoder_would_cut_off():
    """CLIP reads 24 tokens here, T5 512: in Stable Diffusion 3 one of them is enough."""
    prompt = "a photo of a cat " + "and a bird " * 7 + "above a dog"
    assert "beyond the 24 tokens" in str(guide(pointed("sd"), centroid()).explain(prompt))
    assert "beyond" not in str(guide(pointed("sd3"), centroid()).explain(prompt))


def test_settings_are_replaced_like_those_of_any_dataclass():
    assert replace(centroid(), end=0.25).end == 0.25
    assert places(pointed("sd").tokenizer, PROMPT, 1) == [2]
