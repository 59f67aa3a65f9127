"""Seed selection and verify-then-steer, with objectives that answer by a script."""

from dataclasses import dataclass, field

import pytest
import torch
from diffusers import EulerAncestralDiscreteScheduler
from diffusers.pipelines.stable_diffusion import StableDiffusionPipelineOutput

from attnsteer import NAG, guide
from attnsteer.steering.descent import LeanRule
from attnsteer.steering.learned import LearnedSteering
from attnsteer.steering.objectives import Verdict
from attnsteer.steering.recording import Recording
from attnsteer.steering.select import SeedSelection, with_seed
from attnsteer.steering.verify import Verification, merged
from steered import PROMPT, Spy, calls_of, differs, generate, pointed

# diffusers' own schedulers hand tensors to numpy in a way that numpy 2 deprecates
pytestmark = pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")

RULE = LeanRule(iterations=2, step_size=0.1)
OTHER = "a dog above a cat"


@dataclass
class Scripted(Spy):
    """Says these probabilities, one tuple per time it is asked; after that, nothing is probable."""

    answers: list = field(default_factory=list)

    def __call__(self, maps, timestep, relations):
        verdict = super().__call__(maps, timestep, relations)
        return Verdict(verdict.loss, torch.tensor(self.answers.pop(0))) if self.answers else verdict


def steering(*answers, **settings):
    settings = {"rule": RULE, "recording": Recording(size=4), **settings}
    return LearnedSteering(Scripted(answers=list(answers)), **settings)


def seed(number):
    return torch.Generator().manual_seed(number)


# Seeds


def test_the_most_probable_seed_is_drawn():
    pipe = pointed("sd")
    method = steering((0.1,), (0.8,), (0.3,), seeds=SeedSelection(3))
    guided = guide(pipe, method)
    result = generate(guided, "sd", generator=seed(3))
    report = guided.steering_report
    assert report.seeds == (1,) and len(report.trials) == 3
    chosen = with_seed({"generator": seed(3)}, 1)["generator"]
    assert torch.equal(result, generate(guide(pipe, steering()), "sd", generator=chosen))
    assert differs(result, generate(guide(pipe, steering()), "sd", generator=seed(3)))


def test_the_own_seed_is_as_without_a_choice():
    pipe = pointed("sd")
    first, second = seed(3), seed(3)
    result = generate(guide(pipe, steering((0.8,), (0.1,), seeds=SeedSelection(2))), "sd", generator=first)
    assert torch.equal(result, generate(guide(pipe, steering()), "sd", generator=second))
    assert torch.equal(first.get_state(), second.get_state())


def test_each_picture_gets_the_best_of_its_own_seeds():
    pipe = pointed("sd")
    prompts = [PROMPT, "a bird", OTHER]
    guided = guide(pipe, steering((0.1, 0.7), (0.9, 0.2), seeds=SeedSelection(2)))
    own = [seed(n) for n in range(3)]
    others = with_seed({"generator": [seed(n) for n in range(3)]}, 1)["generator"]
    result = generate(guided, "sd", prompt=prompts, generator=own)
    assert guided.steering_report.seeds == (1, 0)
    chosen = [others[0], seed(1), seed(2)]
    assert torch.equal(result, generate(guide(pipe, steering()), "sd", prompt=prompts, generator=chosen))


def test_one_generator_for_a_batch_is_chosen_by_all_its_pictures():
    """0.5 x 0.5 beats 0.9 x 0.1, whichever picture profits."""
    pipe = pointed("sd")
    guided = guide(pipe, steering((0.9, 0.1), (0.5, 0.5), seeds=SeedSelection(2)))
    generate(guided, "sd", prompt=[PROMPT, OTHER], generator=seed(1))
    assert guided.steering_report.seeds == (1, 1)


def test_a_seed_that_is_good_enough_ends_the_search():
    guided = guide(pointed("sd"), steering((0.2,), (0.95,), seeds=SeedSelection(5, enough=0.9)))
    generate(guided, "sd")
    assert len(guided.steering_report.trials) == 2


def test_trials_end_where_they_are_judged():
    pipe = pointed("sd")
    guided = guide(pipe, steering((0.1,), (0.1,), (0.1,), seeds=SeedSelection(3, at=0.5)))
    with calls_of(pipe.unet) as alone:
        generate(guide(pipe, steering()), "sd", num_inference_steps=4)
    with calls_of(pipe.unet) as calls:
        generate(guided, "sd", num_inference_steps=4)
    # Each trial: one dry run (the contrast text is kept), two steps, the third call with the judged one inside it.
    assert len(calls) - len(alone) == 3 * (1 + 2 + 2)
    report = guided.steering_report
    assert [[s.step_index for s in t.steps] for t in report.trials] == [[2]] * 3
    assert report.iterations == 3 + sum(step.iterations for step in report.steps)


def test_trials_leave_the_global_random_state_and_callbacks_alone():
    pipe, states, steps = pointed("sd"), [], []
    pipe.scheduler = EulerAncestralDiscreteScheduler()
    for method in (steering(), steering((0.9,), seeds=SeedSelection(2))):
        torch.manual_seed(4)
        generate(
            guide(pipe, method), "sd", generator=None, callback_on_step_end=lambda p, i, t, k: steps.append(i) or k
        )
        states.append(torch.get_rng_state())
    assert torch.equal(*states) and steps == [0, 1, 0, 1]


def test_other_seeds_follow_from_the_state_of_the_own_one():
    own = seed(7)
    before = own.get_state()
    drawn = [torch.rand(3, generator=with_seed({"generator": own}, n)["generator"]).tolist() for n in (1, 2, 1)]
    assert torch.equal(own.get_state(), before)
    assert drawn[0] == drawn[2] != drawn[1]
    own.manual_seed(8)
    assert torch.rand(3, generator=with_seed({"generator": own}, 1)["generator"]).tolist() != drawn[0]
    torch.manual_seed(7)
    assert torch.rand(3, generator=with_seed({}, 1)["generator"]).tolist() == drawn[0]


def test_a_choice_among_given_latents_is_an_error():
    guided = guide(pointed("sd"), steering(seeds=SeedSelection(2)))
    with pytest.raises(ValueError, match="leave latents out"):
        generate(guided, "sd", latents=torch.zeros(1, 4, 8, 8))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SeedSelection(1), "candidates must be >= 2"),
        (lambda: SeedSelection(at=1.0), "at must be in"),
        (lambda: SeedSelection(enough=0.0), "enough must be in"),
        (lambda: Verification(probability=1.0), "probability must be in"),
        (lambda: Verification(at=-0.1), "at must be in"),
    ],
)
def test_settings_out_of_range_are_errors(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# Verification


@pytest.mark.parametrize("name", ["sd", "flux", "wan"])
def test_a_picture_that_is_right_is_the_stock_picture(name):
    pipe = pointed(name)
    guided = guide(pipe, steering((0.9,), verify=Verification()))
    assert torch.equal(generate(guided, name), generate(pipe, name))
    report = guided.steering_report
    assert report.verified == (pytest.approx(0.9),) and not report.steps and report.iterations == 1


@pytest.mark.parametrize("name", ["sd", "flux", "wan"])
def test_a_picture_that_is_wrong_is_steered_from_the_same_seed(name):
    pipe = pointed(name)
    guided, generators = guide(pipe, steering((0.2,), verify=Verification())), [seed(3), seed(3)]
    result = generate(guided, name, generator=generators[0])
    assert torch.equal(result, generate(guide(pipe, steering()), name, generator=generators[1]))
    assert torch.equal(generators[0].get_state(), generators[1].get_state())
    report = guided.steering_report
    assert [step.step_index for step in report.trials[0].steps] == [1] and report.steps[0].iterations == 2
    assert differs(result, generate(pipe, name, generator=seed(3)))


def test_a_wrong_picture_is_given_up_where_it_is_judged():
    pipe = pointed("sd")
    with calls_of(pipe.unet) as alone:
        generate(guide(pipe, steering()), "sd", num_inference_steps=8)
    with calls_of(pipe.unet) as calls:
        generate(guide(pipe, steering((0.2,), verify=Verification())), "sd", num_inference_steps=8)
    assert len(calls) - len(alone) == 1 + 4 + 2  # a dry run, half of the steps, the next call with the judged one


@pytest.mark.parametrize("by", ["detector", "objective"])
def test_of_a_batch_only_the_wrong_pictures_are_drawn_again(by):
    pipe = pointed("sd")
    prompts, seen = [PROMPT, "a bird", OTHER], []

    def detector(pictures, relations):
        seen.append((len(pictures), [[r.relation for r in each] for each in relations]))
        return [True, False]

    verification = Verification(detector) if by == "detector" else Verification()
    method = steering(*([] if by == "detector" else [(0.9, 0.1)]), verify=verification)
    guided = guide(pipe, method)
    plain = generate(pipe, "sd", prompt=prompts, generator=[seed(n) for n in range(3)])
    result = generate(guided, "sd", prompt=prompts, generator=[seed(n) for n in range(3)])
    assert torch.equal(result[:2], plain[:2])
    alone = generate(guide(pipe, steering()), "sd", prompt=OTHER, generator=[seed(2)])
    assert torch.equal(result[2:], alone) and differs(result[2:], plain[2:])
    assert [len(r) for r in guided.steering_report.relations] == [1, 0, 1]
    assert seen == ([(2, [["to the left of"], ["above"]])] if by == "detector" else [])


def test_pictures_that_share_a_generator_are_drawn_again_together_and_steered_apart():
    pipe = pointed("sd")
    guided = guide(pipe, steering((0.9, 0.1), verify=Verification()))
    call = {"num_images_per_prompt": 2, "num_inference_steps": 4}
    plain, result = generate(pipe, "sd", **call), generate(guided, "sd", **call)
    assert torch.equal(result[0], plain[0]) and differs(result[1], plain[1])


def test_with_a_negative_method_the_plain_picture_is_guided_too():
    pipe, nag = pointed("flux"), NAG(scale=4.0, tau=2.0, alpha=0.5)
    both = guide(pipe, nag, steering((0.9, 0.1), verify=Verification()))
    call = {"prompt": [PROMPT, OTHER], "nag_negative_prompt": ["blurry", "red"]}
    result = generate(both, "flux", generator=[seed(1), seed(2)], **call)
    plain = generate(guide(pipe, nag), "flux", generator=[seed(1), seed(2)], **call)
    assert torch.equal(result[:1], plain[:1])
    alone = generate(
        guide(pipe, nag, steering()), "flux", prompt=OTHER, nag_negative_prompt="red", generator=[seed(2)]
    )
    assert torch.equal(result[1:], alone)


def test_seeds_and_verification_together():
    pipe = pointed("sd")
    both = {"seeds": SeedSelection(2), "verify": Verification()}
    guided = guide(pipe, steering((0.1,), (0.6,), (0.9,), **both))
    result = generate(guided, "sd", generator=seed(3))
    chosen = with_seed({"generator": seed(3)}, 1)["generator"]
    assert torch.equal(result, generate(pipe, "sd", generator=chosen))
    assert guided.steering_report.seeds == (1,) and len(guided.steering_report.trials) == 3


def test_a_detector_must_judge_every_picture():
    guided = guide(pointed("sd"), steering(verify=Verification(lambda pictures, relations: [])))
    with pytest.raises(ValueError, match="judged 0 of 1 pictures"):
        generate(guided, "sd")


def test_outputs_are_merged_field_by_field():
    whole = StableDiffusionPipelineOutput(["a", "b", "c"], [False, False, False])
    part = StableDiffusionPipelineOutput(["C", "A"], [True, True])
    both = merged(whole, part, [2, 0])
    assert both.images == ["A", "b", "C"] and both.nsfw_content_detected == [True, False, True]
    assert whole.images == ["a", "b", "c"]
    unchecked = StableDiffusionPipelineOutput(torch.zeros(3, 2).numpy(), None)
    both = merged(unchecked, StableDiffusionPipelineOutput(torch.ones(3, 2).numpy(), None), [1], [2])
    assert both.images.tolist() == [[0, 0], [1, 1], [0, 0]] and both.nsfw_content_detected is None
    tensors = merged((torch.zeros(3, 2),), (torch.ones(1, 2),), [1])
    assert tensors[0].tolist() == [[0, 0], [1, 1], [0, 0]]
