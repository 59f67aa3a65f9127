"""Which adjective belongs to which noun, as a prompt says: what an objective of attribute binding steers by.

"a red circle and a blue square" gives (red, is, circle) and (blue, is, square), and that the other two do not belong
together: (red, is not, square) and (blue, is not, circle). A classifier of the relations "is" and "is not", trained on
the maps of [adjective, noun] pairs, judges them like any other relation.
"""

from __future__ import annotations

import re
from collections.abc import Collection

from attnsteer.steering.parser.chunks import chunk
from attnsteer.steering.parser.lexicon import load_lexicon
from attnsteer.steering.relations import Relation, Span

BOUND, UNBOUND = "is", "is not"
BINDINGS = (BOUND, UNBOUND)


def attribute_pairs(prompt: str, adjectives: Collection[str] | None = None) -> list[Relation]:
    """Pairs of adjective and noun that belong together ("is"), then those that do not ("is not"), in reading order.

    An adjective that two nouns share, and two things of one name, give no "is not".

    Args:
        prompt: English text.
        adjectives: Words that count, in lower case; None takes every word in front of a noun.

    Returns: Nothing if no noun has an adjective. Like the spatial parser this never raises on text.
    """
    phrases = []
    for piece in chunk(prompt, load_lexicon()):
        if piece.kind == "noun":
            span = Span(prompt[piece.start : piece.end], piece.start, piece.end)
            phrases.append((span.head, _adjectives(span, adjectives)))
    bound = [Relation(word, BOUND, noun) for noun, words in phrases for word in words]
    unbound = [
        Relation(word, UNBOUND, other)
        for noun, words in phrases
        for word in words
        for other, theirs in phrases
        if _key(other) != _key(noun) and _key(word) not in map(_key, theirs)
    ]
    return bound + unbound


def _adjectives(span: Span, wanted: Collection[str] | None) -> list[Span]:
    """The words in front of a phrase's head noun."""
    front = span.text[: span.head.start - span.start]
    words = [
        Span(match.group(), span.start + match.start(), span.start + match.end())
        for match in re.finditer(r"[^\s,]+", front)
    ]
    return [word for word in words if wanted is None or _key(word) in wanted]


def _key(span: Span) -> str:
    return span.text.casefold()
