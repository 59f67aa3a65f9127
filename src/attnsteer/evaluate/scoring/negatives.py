"""Negative prompts: the unwanted thing must be gone, and the subject must still be there."""

from collections.abc import Sequence

from attnsteer.evaluate.scoring.boxes import LOST, RIGHT, SHOWN, Box, Verdict, best


def judge_negative(boxes: Sequence[Box], subject: str | None, unwanted: str) -> Verdict:
    """Whether the picture keeps its subject and leaves out what is unwanted; both are needed to be correct.

    Args:
        boxes: As detected.
        subject: Label of what must be seen; None if nothing was asked about it.
        unwanted: Label of what must not.

    Returns: `score` is the share of what was asked that is met; the details say `kept` and `absent`.
    """
    kept = None if subject is None else best(boxes, subject) is not None
    absent = best(boxes, unwanted) is None
    failure = RIGHT if absent and kept is not False else SHOWN if not absent else LOST
    asked = [absent] if kept is None else [absent, kept]
    return Verdict(all(asked), sum(asked) / len(asked), failure, {"kept": kept, "absent": absent})
