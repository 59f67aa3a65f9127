"""Singular forms of English nouns, as they stand in scene graphs."""

from __future__ import annotations

from typing import Final

_IRREGULAR: Final = {
    "men": "man", "women": "woman", "people": "person", "children": "child", "feet": "foot", "teeth": "tooth",
    "geese": "goose", "mice": "mouse", "knives": "knife", "wives": "wife", "leaves": "leaf", "shelves": "shelf",
    "loaves": "loaf", "halves": "half", "scarves": "scarf", "calves": "calf", "wolves": "wolf", "hooves": "hoof",
    "dice": "die", "buses": "bus", "cookies": "cookie", "ties": "tie", "pies": "pie", "movies": "movie",
    "shoes": "shoe", "toes": "toe", "canoes": "canoe", "aircraft": "aircraft", "axes": "axe",
}  # fmt: skip
_SINGULAR: Final = frozenset(
    (
        "bus", "lens", "gas", "christmas", "canvas", "cactus", "octopus", "walrus", "hummus", "asparagus", "citrus",
        "tennis", "news", "series", "species", "scissors", "pants", "trousers", "shorts", "jeans", "glasses",
        "sunglasses", "goggles", "binoculars", "tongs", "pliers", "skis", "clothes", "pajamas", "tights", "leggings",
    )
)  # fmt: skip


def singular(name: str) -> str:
    """The name with its last word in the singular; words that exist in the plural only stay.

    "tennis rackets" becomes "tennis racket"; "bus", "grass" and "scissors" stay.
    """
    before, space, word = name.strip().lower().rpartition(" ")
    return f"{before}{space}{_singular_word(word)}"


def _singular_word(word: str) -> str:
    if word in _IRREGULAR:
        return _IRREGULAR[word]
    if word in _SINGULAR or not word.endswith("s") or word.endswith(("ss", "us", "is")) or len(word) < 4:
        return word
    if word.endswith("ies"):
        return f"{word[:-3]}y"
    if word.endswith(("ches", "shes", "sses", "xes", "zzes", "toes")):
        return word[:-2]
    return word[:-1]
