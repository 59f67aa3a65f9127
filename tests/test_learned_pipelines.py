"""Learned steering in pipelines with more in them: masks, references, two experts, guiders, negative prompts."""

import pytest
import torch
from diffusers import (
    FluxKontextPipeline,
    StableDiffusionInpaintPipeline,
    UNet2DConditionModel,
)
from PIL import Image

from attnsteer import NAG, guide
from steered import (
    PROMPT,
    calls_of,
    centroid,
    differs,
    generate,
    latents_seen,
    pointed,
)
from tiny import CALLS

# diffusers' own schedulers hand tensors to numpy in a way that numpy 2 deprecates
pytestmark = pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")


def test_inpainting_moves_the_latents_and_not_the_mask():
    parts = pointed("sd").components
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(2)
        parts["unet"] = UNet2DConditionModel.from_config({**parts["unet"].config, "in_channels": 9}).eval()
    pipe = StableDiffusionInpaintPipeline(**parts, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    call = {"image": Image.new("RGB", (16, 16), (40, 90, 200)), "mask_image": Image.new("L", (16, 16), 255)}
    call |= {"height": 16, "width": 16, "num_inference_steps": 2, "output_type": "latent", "guidance_scale": 4.0}

    def run(pipe):
        with latents_seen(parts["unet"]) as seen:
            pipe(PROMPT, generator=torch.Generator().manual_seed(1), **call)
        return seen

    plain, steered = run(pipe), run(guide(pipe, centroid(end=1.0)))
    assert len(plain) == len(steered) == 2
    for before, after in zip(plain, steered, strict=True):
        assert torch.equal(after[:, 4:], before[:, 4:]) and differs(after[:, :4], before[:, :4])
    torch.testing.assert_close(steered[0][:, :4].norm(), plain[0][:, :4].norm())


def test_kontext_moves_the_target_and_not_the_reference():
    parts = {**pointed("flux").components, "image_encoder": None, "feature_extractor": None}
    pipe = FluxKontextPipeline(**parts)
    pipe.set_progress_bar_config(disable=True)
    call = {**CALLS["flux"], "image": Image.new("RGB", (16, 16), (40, 90, 200)), "max_area": 256}
    call |= {"_auto_resize": False, "max_sequence_length": 24}

    def run(pipe):
        with latents_seen(parts["transformer"]) as seen:
            pipe(prompt=PROMPT, generator=torch.Generator().manual_seed(1), **call)
        return seen

    plain, steered = run(pipe), run(guide(pipe, centroid()))
    target = plain[0].shape[1] // 2
    assert torch.equal(steered[0][:, target:], plain[0][:, target:])
    assert differs(steered[0][:, :target], plain[0][:, :target])


def test_both_experts_are_steered_each_in_its_own_steps():
    pipe = pointed("wan_two_experts")
    plain = generate(pipe, "wan_two_experts", num_inference_steps=4)
    guided = guide(pipe, centroid(end=1.0))
    with latents_seen(pipe.transformer) as first, latents_seen(pipe.transformer_2) as second:
        generate(guided, "wan_two_experts", num_inference_steps=4)
    assert 0 < len(first) < 4 and len(first) + len(second) == 4
    steps = guided.steering_report.steps
    assert [step.step_index for step in steps] == [0, 1, 2, 3]
    assert all(step.iterations > 1 for step in steps)
    late = guide(pipe, centroid(start=len(first) / 4, end=1.0))
    with calls_of(pipe.transformer) as early_calls, calls_of(pipe.transformer_2) as late_calls:
        result = generate(late, "wan_two_experts", num_inference_steps=4)
    assert len(early_calls) - len(first) <= 2  # the two dry runs end at the first expert
    assert len(late_calls) > len(second) and differs(result, plain)


def test_calls_that_repeat_the_latents_differently_get_the_steered_ones():
    """SD3's skip-layer guidance calls the transformer again with the latents alone, without the CFG half."""
    pipe = pointed("sd3")
    options = {"guidance_scale": 4.0, "skip_guidance_layers": [1], "skip_layer_guidance_stop": 1.0}
    options |= {"skip_layer_guidance_start": -1.0, "num_inference_steps": 1}
    guided = guide(pipe, centroid(end=1.0))
    with latents_seen(pipe.transformer) as seen:
        generate(guided, "sd3", **options)
    assert [len(latents) for latents in seen] == [2, 1]
    assert torch.equal(seen[0][1:], seen[1])
    with latents_seen(pipe.transformer) as plain:
        generate(pipe, "sd3", **options)
    assert differs(seen[1], plain[1])


def test_together_with_nag():
    """As NAG alone from the latents to which steering alone moves."""
    pipe = pointed("flux")
    nag = NAG(scale=4.0, tau=2.0, alpha=0.5)
    both, steered = guide(pipe, nag, centroid()), guide(pipe, centroid())
    with latents_seen(pipe.transformer) as seen:
        generate(steered, "flux")
    result = generate(both, "flux", nag_negative_prompt="blurry")
    assert both.steering_report == steered.steering_report
    expected = generate(guide(pipe, nag), "flux", latents=seen[0], nag_negative_prompt="blurry")
    torch.testing.assert_close(result, expected)
    assert differs(result, generate(steered, "flux"))


@pytest.mark.parametrize("name", ["sd", "flux", "sd3"])
@pytest.mark.parametrize("size", [(16, 48), (48, 16)], ids=["wide", "tall"])
def test_pictures_need_not_be_square(name, size):
    """Side by side, and one upon the other: rows and columns of the maps are not mixed up."""
    pipe, (height, width) = pointed(name), size
    for relation in ("left of", "above"):
        guided = guide(pipe, centroid())
        wanted = [("red circle", relation, "dog")]
        generate(guided, name, height=height, width=width, steer_relations=wanted)
        (step,) = guided.steering_report.steps
        assert step.after[0] > step.before[0] + 1e-3
