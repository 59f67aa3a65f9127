"""Several relations in one prompt: every pair judged by GenEval's rule, and the published tally beside it."""

from collections.abc import Sequence

from attnsteer.evaluate.scoring.boxes import RIGHT, Box, Verdict, best, failure_of
from attnsteer.evaluate.scoring.geneval import relative_position

Clause = tuple[str, str, str]
"""Subject, relation, reference."""


def judge_chain(boxes: Sequence[Box], clauses: Sequence[Clause]) -> Verdict:
    """Whether all relations of a prompt hold.

    `correct` needs every clause to hold for its own pair; `score` is the share of clauses that do. The details also
    say `accumulated`: the verdict of the published scorer, which keeps the relations of earlier pairs when it looks at
    later ones, so that a clause may be satisfied by another pair. It is never stricter.

    Args:
        boxes: As detected; the most confident box of each label counts.
        clauses: In the order of the prompt.

    Raises: ValueError if there are no clauses.
    Source: GenEval's rule (arXiv:2310.11513) per pair; accumulation as in the scorer published with arXiv:2509.02295.
    """
    if not clauses:
        raise ValueError("a chain needs at least one relation")
    holding, accumulated, seen = [], [], set[str]()
    for subject, relation, reference in clauses:
        first, second = best(boxes, subject), best(boxes, reference)
        own = relative_position(first, second) if first is not None and second is not None else set()
        seen |= own
        holding.append(relation in own)
        accumulated.append(first is not None and second is not None and relation in seen)
    labels = list(dict.fromkeys(label for subject, _, reference in clauses for label in (subject, reference)))
    present = all(best(boxes, label) is not None for label in labels)
    details = {"present": present, "clauses": holding, "accumulated": all(accumulated)}
    right = all(holding)
    return Verdict(right, sum(holding) / len(holding), RIGHT if right else failure_of(boxes, labels), details)
