"""Scoring rules on hand-made boxes against hand-computed answers."""

import pytest

from attnsteer.evaluate.scoring.boxes import Box, Verdict, best, failure_of, overlap
from attnsteer.evaluate.scoring.chains import judge_chain
from attnsteer.evaluate.scoring.clips import chosen_frames, judge_clip
from attnsteer.evaluate.scoring.geneval import judge_position, relative_position
from attnsteer.evaluate.scoring.negatives import judge_negative
from attnsteer.evaluate.scoring.t2i_compbench import judge_spatial, position_score
from attnsteer.evaluate.scoring.visor import judge_visor, visor_figures

LEFT, RIGHT, ABOVE, BELOW = "to the left of", "to the right of", "above", "below"


def box(x: float, y: float, label: str = "cat", score: float = 0.9, side: float = 100) -> Box:
    """A square box around (x, y)."""
    half = side / 2
    return Box(label, score, x - half, y - half, x + half, y + half)


def test_overlap_by_hand():
    assert overlap(box(50, 50), box(50, 50)) == 1
    assert overlap(box(50, 50), box(100, 50)) == pytest.approx(5000 / 15000)
    assert overlap(box(50, 50), box(150, 50)) == 0
    with pytest.raises(ValueError, match="left <= right"):
        Box("cat", 1, 5, 0, 4, 1)


# Sides of 100, so each axis loses 0.1 (100 + 100) = 20.
@pytest.mark.parametrize(
    ("offset", "holding"),
    [
        ((-200, 0), {LEFT}),  # 180 / 200
        ((200, 0), {RIGHT}),
        ((0, -200), {ABOVE}),
        ((0, 200), {BELOW}),
        ((-100, -100), {LEFT, ABOVE}),  # 80 / 141.4 = .57 on both axes
        ((-40, -40), set()),  # 20 / 56.6 = .35: shortened, but divided by the full length
        ((100, 60), {RIGHT}),  # 80 / 116.6 = .69, 40 / 116.6 = .34
        ((20, 0), set()),  # within the dead zone
        ((41, 0), {RIGHT}),  # 21 / 41 = .51
        ((39, 0), set()),  # 19 / 39 = .49
        ((0, 0), set()),
    ],
)
def test_geneval_relations(offset, holding):
    assert relative_position(box(300 + offset[0], 300 + offset[1]), box(300, 300)) == holding


def test_geneval_takes_the_most_confident_box_of_each_class():
    boxes = [box(100, 100, "cat", 0.6), box(500, 100, "cat", 0.8), box(300, 100, "dog")]
    assert judge_position(boxes, "cat", RIGHT, "dog").correct
    wrong = judge_position(boxes, "cat", LEFT, "dog")
    assert (wrong.correct, wrong.score, wrong.failure) == (False, 0.0, "wrong place")
    assert wrong.details == {"present": True, "holding": [RIGHT]}
    assert best(boxes, "cow") is None
    with pytest.raises(ValueError, match="not 'near'"):
        judge_position(boxes, "cat", "near", "dog")


def test_failure_kinds():
    cat, dog = box(100, 100), box(400, 100, "dog")
    assert failure_of([cat, dog], ("cat", "dog")) == "wrong place"
    assert failure_of([cat], ("cat", "dog")) == "missing"
    assert failure_of([cat, box(103, 100, "dog")], ("cat", "dog")) == "merged"
    red_circle, blue_circle = box(100, 100, "red circle"), box(400, 100, "blue circle")
    assert failure_of([red_circle, blue_circle], ("red circle", "blue square")) == "mixed up"
    assert failure_of([red_circle, box(0, 0, "green circle")], ("red circle", "blue square")) == "missing"


def test_chain_is_judged_pair_by_pair():
    boxes = [box(100, 100, "cat"), box(400, 100, "dog"), box(700, 100, "cow")]
    right = judge_chain(boxes, [("cat", LEFT, "dog"), ("cow", RIGHT, "dog")])
    assert right.correct and right.score == 1 and right.details["accumulated"]
    half = judge_chain(boxes, [("cat", LEFT, "dog"), ("dog", ABOVE, "cow")])
    assert (half.correct, half.score, half.failure) == (False, 0.5, "wrong place")
    assert half.details == {"present": True, "clauses": [True, False], "accumulated": False}
    missing = judge_chain(boxes[:2], [("cat", LEFT, "dog"), ("dog", LEFT, "cow")])
    assert (missing.failure, missing.details["clauses"]) == ("missing", [True, False])
    with pytest.raises(ValueError, match="at least one"):
        judge_chain(boxes, [])


def test_the_published_accumulation_lets_another_pair_satisfy_a_clause():
    # The cat is left of the dog, so that scorer has seen "left" when it comes to the cow, which is right of the dog.
    boxes = [box(100, 100, "cat"), box(400, 100, "dog"), box(700, 100, "cow")]
    verdict = judge_chain(boxes, [("cat", LEFT, "dog"), ("cow", LEFT, "dog")])
    assert not verdict.correct and verdict.details["accumulated"]
    other_order = judge_chain(boxes, [("cow", LEFT, "dog"), ("cat", LEFT, "dog")])
    assert not other_order.details["accumulated"]
    absent = judge_chain(boxes[:2], [("cat", LEFT, "dog"), ("cow", LEFT, "dog")])
    assert not absent.details["accumulated"]


@pytest.mark.parametrize(
    ("first", "second", "relation", "score"),
    [
        ((100, 200), (300, 210), "on the left of", 1),
        ((300, 200), (100, 210), "on the left of", 0),
        ((300, 200), (100, 210), "on the right of", 1),
        ((100, 100), (200, 200), "on the left of", 0),  # |dx| > |dy| is strict
        ((100, 100), (110, 300), "on the top of", 1),
        ((100, 300), (110, 100), "on the bottom of", 1),
        ((100, 200), (150, 200), "on the left of", 0.1 / (1 / 3)),  # IoU 5,000 / 15,000
        ((100, 100), (300, 110), "near", 1),  # |dy| < 150 is enough
        ((60, 60), (360, 260), "next to", 0.5),  # 150 / 300
        ((100, 100), (110, 300), "on top of", 0),  # in its vocabulary, not in its rule
    ],
)
def test_t2i_compbench_positions(first, second, relation, score):
    assert position_score(box(*first), box(*second), relation) == pytest.approx(score)


def test_t2i_compbench_scores():
    cat, dog = box(100, 200, "cat", 0.8), box(300, 200, "dog", 0.6)
    verdict = judge_spatial([cat, dog], "cat", "on the left of", "dog", (479, 479))
    assert verdict.correct and verdict.score == pytest.approx(0.25 * 0.8 + 0.25 * 0.6 + 0.5)
    wrong = judge_spatial([cat, dog], "cat", "on the right of", "dog", (479, 479))
    assert (wrong.score, wrong.failure) == (0, "wrong place")  # .35 < .5
    assert judge_spatial([cat], "cat", "on the left of", "dog", (479, 479)).score == 0
    overlapping = [box(100, 200, "cat", 1.0), box(150, 200, "dog", 1.0)]
    soft = judge_spatial(overlapping, "cat", "on the left of", "dog", (479, 479))
    assert soft.score == pytest.approx(0.5 + 0.5 * 0.3) and not soft.correct


def test_t2i_compbench_measures_on_479_pixels():
    boxes = [box(200, 200, "cat", 1.0), box(520, 520, "dog", 1.0)]
    assert judge_spatial(boxes, "cat", "near", "dog", (479, 479)).score == pytest.approx(0.5 + 0.5 * 150 / 320)
    assert judge_spatial(boxes, "cat", "near", "dog", (1437, 1437)).score == pytest.approx(1.0)  # 320 / 3 < 150


def test_t2i_compbench_takes_all_people_for_one():
    person = [box(100, 100, "person", 1.0), box(300, 100, "person", 0.9)]
    verdict = judge_spatial(person, "boy", "on the left of", "girl", (479, 479))
    assert (verdict.score, verdict.failure) == (0.5, "wrong place")


def test_visor_asks_only_for_a_sign_and_for_any_pair():
    boxes = [box(300, 100, "cat"), box(100, 100, "cat", 0.2), box(101, 400, "dog")]
    assert judge_visor(boxes, "cat", LEFT, "dog").correct
    assert judge_visor(boxes, "cat", RIGHT, "dog").correct
    assert judge_visor(boxes, "cat", ABOVE, "dog").correct
    assert not judge_visor(boxes, "cat", BELOW, "dog").correct
    absent = judge_visor(boxes, "cat", LEFT, "cow")
    assert (absent.correct, absent.failure, absent.details) == (False, "missing", {"present": False})
    with pytest.raises(ValueError, match="not 'near'"):
        judge_visor(boxes, "cat", "near", "dog")


def test_visor_figures():
    def verdict(present: bool, right: bool) -> Verdict:
        return Verdict(right, float(right), "", {"present": present})

    groups = {
        "a": [verdict(True, True), verdict(True, False), verdict(False, False), verdict(True, True)],
        "b": [verdict(True, False), verdict(False, False), verdict(True, True), verdict(False, False)],
    }
    assert visor_figures(groups) == {
        "OA": 5 / 8, "unconditional": 3 / 8, "conditional": 3 / 5,
        "VISOR_1": 1.0, "VISOR_2": 0.5, "VISOR_3": 0.0, "VISOR_4": 0.0,
    }  # fmt: skip
    with pytest.raises(ValueError, match="no verdicts"):
        visor_figures({})


def test_negatives_need_the_subject_and_the_absence():
    bicycle, wheel = box(1, 1, "bicycle"), box(1, 1, "wheel")
    assert judge_negative([bicycle], "bicycle", "wheel").correct
    shown = judge_negative([bicycle, wheel], "bicycle", "wheel")
    assert (shown.correct, shown.score, shown.failure) == (False, 0.5, "unwanted shown")
    lost = judge_negative([], "bicycle", "wheel")
    assert (lost.score, lost.failure, lost.details) == (0.5, "subject lost", {"kept": False, "absent": True})
    assert judge_negative([], None, "wheel").details == {"kept": None, "absent": True}


def test_a_clip_is_right_if_all_frames_are():
    def frame(right, failure, **details):
        return Verdict(right, float(right), failure, details)

    good = frame(True, "right", absent=True, kept=None, clauses=[True, True], position=1.0)
    late = frame(False, "unwanted shown", absent=False, kept=None, clauses=[True, False], position=0.0)
    lost = frame(False, "missing", absent=True, kept=None, clauses=[False, True], position=0.5)
    assert judge_clip([late]) is late
    assert judge_clip([good, good]).correct and judge_clip([good, good]).failure == "right"
    clip = judge_clip([good, lost, late, lost])
    assert (clip.correct, clip.score, clip.failure) == (False, 0.25, "missing")
    assert clip.details == {
        "absent": False, "kept": None, "clauses": [False, False], "position": 1.0, "frames_right": 0.25
    }  # fmt: skip
    with pytest.raises(ValueError, match="at least one"):
        judge_clip([])


def test_judged_frames_are_spread_evenly():
    assert chosen_frames(1, 5) == [0]
    assert chosen_frames(9, 1) == [4]
    assert chosen_frames(9, 3) == [0, 4, 8]
    assert chosen_frames(81, 5) == [0, 20, 40, 60, 80]
