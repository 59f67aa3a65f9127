import math
from dataclasses import replace

import pytest
import torch

from attnsteer.steering.metrics import Predictions, evaluate, leakage_verdict

NAMES = ("a", "b", "c")


def predictions(guess: list[int], label: list[int], prompt: list[int], timestep: list[int]) -> Predictions:
    """Logits of 1 for the guess and 0 for the rest."""
    logits = torch.nn.functional.one_hot(torch.tensor(guess), 3).float()
    return Predictions(logits, torch.tensor(label), torch.tensor(prompt), torch.tensor(timestep))


def test_by_hand():
    #                          right wrong  none  right followed none
    metrics = evaluate(
        predictions([0, 1, 2, 1, 2, 0], [0, 1, 2, 2, 0, 1], [0, 0, -1, 2, 2, -1], [1, 1, 3, 3, 3, 3]), NAMES
    )
    hit, miss = math.log(math.e + 2) - 1, math.log(math.e + 2)
    assert metrics["samples"] == 6 and metrics["accuracy"] == pytest.approx(0.5)
    assert metrics["loss"] == pytest.approx((3 * hit + 3 * miss) / 6)
    assert metrics["accuracy_by_timestep"] == {
        "1": {"accuracy": 1.0, "samples": 2},
        "3": {"accuracy": 0.25, "samples": 4},
    }
    assert [row["accuracy"] for row in metrics["accuracy_by_relation"].values()] == [0.5, 0.5, 0.5]
    assert metrics["confusion"] == [[1, 0, 1], [1, 1, 0], [0, 1, 1]]
    leakage = metrics["leakage"]
    assert leakage["by_word"] == {
        "right": {"accuracy": 0.5, "samples": 2, "pictures": 2},
        "wrong": {"accuracy": 0.5, "samples": 2, "pictures": 2},
        "none": {"accuracy": 0.5, "samples": 2, "pictures": 2},
    }
    assert leakage["gap"] == 0 and leakage["follows_word"] == 0.5
    assert leakage["passed"] is None  # two samples of either kind tell nothing
    assert leakage["gap_error"] == pytest.approx(math.sqrt(0.125 + 0.125))


@pytest.mark.parametrize(
    ("wrong_hits", "passed", "verdict"),
    [
        (100, True, "passed"),
        (98, True, "passed"),
        (96, None, "undecided"),
        (90, False, "FAILED"),
        (0, False, "FAILED"),
    ],
)
def test_leakage_limit(wrong_hits: int, passed: bool | None, verdict: str):
    label = [0] * 200
    guess = [0] * (100 + wrong_hits) + [1] * (100 - wrong_hits)
    leakage = evaluate(predictions(guess, label, [0] * 100 + [1] * 100, [0] * 200), NAMES)["leakage"]
    assert leakage["gap"] == pytest.approx(1 - wrong_hits / 100) and leakage["passed"] is passed
    assert leakage["follows_word"] == pytest.approx(1 - wrong_hits / 100)
    assert leakage_verdict(leakage).startswith(verdict)


def test_samples_of_one_picture_are_no_chances_of_their_own():
    """Ten steps of each of 40 pictures: the gap is as uncertain as that of 40 samples."""
    guess, prompt = [0] * 20 + [0] * 17 + [1] * 3, [0] * 20 + [1] * 20
    once = predictions(guess, [0] * 40, prompt, [0] * 40)
    often = predictions(guess * 10, [0] * 400, prompt * 10, [0] * 400)
    together = replace(often, picture=torch.arange(40).repeat(10))
    errors = [evaluate(each, NAMES)["leakage"]["gap_error"] for each in (once, often, together)]
    assert errors[2] == pytest.approx(errors[0]) and errors[1] == pytest.approx(errors[0] / math.sqrt(10))
    assert evaluate(together, NAMES)["leakage"]["by_word"]["wrong"] == {
        "accuracy": pytest.approx(0.85), "samples": 200, "pictures": 20,
    }  # fmt: skip
    same = replace(often, picture=torch.zeros(400, dtype=torch.long))  # right and wrong word for one picture
    assert evaluate(same, NAMES)["leakage"]["gap_error"] == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize(("samples", "passed"), [(29, None), (30, True)])
def test_leakage_needs_samples_of_both_kinds(samples: int, passed: bool | None):
    label = [0] * (100 + samples)
    for prompt in ([0] * 100 + [1] * samples, [1] * 100 + [0] * samples):
        leakage = evaluate(predictions(label, label, prompt, label), NAMES)["leakage"]
        assert leakage["passed"] is passed and ("not measured" in leakage_verdict(leakage)) is (passed is None)


def test_leakage_is_unknown_without_wrong_words():
    leakage = evaluate(predictions([0, 1], [0, 1], [0, 1], [0, 0]), NAMES)["leakage"]
    assert leakage["passed"] is None and leakage["gap"] is None and leakage["follows_word"] is None


def test_needs_samples():
    with pytest.raises(ValueError, match="without samples"):
        evaluate(predictions([0], [0], [0], [0]).__class__(torch.zeros(0, 3), *[torch.zeros(0).long()] * 3), NAMES)
