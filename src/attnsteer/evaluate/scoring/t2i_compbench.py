"""T2I-CompBench's 2-D spatial rule, with its quirks.

Quirks, kept because published figures have them: places are measured on a picture resized to 479 x 479, so that the
150 pixels of "near" are a third of the side; "near" asks for a small distance along *one* axis only, so anything
straight above or beside counts; a score below one half becomes zero, so confidence alone never scores; girl, boy, man
and woman are all "person", so that "a boy next to a girl" compares a box with itself; only the most confident box of a
class counts.
"""

from collections.abc import Sequence
from typing import Final

from attnsteer.evaluate.scoring.boxes import RIGHT, Box, Verdict, best, failure_of, overlap

SIDE: Final = 479
NEAR: Final = 150
OVERLAP: Final = 0.1
PERSONS: Final = ("girl", "boy", "man", "woman")
NEARBY: Final = ("next to", "on side of", "near")
DIRECTIONS: Final = {
    "on the left of": (0, 1),
    "on the right of": (0, -1),
    "on the top of": (1, 1),
    "on the bottom of": (1, -1),
}
"""Axis, and the sign that (second centre - first centre) must have along it."""


def class_of(noun: str) -> str:
    """The detector's class for a noun of a prompt."""
    return "person" if noun in PERSONS else noun


def position_score(first: Box, second: Box, relation: str) -> float:
    """How well a relation holds, 0 to 1, for boxes in a picture of 479 x 479.

    Directions need the right sign and an offset that is larger along their axis; then 1, or 0.1 / IoU if the boxes
    overlap by an IoU of 0.1 or more. Nearness: 1 if |dx| < 150 or |dy| < 150, else 150 / max(|dx|, |dy|). Other
    relations score 0.
    """
    offset = [b - a for a, b in zip(first.centre, second.centre, strict=True)]
    if relation in NEARBY:
        return 1.0 if min(map(abs, offset)) < NEAR else NEAR / max(map(abs, offset))
    if relation not in DIRECTIONS:
        return 0.0
    axis, sign = DIRECTIONS[relation]
    if offset[axis] * sign <= 0 or abs(offset[axis]) <= abs(offset[1 - axis]):
        return 0.0
    shared = overlap(first, second)
    return 1.0 if shared < OVERLAP else OVERLAP / shared


def judge_spatial(boxes: Sequence[Box], subject: str, relation: str, reference: str, size: tuple[int, int]) -> Verdict:
    """Score a picture: 0.25 s_1 + 0.25 s_2 + 0.5 position, and 0 where that is below 0.5.

    Args:
        boxes: As detected, in pixels of the picture.
        subject: First noun of the prompt.
        relation: E.g. "on the left of", "near".
        reference: Last noun.
        size: Width and height of the picture in pixels.

    Returns: `correct` says whether both are there and the position scores 1.

    Source: Huang et al. 2023, T2I-CompBench, arXiv:2307.06350, and its 2-D spatial script. The published detector is
        UniDet RS200; figures from another must be printed under that detector's name.
    """
    labels = class_of(subject), class_of(reference)
    square = [box.scaled(SIDE / size[0], SIDE / size[1]) for box in boxes]
    first, second = (best(square, label) for label in labels)
    score = sum(0.25 * box.score for box in (first, second) if box is not None)
    position = position_score(first, second, relation) if first is not None and second is not None else 0.0
    score += position / 2
    right = position == 1.0
    details = {"present": first is not None and second is not None, "position": position}
    return Verdict(right, score if score >= 0.5 else 0.0, RIGHT if right else failure_of(boxes, labels), details)
