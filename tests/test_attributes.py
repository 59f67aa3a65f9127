"""Adjectives and their nouns; objectives that share the work."""

import math

import pytest
import torch

from attnsteer import guide
from attnsteer.steering.attributes import BINDINGS, attribute_pairs
from attnsteer.steering.classifier import RelationClassifier
from attnsteer.steering.classifier_settings import ClassifierSettings, EncoderSize
from attnsteer.steering.combined import Combined
from attnsteer.steering.descent import LeanRule
from attnsteer.steering.learned import LearnedSteering
from attnsteer.steering.objectives import CentroidObjective, ClassifierObjective
from attnsteer.steering.presence import PresenceObjective, attend_and_excite_rule
from attnsteer.steering.recording import Recording
from steered import Spy, generate, pointed

FOUR = ("to the left of", "to the right of", "above", "below")


def pairs(prompt, **options):
    found = attribute_pairs(prompt, **options)
    assert all(prompt[s.start : s.end] == s.text for r in found for s in (r.subject, r.object))
    return [(r.subject.text, r.relation, r.object.text) for r in found]


@pytest.mark.parametrize(
    ("prompt", "expected"),
    [
        (
            "a red circle and a blue square",
            [
                ("red", "is", "circle"), ("blue", "is", "square"), ("red", "is not", "square"),
                ("blue", "is not", "circle"),
            ],
        ),
        ("a red circle to the left of a dog", [("red", "is", "circle"), ("red", "is not", "dog")]),
        ("two red circles and a red square", [("red", "is", "circles"), ("red", "is", "square")]),
        ("a circle and a square", []),
        ("", []),
    ],
)  # fmt: skip
def test_adjectives_and_nouns(prompt, expected):
    assert pairs(prompt) == expected


def test_only_the_wanted_adjectives_count():
    prompt = "a big red circle and a small Blue square"
    wanted = [
        ("red", "is", "circle"),
        ("Blue", "is", "square"),
        ("red", "is not", "square"),
        ("Blue", "is not", "circle"),
    ]
    assert pairs(prompt, adjectives={"red", "blue"}) == wanted
    assert ("big", "is", "circle") in pairs(prompt)


def classifier(relations, seed=0, channels=3, **settings):
    torch.manual_seed(seed)
    size = EncoderSize(8, 1, 2, 12)
    own = ClassifierSettings(relations, channels, map_size=5, extractor=size, pooling_heads=2, head=size, **settings)
    return RelationClassifier(own).eval()


# A classifier's diagonals


def test_a_diagonal_is_asked_for_by_its_two_axes():
    objective, maps = ClassifierObjective(classifier(FOUR)), torch.rand(2, 2, 3, 5, 5)
    verdict = objective(maps, 0.0, ["above and to the left of", "below"])
    p = objective.classifier(maps, torch.zeros(2)).double().softmax(1)
    left, above, below = p[0, 0].item(), p[0, 2].item(), p[1, 3].item()
    assert verdict.loss[0].item() == pytest.approx(-math.log(4 * left * above), rel=1e-4)
    assert verdict.probability[0].item() == pytest.approx(4 * left * above, rel=1e-4)
    assert verdict.probability[1].item() == pytest.approx(below, rel=1e-4)
    assert {name for name in objective.relations if " and " in name} == {
        f"{h} and {s}" for h in ("above", "below") for s in ("to the left of", "to the right of")
    }


def test_a_trained_diagonal_is_used_as_it_is_and_half_an_axis_gives_none():
    trained = ClassifierObjective(classifier((*FOUR, "above_left")))
    maps = torch.rand(1, 2, 3, 5, 5)
    p = trained.classifier(maps, torch.zeros(1)).softmax(1)
    assert trained(maps, 0.0, ["above and to the left of"]).probability.item() == pytest.approx(p[0, 4].item())
    assert not any(" and " in name for name in ClassifierObjective(classifier(("above", "below"))).relations)


# Combined


def test_each_relation_is_judged_by_the_first_that_knows_it():
    spatial, binding = ClassifierObjective(classifier(FOUR)), ClassifierObjective(classifier(BINDINGS, 1))
    both, maps = Combined((spatial, binding, CentroidObjective())), torch.rand(4, 2, 3, 5, 5)
    names, levels = ["is", "above", "near", "is not"], torch.tensor([0.1, 0.2, 0.3, 0.4])
    verdict = both(maps, levels, names)
    for row, judge in enumerate((binding, spatial, CentroidObjective(), binding)):
        alone = judge(maps[row : row + 1], levels[row : row + 1], [names[row]])
        torch.testing.assert_close(verdict.loss[row : row + 1], alone.loss)
        torch.testing.assert_close(verdict.probability[row : row + 1], alone.probability)
    assert both.conditioning == "log_snr" and both.relations[:4] == FOUR and "near" in both.relations
    with pytest.raises(ValueError, match="behind"):
        both(maps, 0.0, ["behind"])


def test_noise_levels_must_agree():
    counted = ClassifierObjective(classifier(BINDINGS, conditioning="index"))
    with pytest.raises(ValueError, match="log_snr and index"):
        Combined((ClassifierObjective(classifier(FOUR)), counted))
    assert Combined((CentroidObjective(), counted)).conditioning == "index"
    with pytest.raises(ValueError, match="at least one"):
        Combined(())


def test_the_gradient_goes_through_every_part():
    both = Combined((ClassifierObjective(classifier(BINDINGS)), CentroidObjective()))
    maps = torch.rand(2, 2, 3, 5, 5, requires_grad=True)
    (grad,) = torch.autograd.grad(both(maps, 0.0, ["is", "near"]).loss.sum(), maps)
    assert (grad.flatten(1).abs().sum(dim=1) > 0).all()


def test_relations_beyond_the_classifier_in_a_pipeline():
    pipe = pointed("sd")
    method = LearnedSteering(Spy(), recording=Recording(size=4), rule=LeanRule(iterations=2))
    prompt = "a dog next to a cat"
    with pytest.raises(ValueError, match=r"cannot judge \['near'\].*hand-made"):
        generate(guide(pipe, method), "sd", prompt=prompt)
    helped = LearnedSteering(method.objective, recording=method.recording, rule=method.rule, unknown="hand-made")
    guided = guide(pipe, helped)
    result = generate(guided, "sd", prompt=prompt)
    by_hand = LearnedSteering(CentroidObjective(), recording=method.recording, rule=method.rule)
    torch.testing.assert_close(result, generate(guide(pipe, by_hand), "sd", prompt=prompt))
    with pytest.raises(ValueError, match="cannot judge \\['behind'\\]"):
        generate(guided, "sd", prompt="a dog behind a cat")


def test_binding_steers_by_its_own_reader_and_by_stated_pairs():
    pipe, prompt = pointed("sd"), "a red circle and a blue square"
    spy = Spy(known=BINDINGS)
    method = LearnedSteering(spy, recording=Recording(size=4), rule=LeanRule(iterations=1), reader=attribute_pairs)
    guided = guide(pipe, method)
    by_reader = generate(guided, "sd", prompt=prompt)
    assert spy.asked[-1][2] == ("is", "is", "is not", "is not") and spy.asked[-1][0][0] == 4
    stated = [
        ("red", "is", "circle"),
        ("blue", "is", "square"),
        ("red", "is not", "square"),
        ("blue", "is not", "circle"),
    ]
    assert torch.equal(generate(guided, "sd", prompt=prompt, steer_relations=stated), by_reader)
    assert "'red' is 'circle'" in str(guided.explain(prompt))


# Presence


def test_presence_in_closed_form():
    """One bright cell in the middle: the Gaussian keeps w^2 of it, w = 1 / (1 + 2 exp(-2)) at sigma one half."""
    maps = torch.zeros(1, 2, 4, 5, 5)
    maps[0, 0, :, 2, 2], maps[0, 1, :2, 1, 3] = 0.8, 0.8  # the second object in half of the channels
    verdict = PresenceObjective()(maps, 0.0, ["above"])
    w = 1 / (1 + 2 * math.exp(-2))
    assert verdict.probability.item() == pytest.approx(0.4 * w * w, rel=1e-5)
    assert verdict.loss.item() == pytest.approx(1 - 0.4 * w * w, rel=1e-5)
    assert PresenceObjective(unit=0.1)(maps, 0.0, ["behind"]).probability.item() == 1.0


def test_presence_moves_the_neglected_object_alone():
    maps = 0.3 * torch.rand(1, 2, 2, 5, 5)
    maps[0, 1] += 0.3
    maps.requires_grad_(True)
    (grad,) = torch.autograd.grad(PresenceObjective()(maps, 0.0, ["near"]).loss.sum(), maps)
    assert grad[0, 0].min() < 0 and not grad[0, 1].any()


def test_attend_and_excite_thresholds():
    rule = attend_and_excite_rule()
    wanted = [1 - rule.loss_targets[min(step, len(rule.loss_targets) - 1)] for step in (0, 9, 10, 19, 20, 24)]
    assert wanted == pytest.approx([0.05, 0.05, 0.5, 0.5, 0.8, 0.8])


def test_presence_and_balance_in_closed_form():
    """Object 1 is one cell, object 2 two cells two apart: variances 0 and (0.2)^2 at five cells a side."""
    maps = torch.zeros(1, 2, 1, 5, 5)
    maps[0, 0, 0, 2, 0] = maps[0, 1, 0, 2, 2] = maps[0, 1, 0, 2, 4] = 0.5
    plain = CentroidObjective()(maps, 0.0, ["to the left of"])
    more = CentroidObjective(presence=2.0, balance=3.0)(maps, 0.0, ["to the left of"])
    assert (more.loss - plain.loss).item() == pytest.approx(5.0 * 0.04, rel=1e-4)
    assert torch.equal(more.probability, plain.probability)
    with pytest.raises(ValueError, match="presence and balance must be >= 0"):
        CentroidObjective(balance=-1.0)
