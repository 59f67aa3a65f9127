"""Which steps are steered: schedulers go on from the steered latents, noise levels are those of the steps."""

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    HeunDiscreteScheduler,
    LCMScheduler,
    PNDMScheduler,
    StableDiffusionImg2ImgPipeline,
    UniPCMultistepScheduler,
)
from PIL import Image

from attnsteer import guide
from attnsteer.steering.classifier_settings import MapSource
from attnsteer.steering.descent import LeanRule
from attnsteer.steering.learned import LearnedSteering
from attnsteer.steering.recording import Recording
from steered import (
    PROMPT,
    Nudge,
    Spy,
    calls_of,
    denoiser_of,
    differs,
    generate,
    latents_seen,
    pointed,
    small_classifier,
)

# diffusers' own schedulers hand tensors to numpy in a way that numpy 2 deprecates
pytestmark = pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")


def sampled_by_hand(pipe, scheduler, nudge, steps, scale, skipped, seed=3):
    """Stable Diffusion with CFG, written out; at every step but `skipped` the denoiser's input is nudged."""
    generator = torch.Generator().manual_seed(seed)
    cond, uncond = pipe.encode_prompt(PROMPT, "cpu", 1, True)
    scheduler.set_timesteps(steps)
    x = torch.randn(1, 4, 8, 8, generator=generator) * scheduler.init_noise_sigma
    stochastic = isinstance(scheduler, EulerAncestralDiscreteScheduler | LCMScheduler)
    for index, t in enumerate(scheduler.timesteps):
        seen = scheduler.scale_model_input(x, t)
        if index not in skipped:
            factor = (seen * x).sum() / x.square().sum()
            seen = seen + nudge.pattern(x)
            x = x + nudge.pattern(x) / factor
        with torch.no_grad():
            first, second = (pipe.unet(seen, t, encoder_hidden_states=text).sample for text in (uncond, cond))
        noise = first + scale * (second - first)
        options = {"generator": generator} if stochastic else {}
        x = scheduler.step(noise, t, x, return_dict=False, **options)[0]
    return x


@pytest.mark.parametrize(
    ("make", "skipped"),
    [
        (DDIMScheduler, ()),
        (EulerDiscreteScheduler, ()),
        (EulerAncestralDiscreteScheduler, ()),
        (DPMSolverMultistepScheduler, ()),
        (LCMScheduler, ()),
        (HeunDiscreteScheduler, (1, 3, 5)),
        (lambda: PNDMScheduler(skip_prk_steps=True), (1,)),
    ],
    ids=["ddim", "euler", "ancestral", "dpm++", "lcm", "heun", "pndm"],
)
def test_the_scheduler_goes_on_from_the_steered_latents(make, skipped):
    pipe = pointed("sd")
    pipe.scheduler, nudge = make(), Nudge()
    guided = guide(pipe, LearnedSteering(Spy(), rule=nudge, end=1.0))
    result = generate(guided, "sd", num_inference_steps=4, guidance_scale=3.0)
    expected = sampled_by_hand(pipe, make(), nudge, 4, 3.0, skipped)
    total = len(pipe.scheduler.timesteps)
    assert [s.step_index for s in guided.steering_report.steps] == [i for i in range(total) if i not in skipped]
    torch.testing.assert_close(result, expected, rtol=2e-3, atol=2e-3 * expected.abs().max().item())
    assert differs(result, generate(pipe, "sd", num_inference_steps=4, guidance_scale=3.0))


@pytest.mark.parametrize("name", ["sd", "wan"])
def test_unipc_is_steered_at_every_step(name):
    """That its corrector keeps the move has a closed form in test_scheduler_state; here it runs in the pipeline."""
    pipe = pointed(name)
    flow = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 3.0} if name == "wan" else {}
    pipe.scheduler = UniPCMultistepScheduler(**flow)
    guided = guide(pipe, LearnedSteering(Spy(), rule=Nudge(0.5), start=0.5, end=0.75))
    denoiser = denoiser_of(pipe)
    with latents_seen(denoiser) as plain:
        generate(pipe, name, num_inference_steps=4)
    with latents_seen(denoiser) as seen:
        generate(guided, name, num_inference_steps=4)
    assert [s.step_index for s in guided.steering_report.steps] == [2]
    moves = [(b - a).flatten() for a, b in zip(plain, seen, strict=True)]
    assert not moves[0].any() and not moves[1].any()
    pattern = Nudge(0.5).pattern(seen[2]).flatten()
    torch.testing.assert_close(moves[2], pattern)
    assert torch.cosine_similarity(moves[3], pattern, dim=0) > 0.5 and moves[3].norm() > 0.1 * pattern.norm()


def log_snr(alpha_cumprod):
    return float((alpha_cumprod / (1 - alpha_cumprod)).log())


@pytest.mark.parametrize(
    "make", [DDIMScheduler, DPMSolverMultistepScheduler, EulerDiscreteScheduler], ids=["ddim", "dpm++", "euler"]
)
@pytest.mark.parametrize("strength", [1.0, 0.5])
def test_noise_levels_are_those_of_the_steps_in_image_to_image_too(make, strength):
    pipe = StableDiffusionImg2ImgPipeline(**pointed("sd").components, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = make()
    spy, picture = Spy(), Image.new("RGB", (16, 16), (40, 90, 200))
    guided = guide(pipe, LearnedSteering(spy, rule=LeanRule(iterations=1), end=1.0, recording=Recording(size=4)))
    with calls_of(pipe.unet) as calls:
        guided(
            PROMPT, image=picture, strength=strength, num_inference_steps=4, guidance_scale=1.0, output_type="latent"
        )
    times = [float(call["timestep"]) for call in calls]
    pipeline_times = sorted({*times}, reverse=True)
    assert len(pipeline_times) == 4 * strength == len(spy.asked)
    expected = [log_snr(pipe.scheduler.alphas_cumprod[int(t)]) for t in pipeline_times]
    assert [level for _, level, _ in spy.asked] == pytest.approx(expected, rel=0.05, abs=0.05)


def test_noise_levels_of_flow_matching():
    spy = Spy()
    guided = guide(pointed("flux"), LearnedSteering(spy, rule=LeanRule(iterations=1), end=1.0))
    generate(guided, "flux", num_inference_steps=4, sigmas=[0.9, 0.6, 0.4, 0.2])
    sigmas = guided.scheduler.sigmas[:4]
    expected = (2 * ((1 - sigmas) / sigmas).log()).tolist()
    assert [level for _, level, _ in spy.asked] == pytest.approx(expected, rel=1e-3)


def test_a_classifier_that_counts_steps_gets_the_trained_index_ahead():
    """Trained at 5, 10, 25 and 49 of 50: DESIGN of the published code, each step takes the next trained one."""
    source = MapSource(timesteps=(5, 10, 25, 49), num_steps=50)
    method = LearnedSteering.from_classifier(small_classifier(4, "index", num_timesteps=50, source=source))
    scheduler = DDIMScheduler()
    scheduler.set_timesteps(50)
    levels = [method.noise_level(scheduler, t, i) for i, t in enumerate(scheduler.timesteps)]
    assert levels == [5.0] * 6 + [10.0] * 5 + [25.0] * 15 + [49.0] * 24
    scheduler.set_timesteps(10)  # the same fractions of the schedule
    levels = [method.noise_level(scheduler, t, i) for i, t in enumerate(scheduler.timesteps)]
    assert levels == [5.0, 5.0, 10.0, 25.0, 25.0, 25.0] + [49.0] * 4
