"""Pipelines that compare the prediction with a weakened one: perturbed-attention guidance, skip-layer guidance.

The weakened prediction reads the prompt too, so it is guided as well: the difference then holds what was weakened, and
nothing of the negative prompt.
"""

import pytest
import torch
from diffusers import StableDiffusion3PAGPipeline, StableDiffusionPAGPipeline, StableDiffusionXLPAGPipeline

from attnsteer import guide
from composition.checks import (
    NEGATIVE,
    RULE,
    all_but_first_third,
    check_guidance,
    differs,
    every,
    generate,
    second_half,
)
from tiny import CALLS, build
from tiny.variants import variant

PAG = {
    "sd": (StableDiffusionPAGPipeline, "mid"),
    "sdxl": (StableDiffusionXLPAGPipeline, "mid"),
    "sd3": (StableDiffusion3PAGPipeline, "blocks.1"),
}


def pag(name):
    cls, layer = PAG[name]
    return variant(name, cls, pag_applied_layers=[layer])


@pytest.mark.parametrize("cfg", [True, False], ids=["cfg", "no cfg"])
@pytest.mark.parametrize("name", sorted(PAG))
def test_perturbed_attention_guidance(name, cfg):
    call = {**CALLS[name], "guidance_scale": 5.0 if cfg else 1.0, "pag_scale": 3.0}
    check_guidance(pag(name), call, all_but_first_third if cfg else every)


@pytest.mark.parametrize("name", sorted(PAG))
def test_perturbation_acts_in_guided_calls_and_can_be_left_out_of_one(name):
    pipe = pag(name)
    guided = guide(pipe, RULE)
    call = {**CALLS[name], "guidance_scale": 5.0, "nag_negative_prompt": NEGATIVE}
    with_pag, without = generate(guided, call, pag_scale=3.0), generate(guided, call, pag_scale=0.0)
    assert differs(with_pag, without)
    assert torch.equal(without, generate(guide(build(name), RULE), call))
    assert torch.equal(generate(guided, call, pag_scale=3.0), with_pag)


def test_several_prompts_and_negative_prompts_with_pag():
    pipe = pag("sd3")
    guided = guide(pipe, RULE)
    call = {**CALLS["sd3"], "guidance_scale": 5.0, "pag_scale": 3.0}
    prompts, negatives = ["a red circle", "a blue bear"], [NEGATIVE, "a green triangle"]
    generators = [torch.Generator().manual_seed(seed) for seed in (1, 2)]
    together = generate(guided, call, prompts, generator=generators, nag_negative_prompt=negatives)
    for row, (prompt, negative) in enumerate(zip(prompts, negatives, strict=True)):
        alone = generate(guided, call, prompt, seed=row + 1, nag_negative_prompt=negative)
        torch.testing.assert_close(together[row : row + 1], alone, atol=2e-4, rtol=1e-3)


def test_skip_layer_guidance():
    skip = {"skip_guidance_layers": [1], "skip_layer_guidance_scale": 2.8}
    window = {"skip_layer_guidance_start": 0.0, "skip_layer_guidance_stop": 1.0}
    stock = {**CALLS["sd3"], "guidance_scale": 5.0, "num_inference_steps": 4}
    call = {**stock, **skip, **window}

    def rows(index, batch):
        return every(index, batch) if batch == 1 else second_half(index, batch)

    result, _ = check_guidance(build("sd3"), call, rows, tolerance=1e-3)  # both scales enlarge the rounding
    unskipped = generate(guide(build("sd3"), RULE), stock, nag_negative_prompt=NEGATIVE)
    assert differs(result, unskipped)
