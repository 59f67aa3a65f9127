"""Learned steering in stock pipelines of every family: what is steered, and what is not."""

import pytest
import torch

from attnsteer import guide
from attnsteer.families import family_of
from attnsteer.seam.layers import text_layers
from attnsteer.steering.descent import LeanRule, PublishedRule
from attnsteer.steering.learned import LearnedSteering
from attnsteer.steering.recording import Recording
from attnsteer.steering.relations import Relation, Span, strip_markup
from steered import (
    CFG_OFF,
    CFG_ON,
    FAMILIES,
    PROMPT,
    RULE,
    Spy,
    calls_of,
    centroid,
    denoiser_of,
    differs,
    generate,
    latents_seen,
    pointed,
    small_classifier,
)

# diffusers' own schedulers hand tensors to numpy in a way that numpy 2 deprecates
pytestmark = pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")


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
