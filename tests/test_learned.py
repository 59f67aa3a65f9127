"""Learned steering in stock pipelines of every family."""

from dataclasses import replace

import pytest
import torch
from accelerate import cpu_offload
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerAncestralDiscreteScheduler,
    EulerDiscreteScheduler,
    FluxKontextPipeline,
    HeunDiscreteScheduler,
    LCMScheduler,
    PNDMScheduler,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
    UNet2DConditionModel,
    UniPCMultistepScheduler,
)
from diffusers.hooks import apply_group_offloading
from PIL import Image

from attnsteer import NAG, guide
from attnsteer.families import family_of
from attnsteer.install import record_maps
from attnsteer.seam.layers import text_layers
from attnsteer.steering.classifier import RelationClassifier
from attnsteer.steering.classifier_settings import ClassifierSettings, EncoderSize, MapSource
from attnsteer.steering.descent import LeanRule, PublishedRule
from attnsteer.steering.learned import LearnedSteering
from attnsteer.steering.objectives import CentroidObjective
from attnsteer.steering.offload import weights_by_reference
from attnsteer.steering.recording import Recording
from attnsteer.steering.relations import Relation, Span, strip_markup
from steered import (
    CFG_OFF,
    CFG_ON,
    FAMILIES,
    PROMPT,
    Nudge,
    Spy,
    calls_of,
    denoiser_of,
    generate,
    latents_seen,
    places,
    pointed,
)
from tiny import CALLS
from tiny.state import fingerprint

# diffusers' own schedulers hand tensors to numpy in a way that numpy 2 deprecates
pytestmark = pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")

RELATIONS = ("to the left of", "to the right of", "above", "below")
RULE = LeanRule(iterations=4, step_size=0.05, probability=0.999)


def centroid(**settings):
    return LearnedSteering(CentroidObjective(), **{"rule": RULE, "recording": Recording(size=8), **settings})


def small_classifier(channels, conditioning="log_snr", seed=0, **settings):
    size = EncoderSize(width=8, layers=1, heads=2, feedforward=8)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        classifier = RelationClassifier(
            ClassifierSettings(
                RELATIONS, channels, map_size=4, extractor=size, pooling_heads=2, head=size, conditioning=conditioning,
                **settings,
            )
        )  # fmt: skip
    return classifier.eval()


def differs(first, second):
    return (first - second).abs().max() > 1e-3 * second.abs().max()


# It works, in every family


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("cfg", [CFG_OFF, CFG_ON], ids=["no cfg", "cfg"])
def test_relations_become_more_probable_and_the_picture_changes(name, cfg):
    pipe = pointed(name)
    generators = [torch.Generator().manual_seed(3) for _ in range(2)]
    plain = generate(pipe, name, generator=generators[0], **cfg[name])
    guided = guide(pipe, centroid())
    result = generate(guided, name, generator=generators[1], **cfg[name])
    assert differs(result, plain)
    assert torch.equal(generators[0].get_state(), generators[1].get_state())
    (step,) = guided.steering_report.steps  # half of two steps
    assert step.step_index == 0 and 1 < step.iterations <= 4 and step.after[0] > step.before[0] + 1e-4
    assert guided.steering_report.iterations == step.iterations
    assert torch.equal(generate(pipe, name, **cfg[name]), plain)


@pytest.mark.parametrize("name", FAMILIES)
def test_more_iterations_get_further(name):
    pipe = pointed(name)
    after = []
    for iterations in (2, 6):
        guided = guide(pipe, centroid(rule=LeanRule(iterations, 0.03, probability=0.9999)))
        generate(guided, name)
        after.append(guided.steering_report.steps[0].after[0])
    assert after[1] > after[0]


@pytest.mark.parametrize("name", ["sd", "sd3", "flux", "wan"])
def test_a_classifier_steers(name):
    pipe = pointed(name)
    layers = text_layers(denoiser_of(pipe), family_of(denoiser_of(pipe)))
    classifier = small_classifier(sum(layer.module.heads for layer in layers))
    classifier.train().requires_grad_(True)
    method = LearnedSteering.from_classifier(classifier, rule=RULE)
    assert not classifier.training and not any(p.requires_grad for p in classifier.parameters())
    assert method.recording == Recording(size=4) and method.rule is RULE
    guided = guide(pipe, method)
    generate(guided, name)
    (step,) = guided.steering_report.steps
    assert step.after[0] > step.before[0]


def test_several_relations_of_one_prompt_are_steered_together():
    pipe = pointed("flux")
    prompt = "a dog above a cat and to the left of a bird"
    wanted = [("dog", "above", "cat"), ("dog", "to the left of", "bird")]
    for rule in (LeanRule(8, 0.05, probability=0.999), PublishedRule(2.0, (1e-5,), 8)):
        spy = Spy()
        guided = guide(pipe, LearnedSteering(spy, rule=rule, recording=Recording(size=4)))
        generate(guided, "flux", prompt=prompt, max_sequence_length=24, steer_relations=wanted)
        assert {entry[2] for entry in spy.asked} == {("above", "to the left of")}
        assert [len(r) for r in guided.steering_report.relations] == [2]


# Nothing runs, and nothing costs anything, without a relation


@pytest.mark.parametrize("name", FAMILIES)
def test_a_prompt_without_a_relation_is_the_stock_pipeline(name):
    pipe = pointed(name)
    encoder = pipe.text_encoder_2 if name == "flux" else pipe.text_encoder
    prompt = "a photo of a dog and a cat"
    with calls_of(denoiser_of(pipe)) as plain_calls, calls_of(encoder) as plain_encodings:
        plain = generate(pipe, name, prompt=prompt, **CFG_ON[name])
    guided = guide(pipe, centroid())
    with calls_of(denoiser_of(pipe)) as calls, calls_of(encoder) as encodings:
        result = generate(guided, name, prompt=prompt, **CFG_ON[name])
    assert torch.equal(result, plain) and guided.steering_report is None
    assert len(calls) == len(plain_calls) and len(encodings) == len(plain_encodings)


def test_a_satisfied_relation_costs_one_forward_and_changes_nothing():
    pipe = pointed("sd")
    guided = guide(pipe, centroid(rule=LeanRule(probability=1e-6)))
    with latents_seen(pipe.unet):
        result = generate(guided, "sd")
    assert torch.equal(result, generate(pipe, "sd"))
    assert [step.iterations for step in guided.steering_report.steps] == [1]


# What is steered


def test_relations_given_by_the_caller():
    pipe = pointed("flux")
    guided = guide(pipe, centroid())
    plain, by_prompt = generate(pipe, "flux"), generate(guided, "flux")
    given = [("red circle", "left of", "dog")]
    assert torch.equal(generate(guided, "flux", steer_relations=given), by_prompt)
    assert torch.equal(generate(guided, "flux", steer_relations=[given]), by_prompt)
    relation = Relation.of(PROMPT, "red circle", "to the left of", "dog")
    assert torch.equal(generate(guided, "flux", steer_relations=[relation]), by_prompt)
    assert differs(generate(guided, "flux", steer_relations=[("dog", "above", "red circle")]), by_prompt)
    assert torch.equal(generate(guided, "flux", steer_relations=[]), plain)
    assert guided.steering_report is None


def test_relations_given_for_each_prompt():
    pipe = pointed("sd")
    guided = guide(pipe, centroid())
    prompts = [PROMPT, "a cat and a bird"]
    wanted = [[], [("bird", "above", "cat")]]
    generate(guided, "sd", prompt=prompts, steer_relations=wanted)
    assert guided.steering_report.relations == [[], [Relation.of(prompts[1], "bird", "above", "cat")]]
    assert [len(step.before) for step in guided.steering_report.steps] == [1]
    plain = generate(pipe, "sd", prompt=prompts)
    assert torch.equal(generate(guided, "sd", prompt=prompts, steer_relations=[]), plain)
    assert torch.equal(generate(guided, "sd", prompt=prompts, steer_relations=[[], []]), plain)


@pytest.mark.parametrize(
    ("prompts", "wanted", "message"),
    [
        (PROMPT, [[("dog", "above", "red circle")], []], "relations for 2 prompts, the call has 1"),
        ([PROMPT] * 2, [("dog", "above", "red circle")] * 2, "relations for 1 prompts, the call has 2"),
        (PROMPT, ("dog", "above", "red circle"), "must be a list of"),
        (PROMPT, "dog above red circle", "must be a list of"),
        (PROMPT, [("dog", "above")], "must be a list of"),
        (PROMPT, [[("dog", "above", "red circle")], ("dog", "above", "red circle")], "must be a list of"),
        (PROMPT, [("cat", "above", "dog")], '"cat" is not in the prompt'),
        (PROMPT, [("dog", "inside", "red circle")], "inside"),
        (PROMPT, [Relation(Span("cat", 2, 5), "above", Span("dog", 6, 9))], "is not part of the prompt"),
    ],
)
def test_relations_that_make_no_sense_are_errors(prompts, wanted, message):
    with pytest.raises(ValueError, match=message):
        centroid().prepare({"prompt": prompts, "steer_relations": wanted})


def test_a_call_without_words_is_an_error():
    with pytest.raises(ValueError, match="pass prompt=... rather than embeddings"):
        centroid().prepare({"prompt_embeds": torch.zeros(1, 4, 4)})


def test_preparing_twice_changes_nothing():
    for call in ({"prompt": "[dog]{above}[cat]"}, {"prompt": ["a dog", PROMPT], "steer_relations": None}):
        once = centroid().prepare(call)
        assert centroid().prepare(once) == once


def test_markup_in_the_prompt():
    pipe = pointed("flux")
    guided = guide(pipe, centroid())
    marked = "a photo of [red circle]{left of}[dog]"
    plain = strip_markup(marked).text
    assert "{" not in plain
    expected = generate(guided, "flux", prompt=plain, steer_relations=[("red circle", "left of", "dog")])
    assert torch.equal(generate(guided, "flux", prompt=marked), expected)
    unsteered = generate(guided, "flux", prompt=marked, steer_relations=[])
    assert torch.equal(unsteered, generate(pipe, "flux", prompt=plain))


def test_relations_the_objective_does_not_know():
    pipe, prompt = pointed("sd"), "a red circle in front of a dog"
    with pytest.raises(ValueError, match="cannot judge \\['in front of'\\].*unknown='skip'"):
        generate(guide(pipe, centroid()), "sd", prompt=prompt)
    guided = guide(pipe, centroid(unknown="skip"))
    assert torch.equal(generate(guided, "sd", prompt=prompt), generate(pipe, "sd", prompt=prompt))
    both = "a cat above a bird"
    generate(guided, "sd", prompt=[prompt, both])
    assert [len(found) for found in guided.steering_report.relations] == [0, 1]
    assert "not judged" in str(guided.explain(prompt)) and "'cat' above 'bird'" in str(guided.explain(both))


def test_settings_out_of_range_are_errors():
    for settings in ({"start": 0.5, "end": 0.5}, {"end": 1.5}, {"start": -0.1}):
        with pytest.raises(ValueError, match="0 <= start < end <= 1"):
            centroid(**settings)
    with pytest.raises(ValueError, match="'error', 'skip' or 'hand-made'"):
        centroid(unknown="ignore")
    with pytest.raises(ValueError, match="none of the 2 steps lies from 0.6 to 0.9"):
        generate(guide(pointed("sd"), centroid(start=0.6, end=0.9)), "sd")


# Batches


@pytest.mark.parametrize("name", ["sd", "flux", "wan"])
@pytest.mark.parametrize("cfg", [CFG_OFF, CFG_ON], ids=["no cfg", "cfg"])
def test_prompts_of_a_batch_are_steered_each_by_its_own_relations(name, cfg):
    pipe = pointed(name)
    prompts = ["a dog above a cat", "a photo of a bird", PROMPT]
    options = dict(cfg[name])
    if "negative_prompt" in options:
        options["negative_prompt"] = [options["negative_prompt"]] * 3

    def generators(rows):
        return [torch.Generator().manual_seed(row) for row in rows]

    plain = generate(pipe, name, prompt=prompts, generator=generators(range(3)), **options)
    guided = guide(pipe, centroid())
    result = generate(guided, name, prompt=prompts, generator=generators(range(3)), **options)
    assert torch.equal(result[1], plain[1])
    assert [len(step.before) for step in guided.steering_report.steps] == [2]
    for row in (0, 2):
        alone = generate(guided, name, prompt=prompts[row], generator=generators([row]), **cfg[name])
        assert differs(result[row], plain[row])
        torch.testing.assert_close(result[row], alone[0], rtol=1e-3, atol=1e-3 * alone.abs().max().item())


@pytest.mark.parametrize("name", ["sd", "wan"])
def test_several_pictures_of_each_prompt(name):
    pipe = pointed(name)
    more = {"num_videos_per_prompt" if name == "wan" else "num_images_per_prompt": 2}
    prompts = [PROMPT, "a dog above a cat"]
    noise = generate(pipe, name, prompt=prompts * 2, num_inference_steps=1)
    latents = torch.randn(4, *noise.shape[1:], generator=torch.Generator().manual_seed(1))
    guided = guide(pipe, centroid(rule=LeanRule(iterations=1)))
    result = generate(guided, name, prompt=prompts, latents=latents, **CFG_ON[name], **more)
    assert differs(result, generate(pipe, name, prompt=prompts, latents=latents, **CFG_ON[name], **more))
    assert [len(step.before) for step in guided.steering_report.steps] == [4]
    for row in range(4):
        alone = generate(guided, name, prompt=prompts[row // 2], latents=latents[row : row + 1], **CFG_ON[name])
        torch.testing.assert_close(result[row], alone[0], rtol=1e-3, atol=1e-3 * alone.abs().max().item())


# Schedulers


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


# Other pipelines and methods


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
    assert "'red circle' to the left of 'dog'" in text and "no relation in the prompt" in text
    assert "from 0 to 0.5 of the steps" in text


def test_settings_are_replaced_like_those_of_any_dataclass():
    assert replace(centroid(), end=0.25).end == 0.25
    assert places(pointed("sd").tokenizer, PROMPT, 1) == [2]
