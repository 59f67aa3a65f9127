"""Clips: a picture's rule on several frames, put together to one verdict."""

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from attnsteer.evaluate.scoring.boxes import RIGHT, Verdict


def judge_clip(verdicts: Sequence[Verdict]) -> Verdict:
    """A clip is right if every judged frame is; its score is the mean over frames.

    Args:
        verdicts: Of the judged frames, in order; a picture has one, whose verdict is kept as it is.

    Returns: The failure is the most frequent one among wrong frames, the earlier one on a tie. A detail that says yes
        or no holds if it does in every frame; `frames_right` is the share of right frames. Other details are the first
        frame's.

    Raises: ValueError if there are no verdicts.
    """
    if not verdicts:
        raise ValueError("a clip needs at least one judged frame")
    if len(verdicts) == 1:
        return verdicts[0]
    failures = Counter(verdict.failure for verdict in verdicts if not verdict.correct)
    details = _together([verdict.details for verdict in verdicts])
    details["frames_right"] = sum(verdict.correct for verdict in verdicts) / len(verdicts)
    score = sum(verdict.score for verdict in verdicts) / len(verdicts)
    return Verdict(not failures, score, failures.most_common(1)[0][0] if failures else RIGHT, details)


def chosen_frames(count: int, wanted: int) -> list[int]:
    """At most `wanted` of `count` frames, evenly spread from first to last; the middle one if one is wanted."""
    if wanted >= count:
        return list(range(count))
    if wanted == 1:
        return [count // 2]
    return [round(number * (count - 1) / (wanted - 1)) for number in range(wanted)]


def _together(details: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    first = dict(details[0])
    for name, value in first.items():
        rows = [row[name] for row in details]
        if isinstance(value, bool):
            first[name] = all(rows)
        elif isinstance(value, list) and all(isinstance(entry, bool) for entry in value):
            first[name] = [all(entries) for entries in zip(*rows, strict=True)]
    return first
