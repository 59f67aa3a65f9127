"""Which relations a call asks for, where it has more than one prompt for a picture."""

import pytest

from attnsteer.steering.learned import LearnedSteering
from attnsteer.steering.objectives import CentroidObjective
from attnsteer.steering.parser.spans import Span

STATED, PLAIN = "a dog above a cat", "a photo of a dog"
METHOD = LearnedSteering(CentroidObjective())


def relations(**call):
    return [[(r.subject.text, r.relation) for r in each] for each in METHOD.prepare(call)["steer_relations"]]


@pytest.mark.parametrize(
    "call",
    [
        {"prompt": PLAIN, "prompt_2": STATED},
        {"prompt": PLAIN, "prompt_2": None, "prompt_3": f"[{STATED[2:5]}]{{left of}}[cat]"},
        {"prompt": [STATED, PLAIN], "prompt_2": [PLAIN, STATED]},
        {"prompt": [STATED, PLAIN], "prompt_2": STATED},
    ],
)
def test_a_relation_for_another_encoder_alone_is_an_error(call):
    with pytest.raises(ValueError, match=r"prompt_[23] says 'dog' .* 'cat', prompt names no relation"):
        METHOD.prepare(call)
    assert relations(**call, steer_relations=[]) == [[]] * (1 if isinstance(call["prompt"], str) else 2)


def test_further_prompts_that_agree_or_say_nothing():
    assert relations(prompt=STATED, prompt_2=PLAIN) == [[("dog", "above")]]
    assert relations(prompt=STATED, prompt_2=f"{STATED}, oil painting") == [[("dog", "above")]]
    assert relations(prompt=PLAIN, prompt_2="blurry", prompt_3=None) == [[]]
    assert relations(prompt=[PLAIN, STATED], prompt_2=[PLAIN, PLAIN]) == [[], [("dog", "above")]]


def test_phrases_are_whole_words_wherever_the_prompt_has_them():
    prompt = "A Teddy  Bear, a bear and a <cat-toy>"
    call = {"prompt": prompt, "steer_relations": [("teddy bear", "left of", "bear"), ("<cat-toy>", "over", "bear")]}
    first, second = METHOD.prepare(call)["steer_relations"][0]
    assert (first.subject, first.object) == (Span("Teddy  Bear", 2, 13), Span("bear", 17, 21))
    assert (second.subject, second.relation) == (Span("<cat-toy>", 28, 37), "above")
