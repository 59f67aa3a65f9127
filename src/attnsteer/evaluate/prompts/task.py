"""A prompt with what its picture is judged by."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Task:
    """A prompt of a suite.

    Attributes:
        prompt: What the model is given.
        asked: Keywords of the suite's scoring rule, plain JSON types.
        labels: What a detector is asked to look for.
        kind: The group it is listed under in a breakdown, e.g. its relation.
        negative: What must not be seen, for negative guidance.
    """

    prompt: str
    asked: Mapping[str, Any]
    labels: tuple[str, ...]
    kind: str
    negative: str | None = None
