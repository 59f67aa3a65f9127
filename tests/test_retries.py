"""Steering that judges itself and tries other seeds, with objectives that answer by a script."""

from dataclasses import dataclass, field

import pytest
import torch

from attnsteer import NAG, guide
from attnsteer.steering.classifier import RelationClassifier
from attnsteer.steering.classifier_settings import ClassifierSettings, EncoderSize, LeanAdvice
from attnsteer.steering.descent import Descent, LeanRule
from attnsteer.steering.learned import LearnedSteering
from attnsteer.steering.objectives import Verdict
from attnsteer.steering.presence import seen
from attnsteer.steering.recording import Recording
from attnsteer.steering.retry import Retries, presence_wanted
from attnsteer.steering.select import SeedSelection, with_seed
from attnsteer.steering.verify import Verification
from steered import PROMPT, Spy, calls_of, generate, pointed

OTHER = "a dog above a cat"
CALL = {"num_inference_steps": 4}


@dataclass
class Scripted(Spy):
    """Says these probabilities, one tuple per time it is asked; after that, nothing is probable."""

    answers: list = field(default_factory=list)

    def __call__(self, maps, timestep, relations):
        verdict = super().__call__(maps, timestep, relations)
        return Verdict(verdict.loss, torch.tensor(self.answers.pop(0)))


class Push:
    """A rule that moves all latents alike and asks nobody."""

    def __call__(self, judge, latents, step_index):
        sure = torch.ones(len(latents))
        return Descent(latents + 0.3, 1, sure, sure)


def steering(*answers, **settings):
    settings = {"rule": Push(), "recording": Recording(size=4), **settings}
    return LearnedSteering(Scripted(answers=list(answers)), **settings)


def seed(number):
    return torch.Generator().manual_seed(number)


def other(number, attempt):
    return with_seed({"generator": seed(number)}, attempt)["generator"]


def steered(pipe, name="sd", **call):
    return generate(guide(pipe, steering()), name, **{**CALL, **call})


def classifier(presence=None):
    size = EncoderSize(width=8, layers=1, heads=2, feedforward=8)
    return RelationClassifier(
        ClassifierSettings(("above", "below"), 2, map_size=4, extractor=size, head=size,
                           lean=LeanAdvice(iterations=4, backtracking=False, presence=presence))
    )  # fmt: skip


@pytest.mark.parametrize("name", ["sd", "flux", "wan"])
def test_an_attempt_that_passes_is_the_steered_picture(name):
    pipe = pointed(name)
    guided = guide(pipe, steering((0.9,), retries=Retries()))
    assert torch.equal(generate(guided, name, generator=seed(3), **CALL), steered(pipe, name, generator=seed(3)))
    report = guided.steering_report
    assert report.attempts == (0,) and report.scores == (pytest.approx(0.9),) and not report.trials
    assert [step.step_index for step in report.steps] == [0, 1, 3]  # two steered, one judged at 0.6 of four


def test_the_attempt_that_passes_is_kept():
    pipe = pointed("sd")
    guided = guide(pipe, steering((0.1,), (0.85,), retries=Retries(4)))
    result = generate(guided, "sd", generator=seed(3), **CALL)
    assert torch.equal(result, steered(pipe, generator=other(3, 1)))
    report = guided.steering_report
    assert report.attempts == (1,) and len(report.trials) == 1 and report.iterations == 2 * (2 + 1)


@pytest.mark.parametrize(("answers", "best"), [((0.1, 0.5, 0.3), 1), ((0.4, 0.2, 0.3), 0), ((0.1, 0.2, 0.3), 2)])
def test_if_none_passes_the_most_probable_one_is_drawn(answers, best):
    pipe, own = pointed("sd"), seed(3)
    guided = guide(pipe, steering(*[(p,) for p in answers], retries=Retries(3)))
    result = generate(guided, "sd", generator=own, **CALL)
    assert torch.equal(result, steered(pipe, generator=other(3, best) if best else seed(3)))
    assert guided.steering_report.attempts == (best,)


def test_failed_attempts_end_where_they_are_judged():
    pipe = pointed("sd")
    with calls_of(pipe.unet) as alone:
        steered(pipe, num_inference_steps=8)
    with calls_of(pipe.unet) as calls:
        generate(guide(pipe, steering((0.1,), (0.9,), retries=Retries())), "sd", num_inference_steps=8)
    # Both are judged inside their sixth call; the first ends there. Each attempt begins with one dry run.
    assert len(calls) - len(alone) == 1 + 6 + 1 + 1


def test_each_picture_is_tried_by_itself():
    pipe, prompts = pointed("sd"), [PROMPT, "a bird", OTHER, "a cat above a dog"]
    answers = ((0.9, 0.1, 0.2), (0.3, 0.95), (0.7,))
    guided = guide(pipe, steering(*answers, retries=Retries(3)))
    result = generate(guided, "sd", prompt=prompts, generator=[seed(n) for n in range(4)], **CALL)
    generators = [seed(0), seed(1), other(2, 2), other(3, 1)]
    expected = torch.cat(
        [steered(pipe, prompt=[p], generator=[g]) for p, g in zip(prompts, generators, strict=True)]
    )  # fmt: skip
    assert torch.allclose(result, expected, atol=1e-4)
    report = guided.steering_report
    assert report.attempts == (0, 2, 1)
    assert report.scores == tuple(pytest.approx(p) for p in (0.9, 0.7, 0.95))
    assert [len(r) for r in report.relations] == [1, 0, 1, 1]


def test_pictures_of_one_generator_are_replaced_where_they_were_wrong():
    pipe = pointed("sd")
    call = {"num_images_per_prompt": 3, **CALL}
    guided = guide(pipe, steering((0.9, 0.2, 0.1), (0.3, 0.9), retries=Retries(2)))
    result = generate(guided, "sd", generator=seed(5), **call)
    first, second = (generate(guide(pipe, steering()), "sd", generator=g, **call) for g in (seed(5), other(5, 1)))
    assert torch.equal(result[0], first[0]) and torch.equal(result[1:], second[1:])
    assert guided.steering_report.attempts == (0, 1, 1)


def test_only_some_pictures_may_be_tried_again():
    """In whatever order they are named; the answers belong to the pictures in the order of the call."""
    pipe, prompts = pointed("sd"), [PROMPT, OTHER, PROMPT]
    guided = guide(pipe, steering((0.1, 0.9), (0.9,), retries=Retries(2), rows=(2, 0)))
    call = {"prompt": prompts, **CALL}
    result = generate(guided, "sd", generator=[seed(n) for n in range(3)], **call)
    first = generate(guide(pipe, steering(rows=(2, 0))), "sd", generator=[seed(n) for n in range(3)], **call)
    assert torch.equal(result[1:], first[1:])
    assert torch.allclose(result[:1], steered(pipe, generator=other(0, 1)), atol=1e-4)
    assert guided.steering_report.attempts == (1, 0)


def test_no_picture_that_may_be_steered_is_one_plain_run():
    pipe = pointed("sd")
    call = {"prompt": ["a bird", PROMPT], **CALL}
    guided = guide(pipe, steering(retries=Retries(), rows=(0,)))
    assert torch.equal(generate(guided, "sd", **call), generate(pipe, "sd", **call))


def test_a_batch_whose_best_attempts_were_all_ended_is_drawn_again():
    pipe, prompts = pointed("sd"), [PROMPT, OTHER]
    guided = guide(pipe, steering((0.5, 0.1), (0.3, 0.4), (0.2, 0.3), retries=Retries(3)))
    result = generate(guided, "sd", prompt=prompts, generator=[seed(0), seed(1)], **CALL)
    expected = [steered(pipe, prompt=p, generator=g) for p, g in ((PROMPT, seed(0)), (OTHER, other(1, 1)))]
    assert torch.allclose(result, torch.cat(expected), atol=1e-4)
    assert guided.steering_report.attempts == (0, 1)


def test_a_detector_judges_finished_pictures():
    pipe, seen = pointed("sd"), []

    def detector(pictures, relations):
        seen.append((len(pictures), [[r.relation for r in each] for each in relations]))
        return [len(seen) > 1] * len(pictures)

    guided = guide(pipe, steering(retries=Retries(detector=detector), end=1.0))
    prompts = ["a bird", OTHER]
    result = generate(guided, "sd", prompt=prompts, generator=[seed(0), seed(1)], **CALL)
    whole = generate(guide(pipe, steering(end=1.0)), "sd", prompt=OTHER, generator=other(1, 1), **CALL)
    assert torch.allclose(result[1:], whole, atol=1e-4)
    assert seen == [(1, [["above"]])] * 2 and guided.steering_report.scores == (1.0,)


def test_with_seeds_verification_and_a_negative_method():
    """The plain picture of the better seed is wrong; its steered one is wrong too; the next one is right."""
    pipe, nag = pointed("flux"), NAG(scale=4.0, tau=2.0, alpha=0.5)
    answers = ((0.1, 0.1), (0.6, 0.1), (0.9, 0.2), (0.1,), (0.9,))
    method = steering(*answers, seeds=SeedSelection(2), verify=Verification(), retries=Retries(2))
    guided = guide(pipe, nag, method)
    call = {"nag_negative_prompt": ["blurry", "red"], **CALL}
    result = generate(guided, "flux", prompt=[PROMPT, OTHER], generator=[seed(1), seed(2)], **call)
    alone = generate(
        guide(pipe, nag, steering()), "flux", prompt=OTHER, generator=other(2, 1), nag_negative_prompt="red", **CALL
    )
    assert torch.allclose(result[1:], alone, atol=1e-4)
    report = guided.steering_report
    assert report.seeds == (1, 0) and report.attempts == (1,) and len(report.verified) == 2


def test_prompts_without_a_relation_are_drawn_once():
    pipe = pointed("sd")
    guided = guide(pipe, steering(retries=Retries()))
    assert torch.equal(generate(guided, "sd", prompt="a cat"), generate(pipe, "sd", prompt="a cat"))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Retries(1), "attempts must be >= 2"),
        (lambda: Retries(probability=1.0), "probability must be in"),
        (lambda: Retries(at=1.0), "at must be in"),
        (lambda: Retries(presence=2.0), "presence is a share"),
        (lambda: generate(guide(pointed("sd"), steering((0.9,), retries=Retries(), rows=(0, 4))), "sd"),
         "rows must be pictures of the call"),
        (lambda: steering(end=1.0, retries=Retries()), "goes on to 1 of the steps"),
        (lambda: steering(end=0.5, retries=Retries(at=0.4)), "goes on to 0.5 of the steps"),
        (lambda: generate(guide(pointed("sd"), steering(retries=Retries())), "sd", latents=torch.zeros(1, 4, 8, 8)),
         "leave latents out"),
        (lambda: generate(guide(pointed("sd"), steering(retries=Retries(detector=lambda p, r: []))), "sd"),
         "judged 0 of 1 pictures"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_an_error(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_faint_object_lowers_the_score():
    """Twice the peak that is asked for, half the score; no peak asked for, the probability alone."""
    scores = {}
    for presence in (0.0, 0.5, 1.0):
        guided = guide(pointed("sd"), steering((0.9,), (0.9,), retries=Retries(2, presence=presence)))
        generate(guided, "sd", **CALL)
        scores[presence] = guided.steering_report.scores[0]
        assert len(guided.steering_report.trials) == (1 if presence else 0)
    assert scores[0.0] == pytest.approx(0.9) and scores[0.5] == pytest.approx(2 * scores[1.0])
    assert 1 / 16 < scores[1.0] / 0.9 < 0.2  # maps of 4 x 4 cells, nearly even


def test_the_peak_is_that_of_the_fainter_object():
    maps = torch.full((2, 2, 3, 2, 2), 0.25)
    maps[0, 0, :, 0, 1] = 1.0  # 1 of 1.75 for the first object, 1/4 for the second
    maps[1, :, 0, 1, 1] = 7.0  # (7 + 0.25 + 0.25) / 3 = 2.5 of 3.25 for both
    assert torch.allclose(seen(maps), torch.tensor([0.25, 2.5 / 3.25]))


def test_a_classifier_advises_the_peak():
    method = LearnedSteering.from_classifier(classifier(presence=0.25))
    assert method.rule == LeanRule(iterations=4, backtracking=False)
    assert presence_wanted(Retries(), method) == 0.25 and presence_wanted(Retries(presence=0.0), method) == 0.0
    assert presence_wanted(Retries(), LearnedSteering.from_classifier(classifier())) == 0.0
    assert presence_wanted(Retries(), steering()) == 0.0
