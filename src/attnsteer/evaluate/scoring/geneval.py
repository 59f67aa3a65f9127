"""GenEval's position rule: of two objects, each the most confident of its class, on the centres of their boxes."""

from collections.abc import Sequence
from typing import Final

from attnsteer.evaluate.scoring.boxes import RIGHT, Box, Verdict, best, failure_of

DEAD_ZONE: Final = 0.1
"""Share of the summed widths (heights) by which offsets are shortened."""
COSINE: Final = 0.5
"""A relation holds if its axis carries more than this share of the offset."""
RELATIONS: Final = ("to the left of", "to the right of", "above", "below")


def relative_position(first: Box, second: Box, dead_zone: float = DEAD_ZONE) -> set[str]:
    """Which of `RELATIONS` hold for the first box relative to the second; none to two of them.

    o = c_1 - c_2;  o' = sign(o) max(|o| - dead_zone (s_1 + s_2), 0);  (dx, dy) = o' / |o|
    "to the left of" holds if dx < -1/2, "above" if dy < -1/2, and so on; nothing holds if both |o'| < 0.001 pixels.

    The offset is shortened but divided by its full length: boxes that lie on a diagonal, or near each other, may have
    no relation at all. That is the published rule.

    Source: Ghosh et al. 2023, GenEval, arXiv:2310.11513, and its evaluation script.
    """
    offsets = [a - b for a, b in zip(first.centre, second.centre, strict=True)]
    reach = [dead_zone * (a + b) for a, b in zip(first.size, second.size, strict=True)]
    shortened = [max(abs(o) - r, 0.0) * (1 if o > 0 else -1) for o, r in zip(offsets, reach, strict=True)]
    if all(abs(o) < 1e-3 for o in shortened):
        return set()
    length = (offsets[0] ** 2 + offsets[1] ** 2) ** 0.5
    dx, dy = shortened[0] / length, shortened[1] / length
    along = dict(zip(RELATIONS, (-dx, dx, -dy, dy), strict=True))
    return {name for name, value in along.items() if value > COSINE}


def judge_position(boxes: Sequence[Box], subject: str, relation: str, reference: str) -> Verdict:
    """Whether both objects are there and the relation holds between the most confident box of each.

    Args:
        boxes: As detected, thresholds already applied.
        subject: Label of the first object.
        relation: One of `RELATIONS`.
        reference: Label of the second.

    Raises: ValueError for another relation.
    """
    if relation not in RELATIONS:
        raise ValueError(f"the rule knows {', '.join(RELATIONS)}, not {relation!r}")
    first, second = best(boxes, subject), best(boxes, reference)
    present = first is not None and second is not None
    holding = relative_position(first, second) if first is not None and second is not None else set()
    details = {"present": present, "holding": sorted(holding)}
    if relation in holding:
        return Verdict(True, 1.0, RIGHT, details)
    return Verdict(False, 0.0, failure_of(boxes, (subject, reference)), details)
