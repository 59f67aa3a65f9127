"""ControlNets and T2I-Adapters: they see what the stock pipeline shows them, and act in guided calls."""

import pytest
import torch
from diffusers import (
    FluxControlNetImg2ImgPipeline,
    FluxControlNetPipeline,
    StableDiffusion3ControlNetPipeline,
    StableDiffusionAdapterPipeline,
    StableDiffusionControlNetImg2ImgPipeline,
    StableDiffusionControlNetInpaintPipeline,
    StableDiffusionControlNetPipeline,
    StableDiffusionXLAdapterPipeline,
    StableDiffusionXLControlNetPipeline,
)

from attnsteer import guide
from composition.checks import (
    NEGATIVE,
    RULE,
    by_name,
    check_guidance,
    differs,
    even_calls,
    every,
    generate,
    second_half,
)
from tiny import CALLS, build
from tiny.variants import MASK, PHOTO, controlnet, t2i_adapter, variant

pytestmark = pytest.mark.filterwarnings("ignore:`FluxPosEmbed` is deprecated:FutureWarning")
CFG = {"guidance_scale": 5.0}
SOME = {"num_inference_steps": 4, "strength": 0.5, "image": PHOTO}
PIPELINES = {
    "SD": ("sd", StableDiffusionControlNetPipeline, {**CFG, "image": PHOTO}, second_half),
    "SD guess mode": (
        "sd",
        StableDiffusionControlNetPipeline,
        {**CFG, "image": PHOTO, "guess_mode": True},
        second_half,
    ),
    "SD img2img": (
        "sd",
        StableDiffusionControlNetImg2ImgPipeline,
        {**CFG, **SOME, "control_image": PHOTO},
        second_half,
    ),
    "SD inpaint": (
        "sd",
        StableDiffusionControlNetInpaintPipeline,
        {**CFG, **SOME, "control_image": PHOTO, "mask_image": MASK},
        second_half,
    ),
    "SDXL": ("sdxl", StableDiffusionXLControlNetPipeline, {**CFG, "image": PHOTO}, second_half),
    "SD3": ("sd3", StableDiffusion3ControlNetPipeline, {**CFG, "control_image": PHOTO}, second_half),
    "FLUX": ("flux", FluxControlNetPipeline, {"control_image": PHOTO}, every),
    "FLUX with true CFG": (
        "flux",
        FluxControlNetPipeline,
        {"control_image": PHOTO, "true_cfg_scale": 3.0, "negative_prompt": "low quality"},
        even_calls,
    ),
    "FLUX img2img": ("flux", FluxControlNetImg2ImgPipeline, {**SOME, "control_image": PHOTO}, every),
}


def pipeline(name):
    base, cls, options, rows = PIPELINES[name]
    stock = build(base)
    return variant(stock, cls, controlnet=controlnet(stock)), {**CALLS[base], **options}, rows


def calls_of(module, run):
    """What `run()` gives a module."""
    seen = []
    handle = module.register_forward_pre_hook(lambda *given: seen.append(by_name(*given)), with_kwargs=True)
    run()
    handle.remove()
    return seen


@pytest.mark.parametrize("name", sorted(PIPELINES))
def test_controlnet(name):
    pipe, call, rows = pipeline(name)
    result, _ = check_guidance(pipe, call, rows)
    without = generate(guide(pipe, RULE), call, nag_negative_prompt=NEGATIVE, controlnet_conditioning_scale=0.0)
    assert differs(result, without)


@pytest.mark.parametrize("name", ["SD", "SDXL", "SD3", "FLUX"])
def test_the_controlnet_reads_the_prompt_and_never_the_negative_prompt(name):
    pipe, call, _ = pipeline(name)
    plain = calls_of(pipe.controlnet, lambda: generate(pipe, call))
    guided = guide(pipe, RULE)
    generate(guided, call, nag_negative_prompt=NEGATIVE)  # the dry run for the negative prompt is behind us
    seen = calls_of(pipe.controlnet, lambda: generate(guided, call, nag_negative_prompt=NEGATIVE))
    own = [entry for entry in seen if torch.equal(entry["encoder_hidden_states"], plain[0]["encoder_hidden_states"])]
    assert len(own) == len(plain) and len(seen) - len(own) <= 1
    assert all(entry["encoder_hidden_states"].shape == plain[0]["encoder_hidden_states"].shape for entry in seen)


def test_two_controlnets():
    stock = build("sd")
    both = [controlnet(stock), controlnet(stock, seed=6)]
    pipe = variant(stock, StableDiffusionControlNetPipeline, controlnet=both)
    check_guidance(pipe, {**CALLS["sd"], **CFG, "image": [PHOTO, PHOTO]}, second_half)


@pytest.mark.parametrize(
    ("name", "cls"), [("sd", StableDiffusionAdapterPipeline), ("sdxl", StableDiffusionXLAdapterPipeline)]
)
def test_t2i_adapter(name, cls):
    pipe = variant(name, cls, adapter=t2i_adapter())
    call = {**CALLS[name], **CFG, "image": PHOTO}
    result, _ = check_guidance(pipe, call, second_half)
    without = generate(guide(pipe, RULE), call, nag_negative_prompt=NEGATIVE, adapter_conditioning_scale=0.0)
    assert differs(result, without)
