"""VISOR: whether objects are there at all, whether they stand right, and how often of several pictures."""

from collections.abc import Mapping, Sequence
from typing import Final

from attnsteer.evaluate.scoring.boxes import RIGHT, Box, Verdict, failure_of

DIRECTIONS: Final = {"to the left of": (0, -1), "to the right of": (0, 1), "above": (1, -1), "below": (1, 1)}
"""Axis, and the sign that (first centre - second centre) must have along it."""


def judge_visor(boxes: Sequence[Box], subject: str, relation: str, reference: str) -> Verdict:
    """Whether any box of the first object stands as asked to any of the second's, by the sign of the offset alone.

    Quirk: any pair will do, so more detections make a picture more often right.

    Raises: ValueError for a relation other than the four directions.
    Source: Gokhale et al. 2022, VISOR, arXiv:2212.10015.
    """
    if relation not in DIRECTIONS:
        raise ValueError(f"VISOR knows {', '.join(DIRECTIONS)}, not {relation!r}")
    axis, sign = DIRECTIONS[relation]
    firsts, seconds = ([box for box in boxes if box.label == label] for label in (subject, reference))
    right = any((a.centre[axis] - b.centre[axis]) * sign > 0 for a in firsts for b in seconds)
    failure = RIGHT if right else failure_of(boxes, (subject, reference))
    return Verdict(right, float(right), failure, {"present": bool(firsts and seconds)})


def visor_figures(verdicts: Mapping[str, Sequence[Verdict]]) -> dict[str, float]:
    """The published summary, as shares.

    OA: both objects there. unconditional: relation right. conditional: relation right where both are there.
    VISOR_n: prompts with at least n right pictures.

    Args:
        verdicts: Those of each prompt's pictures.

    Raises: ValueError if there are none.
    """
    pictures = [verdict for group in verdicts.values() for verdict in group]
    if not pictures:
        raise ValueError("there are no verdicts to sum up")
    present = sum(bool(verdict.details["present"]) for verdict in pictures)
    right = sum(verdict.correct for verdict in pictures)
    figures = {"OA": present / len(pictures), "unconditional": right / len(pictures)}
    figures["conditional"] = right / present if present else 0.0
    most = max(len(group) for group in verdicts.values())
    for least in range(1, most + 1):
        enough = sum(sum(verdict.correct for verdict in group) >= least for group in verdicts.values())
        figures[f"VISOR_{least}"] = enough / len(verdicts)
    return figures
