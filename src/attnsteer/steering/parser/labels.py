"""Places given as labels: "Left: a dragon. Right side: a knight", "an apple (left) and a banana (top right)".

Or by the word alone: "apple left, banana right".
"""

from collections.abc import Callable, Sequence

from attnsteer.steering.parser.lexicon import PLACES, Lexicon
from attnsteer.steering.parser.words import Word

_CLASSES = tuple(f"labels.{name}" for name in ("top", "bottom", "left", "right", "center"))
_SIDES = ("left", "right")


def label_at(text: str, words: Sequence[Word], index: int, lexicon: Lexicon) -> tuple[int, str] | None:
    """The place that is named at word `index` if it is a label: (index behind it, place), else None.

    A label stands in brackets of its own, or before a colon at the beginning of the text or behind a pause. Its words
    are the lexicon's `labels`.
    """
    first = words[index].key
    if not any(first in lexicon.words(name) for name in _CLASSES):
        return None
    keys = [word.key if word.kind == "word" else "" for word in words[index : index + 4]]
    named: list[str] = []
    for names in (("top", "bottom"), ("left", "right", "center")):
        key = keys[len(named)] if len(named) < len(keys) else ""
        named += [name for name in names if key in lexicon.words(f"labels.{name}")]
    place, used = " ".join(named), len(named)
    if place not in PLACES:
        return None
    used += used < len(keys) and keys[used] in lexicon.words("labels.parts")
    start, end = words[index].start, words[index + used - 1].end
    bracketed = text[max(0, start - 1) : start] == "(" and text.startswith(")", end)
    opens = index == 0 or words[index - 1].kind != "word"
    return (index + used, place) if bracketed or (opens and text.startswith(":", end)) else None


def bare_sides(words: Sequence[Word], lexicon: Lexicon, plain: Callable[[int], bool]) -> dict[int, str]:
    """Places that are named by one word behind a noun, by the index of the word: "apple left, banana right".

    Args:
        words: Of the prompt.
        lexicon: Its `labels` name the sides.
        plain: Whether a word, by its index, may end a noun.

    Returns: left and right, ahead of a pause, a conjunction or the end, if both are named and of different things.
    """
    found: dict[int, str] = {}
    for index in range(1, len(words)):
        ends = index + 1 == len(words) or words[index + 1].kind != "word" or (
            words[index + 1].key in lexicon.words("conjunctions"))  # fmt: skip
        if ends and words[index - 1].kind == "word" and plain(index - 1):
            key = words[index].key
            found.update((index, side) for side in _SIDES if key in lexicon.words(f"labels.{side}"))
    things = {side: {words[index - 1].key for index in found if found[index] == side} for side in _SIDES}
    told_apart = all(things.values()) and not set.intersection(*things.values())  # no "stage left ... stage right"
    return found if told_apart else {}
