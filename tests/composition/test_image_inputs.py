"""Pipelines that start from, fill in, or look at pictures."""

import pytest
import torch
from diffusers import (
    FluxControlImg2ImgPipeline,
    FluxControlPipeline,
    FluxFillPipeline,
    FluxImg2ImgPipeline,
    FluxInpaintPipeline,
    FluxKontextInpaintPipeline,
    FluxKontextPipeline,
    StableDiffusion3Img2ImgPipeline,
    StableDiffusion3InpaintPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    StableDiffusionInstructPix2PixPipeline,
    StableDiffusionXLImg2ImgPipeline,
    StableDiffusionXLInpaintPipeline,
)
from PIL import Image

from attnsteer import guide
from composition.checks import (
    NEGATIVE,
    RULE,
    SETTINGS,
    TEXT,
    Copying,
    assert_close,
    by_lock_step,
    check_guidance,
    denoiser_calls,
    denoisers_of,
    differs,
    even_calls,
    every,
    first_third,
    generate,
    replaced_forwards,
    second_half,
)
from tiny import CALLS, build
from tiny.lockstep import lock_step
from tiny.oracle import nag_formula
from tiny.variants import MASK, PHOTO, resized, variant

CFG = {"guidance_scale": 5.0}
TRUE_CFG = {"true_cfg_scale": 3.0, "negative_prompt": "low quality"}
PART = {"num_inference_steps": 4, "strength": 0.5, "image": PHOTO}
MASKED = {**PART, "mask_image": MASK}
KONTEXT = {"image": PHOTO, "max_area": 256, "_auto_resize": False}


def with_channels(name, channels):
    """The denoiser of a tiny pipeline with more input channels, for a mask or a picture beside the latents."""
    pipe = build(name)
    if name == "sd":
        return {"unet": resized(pipe.unet, in_channels=channels)}
    return {"transformer": resized(pipe.transformer, in_channels=channels, out_channels=16)}


PIPELINES = {
    "SD img2img": ("sd", StableDiffusionImg2ImgPipeline, {**PART, **CFG}, second_half, 0),
    "SDXL img2img": ("sdxl", StableDiffusionXLImg2ImgPipeline, {**PART, **CFG}, second_half, 0),
    "SD3 img2img": ("sd3", StableDiffusion3Img2ImgPipeline, {**PART, **CFG}, second_half, 0),
    "FLUX img2img": ("flux", FluxImg2ImgPipeline, {**PART, **TRUE_CFG}, even_calls, 0),
    "SD inpaint": ("sd", StableDiffusionInpaintPipeline, {**MASKED, **CFG}, second_half, 0),
    "SD inpaint, 9 channels": ("sd", StableDiffusionInpaintPipeline, {**MASKED, **CFG}, second_half, 9),
    "SDXL inpaint": ("sdxl", StableDiffusionXLInpaintPipeline, {**MASKED, "guidance_scale": 1.0}, every, 0),
    "FLUX inpaint": ("flux", FluxInpaintPipeline, MASKED, every, 0),
    "InstructPix2Pix": ("sd", StableDiffusionInstructPix2PixPipeline, {**CFG, "image": PHOTO}, first_third, 8),
    "FLUX Kontext": ("flux", FluxKontextPipeline, KONTEXT, every, 0),
    "FLUX Kontext with true CFG": ("flux", FluxKontextPipeline, {**KONTEXT, **TRUE_CFG}, even_calls, 0),
    "FLUX Kontext inpaint": ("flux", FluxKontextInpaintPipeline, {**MASKED, **KONTEXT}, every, 0),
    "FLUX Fill": ("flux", FluxFillPipeline, {"image": PHOTO, "mask_image": MASK}, every, 48),
    "FLUX Control": ("flux", FluxControlPipeline, {"control_image": PHOTO}, every, 32),
    "FLUX Control img2img": ("flux", FluxControlImg2ImgPipeline, {**PART, "control_image": PHOTO}, every, 32),
}


def pipeline(name):
    base, cls, options, rows, channels = PIPELINES[name]
    pipe = variant(base, cls, **(with_channels(base, channels) if channels else {}))
    sizes = ("height", "width") if "Pix2Pix" in cls.__name__ or "StableDiffusionImg2" in cls.__name__ else ()
    if "XLImg2Img" in cls.__name__:
        sizes = ("height", "width")
    stock = {key: value for key, value in CALLS[base].items() if key not in sizes}
    return pipe, {**stock, **options}, rows


@pytest.mark.parametrize("name", sorted(PIPELINES))
def test_pictures_given(name):
    check_guidance(*pipeline(name))


def test_sd3_inpaint():
    """The stock pipeline wants 16 latent channels."""
    stock = build("sd3")
    parts = {"transformer": resized(stock.transformer, in_channels=16, out_channels=16)}
    parts["vae"] = resized(stock.vae, latent_channels=16)
    pipe = variant(stock, StableDiffusion3InpaintPipeline, **parts)
    check_guidance(pipe, {**CALLS["sd3"], **MASKED, **CFG}, second_half)


@pytest.mark.parametrize("name", ["SD img2img", "FLUX img2img"])
def test_windows_count_the_steps_that_run(name):
    """Strength 0.5 of 4 steps runs 2: the first half of them is one step."""
    pipe, call, rows = pipeline(name)
    per_step = 2 if name == "FLUX img2img" else 1
    result = generate(guide(pipe, RULE), call, nag_negative_prompt=NEGATIVE, nag_end=0.5)

    def first_step(index, batch):
        return rows(index, batch) if index < per_step else []

    assert_close(result, by_lock_step(pipe, call, first_step))
    assert differs(result, generate(guide(pipe, RULE), call, nag_negative_prompt=NEGATIVE))


def test_picture_and_negative_prompt_both_matter():
    pipe, call, _ = pipeline("FLUX Kontext")
    guided = guide(pipe, RULE)
    results = [
        generate(guided, {**call, "image": image}, nag_negative_prompt=negative)
        for image in (PHOTO, Image.new("RGB", PHOTO.size, (20, 20, 200)))
        for negative in (NEGATIVE, "a green triangle")
    ]
    assert all(differs(a, b) for i, a in enumerate(results) for b in results[:i])


def test_a_picture_instead_of_words():
    """FLUX Redux hands over embeddings of a picture, longer than those of a prompt."""
    pipe = build("flux")
    prompt, pooled, _ = pipe.encode_prompt("a dog", "a dog", max_sequence_length=12)
    picture = torch.randn(1, 5, prompt.shape[-1], generator=torch.Generator().manual_seed(1))
    embeds = {"prompt_embeds": torch.cat([prompt, picture], dim=1), "pooled_prompt_embeds": pooled}
    call = {**CALLS["flux"], **embeds, "prompt": None}
    plain = generate(pipe, call, prompt=None)
    guided = guide(pipe, RULE, validate=True)
    result = generate(guided, call, nag_negative_prompt=NEGATIVE)
    assert differs(result, plain)
    negative = {**CALLS["flux"], "max_sequence_length": 12}
    assert_close(result, by_lock_step_of_texts(pipe, call, negative))


def by_lock_step_of_texts(pipe, call, negative):
    """As `by_lock_step`, the negative prompt being encoded in a call of its own."""
    encoded = denoiser_calls(pipe, lambda: generate(pipe, negative, prompt=NEGATIVE))[0]

    def answer(denoiser, arguments):
        positive = {name: arguments.pop(name) for name in TEXT}
        other = {name: encoded[name] for name in TEXT}
        return lock_step(Copying(denoiser), arguments, positive, other, nag_formula(*SETTINGS))

    with replaced_forwards(denoisers_of(pipe), answer):
        return generate(pipe, call, prompt=None)


@pytest.mark.parametrize("guided_part", ["base", "refiner", "both"])
def test_base_and_refiner(guided_part):
    base = build("sdxl")
    parts = {"text_encoder": None, "tokenizer": None, "text_encoder_2": base.text_encoder_2}
    sizes = {"cross_attention_dim": 16, "projection_class_embeddings_input_dim": 16 + 5 * 8}
    refiner_unet = resized(base.unet, **sizes)
    refiner = variant(
        base, StableDiffusionXLImg2ImgPipeline, **parts, unet=refiner_unet, requires_aesthetics_score=True
    )
    first = {**CALLS["sdxl"], **CFG, "num_inference_steps": 4, "denoising_end": 0.5}
    second = {"num_inference_steps": 4, "denoising_start": 0.5, "output_type": "latent", **CFG}

    def run(parts_guided):
        latents = first_part(base, first, parts_guided)
        if "refiner" in parts_guided:
            return generate(guide(refiner, RULE), {**second, "image": latents}, nag_negative_prompt=NEGATIVE)
        return generate(refiner, {**second, "image": latents})

    def first_part(pipe, call, parts_guided):
        if "base" in parts_guided:
            return generate(guide(pipe, RULE), call, nag_negative_prompt=NEGATIVE)
        return generate(pipe, call)

    plain, chosen = run(()), ("base", "refiner") if guided_part == "both" else (guided_part,)
    result = run(chosen)
    assert differs(result, plain)
    assert torch.equal(run(()), plain)
    if guided_part == "refiner":
        latents = generate(base, first)
        assert_close(result, by_lock_step(refiner, {**second, "image": latents}, second_half))
