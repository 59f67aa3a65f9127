"""Video pipelines whose text is repeated for every frame, or that have two denoisers."""

import pytest
import torch
from diffusers import AnimateDiffControlNetPipeline, AnimateDiffVideoToVideoPipeline, DDIMScheduler

from attnsteer import guide
from composition.checks import (
    NEGATIVE,
    RULE,
    assert_close,
    by_lock_step,
    check_guidance,
    differs,
    every,
    generate,
    second_half,
)
from tiny import CALLS, build
from tiny.families import FAMILY_PIPELINES, build_family
from tiny.variants import PHOTO, controlnet, image_embeds, ip_adapter, lora, resized, variant

CALL = {**FAMILY_PIPELINES["AnimateDiff"][1], "guidance_scale": 5.0}


@pytest.mark.parametrize("cfg", [True, False], ids=["cfg", "no cfg"])
def test_animatediff(cfg):
    call = CALL if cfg else {**CALL, "guidance_scale": 1.0}
    check_guidance(build_family("AnimateDiff"), call, second_half if cfg else every)


def test_animatediff_with_an_ip_adapter_and_a_lora():
    pipe = build_family("AnimateDiff")
    pipe.load_lora_weights(lora({"unet": pipe.unet}))
    pipe.load_ip_adapter(ip_adapter(pipe), subfolder="", weight_name="", image_encoder_folder=None)
    embeds = [torch.cat([torch.zeros_like(entry), entry]) for entry in image_embeds()]
    result, _ = check_guidance(pipe, {**CALL, "ip_adapter_image_embeds": embeds}, second_half)
    pipe.set_ip_adapter_scale(0.0)
    without = generate(guide(pipe, RULE), CALL, nag_negative_prompt=NEGATIVE, ip_adapter_image_embeds=embeds)
    assert differs(result, without)


def test_animatediff_from_a_video():
    pipe = variant(build_family("AnimateDiff"), AnimateDiffVideoToVideoPipeline, scheduler=DDIMScheduler())
    given = {"video": [PHOTO, PHOTO.rotate(90)], "strength": 0.5, "num_inference_steps": 4}
    call = {key: value for key, value in CALL.items() if key != "num_frames"}
    check_guidance(pipe, {**call, **given}, second_half)


def test_animatediff_with_a_controlnet():
    pictures = build("sd")
    pictures.unet = resized(pictures.unet, down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"))
    pipe = variant(build_family("AnimateDiff"), AnimateDiffControlNetPipeline, controlnet=controlnet(pictures))
    check_guidance(pipe, {**CALL, "conditioning_frames": [PHOTO, PHOTO.rotate(90)]}, second_half)


def test_a_window_across_both_experts():
    pipe = build("wan_two_experts")
    call = {**CALLS["wan_two_experts"], "guidance_scale": 5.0, "num_inference_steps": 4}
    ran = []
    for name in ("transformer", "transformer_2"):
        getattr(pipe, name).register_forward_pre_hook(lambda *_, name=name: ran.append(name))
    result = generate(guide(pipe, RULE), call, nag_negative_prompt=NEGATIVE, nag_start=0.25, nag_end=0.9)
    guided_calls = (2, 4, 6)  # steps 1, 2 and 3 of 0 to 3
    assert {ran[1:][call] for call in guided_calls} == {"transformer", "transformer_2"}  # the first was the dry run

    def three_steps(index, batch):
        return every(index, batch) if index in guided_calls else []

    assert_close(result, by_lock_step(pipe, call, three_steps))
