"""Negative prompts as users write them: a text, texts with weights, or one of these for each prompt.

"blurry"        {"blurry": 1.0, "text": 0.5}        ["blurry", {"text": 0.5}]
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import isfinite
from typing import TypeAlias

NegativePrompt: TypeAlias = str | Mapping[str, float] | Sequence[str | Mapping[str, float]]
"""One text, several with weights >= 0, or a list with one of these for each prompt."""


@dataclass(frozen=True)
class NegativeRound:
    """One negative text for every prompt of a call, to be encoded together.

    Args:
        texts: One for each prompt.
        weights: Their weights.
    """

    texts: tuple[str, ...]
    weights: tuple[float, ...]


def negative_rounds(given: NegativePrompt, prompts: int) -> tuple[NegativeRound, ...]:
    """The negative texts of a call with `prompts` prompts, sorted into as many rounds as the longest list has texts.

    Texts of weight 0 are left out; a prompt that has fewer texts than others gets one of weight 0 in the later rounds.

    Raises: ValueError if the number of entries is not that of the prompts, or a weight is negative or not finite.
    """
    entries = [given] * prompts if isinstance(given, str | Mapping) else list(given)
    if len(entries) != prompts:
        raise ValueError(
            f"got {len(entries)} negative prompts for {prompts} prompts: give one for all, or one for each"
        )
    each = [_weighted(entry) for entry in entries]
    count = max(len(texts) for texts in each)
    filled = [texts + [(texts[0][0] if texts else "", 0.0)] * (count - len(texts)) for texts in each]
    return tuple(
        NegativeRound(tuple(texts[i][0] for texts in filled), tuple(texts[i][1] for texts in filled))
        for i in range(count)
    )


def of_prompts(given: NegativePrompt | None, places: Sequence[int]) -> NegativePrompt | None:
    """The negative prompts of some prompts of a call."""
    return given if given is None or isinstance(given, str | Mapping) else [given[place] for place in places]


def from_words(words: Sequence[str]) -> NegativePrompt:
    """A negative prompt from words of a command line: "blurry" or "blurry=0.5", one or several.

    A single word without a weight is a plain text; "=" within a text stays unless a number follows it at the end.
    """
    found: dict[str, float] = {}
    for word in words:
        text, equals, number = word.rpartition("=")
        weight = _number(number) if equals else None
        found[word if weight is None else text.strip()] = 1.0 if weight is None else weight
    return next(iter(found)) if list(found.values()) == [1.0] else found


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _weighted(entry: str | Mapping[str, float]) -> list[tuple[str, float]]:
    if isinstance(entry, str):
        return [(entry, 1.0)]
    if not isinstance(entry, Mapping) or not entry:
        raise ValueError(f'a negative prompt is a text or texts with weights, e.g. {{"blurry": 1.0}}, got {entry!r}')
    for text, weight in entry.items():
        if not isinstance(text, str) or not (isinstance(weight, int | float) and isfinite(weight) and weight >= 0):
            raise ValueError(f"the weight of {text!r} must be a number >= 0 (0 = left out), got {weight!r}")
    return [(text, float(weight)) for text, weight in entry.items() if weight > 0]
