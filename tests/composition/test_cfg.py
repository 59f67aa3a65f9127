"""Classifier-free guidance, batched and in separate calls: the rows of the prompt are guided, the others are not."""

import pytest
import torch

from attnsteer import guide
from composition.checks import (
    NEGATIVE,
    RULE,
    check_guidance,
    denoiser_calls,
    even_calls,
    every,
    generate,
    second_half,
)
from tiny import CALLS, build

OFF = {"guidance_scale": 1.0}
TRUE_CFG = {"true_cfg_scale": 3.0, "negative_prompt": "low quality"}


@pytest.mark.parametrize(
    ("name", "options", "rows"),
    [
        ("sd", {"guidance_scale": 5.0}, second_half),
        ("sd", {"guidance_scale": 5.0, "guidance_rescale": 0.7, "negative_prompt": "low quality"}, second_half),
        ("sd", OFF, every),
        ("sdxl", {"guidance_scale": 5.0}, second_half),
        ("sd3", {"guidance_scale": 5.0, "negative_prompt": "low quality"}, second_half),
        ("sd3", OFF, every),
        ("flux", TRUE_CFG, even_calls),
        ("flux", {}, every),
        ("wan", {"guidance_scale": 5.0}, even_calls),
        ("wan_two_experts", {"guidance_scale": 5.0, "guidance_scale_2": 3.0, "num_inference_steps": 4}, even_calls),
    ],
)
def test_the_rows_of_the_prompt_are_guided(name, options, rows):
    check_guidance(build(name), {**CALLS[name], **options}, rows)


@pytest.mark.parametrize(("name", "options"), [("sd", {"guidance_scale": 5.0}), ("flux", TRUE_CFG)])
def test_guided_calls_get_what_plain_calls_get(name, options):
    """As many denoiser calls, with the same text and, in the first one, the same noise."""
    pipe = build(name)
    call = {**CALLS[name], **options}
    plain = denoiser_calls(pipe, lambda: generate(pipe, call))
    guided = denoiser_calls(pipe, lambda: generate(guide(pipe, RULE), call, nag_negative_prompt=NEGATIVE))
    assert len(guided) == len(plain)
    latents = "sample" if name == "sd" else "hidden_states"
    assert torch.equal(guided[0][latents], plain[0][latents])
    for mine, other in zip(guided, plain, strict=True):
        text, own = mine["encoder_hidden_states"], other["encoder_hidden_states"]
        assert torch.equal(text[:, : own.shape[1]], own)
