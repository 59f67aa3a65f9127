"""Spatial relations that a prompt names: who stands where against whom, with character offsets.

No grammar is enforced and nothing raises on free text: what is not understood, or has two readings that disagree,
gives no relation, and `explain_relations` tells why. English is read by default, and Korean where the prompt has
Hangul; other languages come as a lexicon.
"""

from collections.abc import Mapping

from attnsteer.steering.parser.chunks import chunk
from attnsteer.steering.parser.clauses import ClauseReader
from attnsteer.steering.parser.korean import read_korean
from attnsteer.steering.parser.lexicon import RELATIONS, Lexicon, canonical_relation, has_hangul, load_lexicon
from attnsteer.steering.parser.markup import PlainPrompt, marked_relations, strip_markup
from attnsteer.steering.parser.spans import ParseReport, Relation, Skipped, Span

__all__ = [
    "RELATIONS",
    "Lexicon",
    "ParseReport",
    "PlainPrompt",
    "Relation",
    "Skipped",
    "Span",
    "canonical_relation",
    "explain_relations",
    "load_lexicon",
    "parse_relations",
    "strip_markup",
]


def parse_relations(prompt: str, *, lexicon: Lexicon | Mapping[str, str] | None = None) -> list[Relation]:
    """Relations named in a prompt, in reading order; an empty list where there is none or it is not clear.

    "a red circle to the left of a blue square" gives one relation with the spans "red circle" and "blue square" and
    the name "to the left of". Articles and numbers are not part of a span, adjectives are. Explicit markup
    `[dog]{right of}[teddy bear]` overrides everything else in the prompt.

    Args:
        prompt: Any text. Offsets of the result count its characters: `prompt[span.start:span.end] == span.text`.
        lexicon: Phrases to add to English, as a mapping from phrase to canonical name ({"links von": "to the left
            of"}), or a whole `Lexicon` (see `load_lexicon`) to read with in place of English.

    Raises: ValueError if `lexicon` maps to a name that is not in `RELATIONS`; never for the prompt.
    """
    return list(explain_relations(prompt, lexicon=lexicon).relations)


def explain_relations(prompt: str, *, lexicon: Lexicon | Mapping[str, str] | None = None) -> ParseReport:
    """As `parse_relations`, with the clauses that were left alone and the reason for each.

    Args:
        prompt: Any text.
        lexicon: As in `parse_relations`.

    Returns: The relations and the skipped clauses, both in reading order.
    Raises: ValueError if `lexicon` is not usable; never for the prompt.
    """
    chosen = _choose_lexicon(lexicon)
    marked = marked_relations(prompt, None if lexicon is None else chosen)
    if marked.relations or marked.skipped:
        return marked
    if chosen.object_first:
        return read_korean(prompt, chosen)
    report = ClauseReader(prompt, chunk(prompt, chosen), chosen).read()
    if lexicon is not None or not has_hangul(prompt):
        return report
    korean = read_korean(prompt, load_lexicon("ko"))
    return ParseReport((*report.relations, *korean.relations), (*report.skipped, *korean.skipped))


def _choose_lexicon(lexicon: Lexicon | Mapping[str, str] | None) -> Lexicon:
    if lexicon is None:
        return load_lexicon()
    return lexicon if isinstance(lexicon, Lexicon) else load_lexicon().with_phrases(lexicon)
