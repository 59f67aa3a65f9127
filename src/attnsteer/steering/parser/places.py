"""Places in the picture ("on the left", "at the top"), and the relations that two of them imply."""

from collections.abc import Iterator
from typing import NamedTuple

from attnsteer.steering.parser.chunks import Chunk
from attnsteer.steering.parser.lexicon import DIRECTIONS, PLACES

_NAMES = {direction: name for name, direction in DIRECTIONS.items()}
_PLACE_NAMES = {place[:2]: name for name, place in PLACES.items()}

NO_NOUN = "it is a place in the picture with no noun in it"
ALONE = "it is a place in the picture, and nothing else is placed to compare with"
INCOMPARABLE = "its place cannot be compared with the one before it"


class Placed(NamedTuple):
    """A noun, and the phrase that says where in the picture it stands."""

    noun: Chunk
    phrase: Chunk


class Comparison(NamedTuple):
    """What two places say: `first` stands `name` `second`; without a name, the reason why not."""

    first: Placed
    name: str | None
    second: Placed
    reason: str


def compare(placed: list[Placed]) -> Iterator[Comparison]:
    """Compare each placed noun with the next: "X on the left, Y in the middle, Z on the right" are two relations."""
    for first, second in zip(placed, placed[1:], strict=False):
        name = relation_between(first.phrase.value, second.phrase.value) if first.noun is not second.noun else None
        yield Comparison(first, name, second, "" if name else INCOMPARABLE)
    if len(placed) == 1:
        yield Comparison(placed[0], None, placed[0], ALONE)


def relation_between(first: str, second: str) -> str | None:
    """Relation of a thing at place `first` to one at place `second`; None if the places cannot be compared.

    Only axes that both places name count: "top left" against "right" is "to the left of".
    """
    signs = [_compare(a, b) for a, b in zip(PLACES[first], PLACES[second], strict=True)]
    if signs[0] or signs[1]:
        return _NAMES[signs[0], signs[1]]
    return {-1: "in front of", 1: "behind"}.get(signs[2])


def place_of_relation(name: str) -> str | None:
    """Place meant by a relation to the picture itself: "to the left of the image" is "left"."""
    if name in ("in front of", "behind"):
        return "front" if name == "in front of" else "back"
    x, y = DIRECTIONS.get(name, (0, 0))
    return _PLACE_NAMES[x or None, y or None] if x or y else None


def _compare(first: int | None, second: int | None) -> int:
    if first is None or second is None or first == second:
        return 0
    return 1 if first > second else -1
