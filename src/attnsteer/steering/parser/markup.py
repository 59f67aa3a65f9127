"""Explicit relations written into the prompt: `[dog]{right of}[teddy bear]`.

Square brackets mark the things, curly brackets the relation between two of them; other text may stand between
("a [dog] sitting {to the right of} a [teddy bear]"), and a chain goes on from the last thing
("[dog]{left of}[cat]{above}[table]"). Brackets that form no such triple are ordinary text, as the de-emphasis
`[dog]` or the choice `{red|blue}` of other tools.
"""

import re
from typing import NamedTuple

from attnsteer.steering.parser.lexicon import Lexicon, canonical_relation, load_lexicon
from attnsteer.steering.parser.spans import ParseReport, Relation, Skipped, Span

_MARK = re.compile(r"\[[^\[\]{}]+\]|\{[^\[\]{}]+\}")
_TRIMMED = " \t\n()\"'“”.,;"


class PlainPrompt(NamedTuple):
    """A prompt without markup, and the relations that the markup stated, with offsets into `text`."""

    text: str
    relations: tuple[Relation, ...]


class _Triple(NamedTuple):
    subject: re.Match[str]
    relation: re.Match[str]
    object: re.Match[str]


def strip_markup(prompt: str, *, lexicon: Lexicon | None = None) -> PlainPrompt:
    """The prompt as a text encoder should read it, and its explicit relations.

    `[dog]{right of}[teddy bear], oil painting` becomes "dog right of teddy bear, oil painting": the brackets go, and a
    space is put where two marks touched. A prompt without markup comes back unchanged.

    Args:
        prompt: Any text.
        lexicon: Where relation phrases are looked up; English by default, Korean for a phrase in Hangul.

    Raises: ValueError if the curly brackets of a triple name no known relation.
    """
    pieces: list[str] = []
    moved: dict[int, tuple[int, int]] = {}  # start of a mark -> start and end of its content in the plain text
    length, done = 0, 0
    triples = _triples(prompt)
    for mark in sorted({mark.start(): mark for triple in triples for mark in triple}.items()):
        match = mark[1]
        before = prompt[done : match.start()]
        glue = " " if not before and pieces and not pieces[-1][-1].isspace() else ""
        content = match.group()[1:-1]
        pieces.extend(piece for piece in (before, glue, content) if piece)
        length += len(before) + len(glue)
        moved[match.start()] = (length, length + len(content))
        length, done = length + len(content), match.end()
    text = "".join(pieces) + prompt[done:]
    relations = tuple(
        Relation(
            _content_span(text, *moved[triple.subject.start()]),
            canonical_relation(triple.relation.group()[1:-1], lexicon),
            _content_span(text, *moved[triple.object.start()]),
        )
        for triple in triples
    )
    return PlainPrompt(text, relations)


def marked_relations(prompt: str, lexicon: Lexicon | None) -> ParseReport:
    """Explicit relations of a prompt with offsets into the prompt as it stands; unknown ones are skipped."""
    relations: list[Relation] = []
    skipped: list[Skipped] = []
    for triple in _triples(prompt):
        ends = (triple.subject, triple.object)
        first, last = (_content_span(prompt, mark.start() + 1, mark.end() - 1) for mark in ends)
        try:
            name = canonical_relation(triple.relation.group()[1:-1], lexicon)
        except ValueError as error:
            start, end = triple.subject.start(), triple.object.end()
            skipped.append(Skipped(Span(prompt[start:end], start, end), str(error)))
        else:
            relations.append(Relation(first, name, last))
    return ParseReport(tuple(relations), tuple(skipped))


def _triples(prompt: str) -> list[_Triple]:
    """Marks in the order thing, relation, thing; the last thing may open the next triple."""
    marks = list(_MARK.finditer(prompt))
    triples = []
    for first, second, third in zip(marks, marks[1:], marks[2:], strict=False):
        if (first.group()[0], second.group()[0], third.group()[0]) == ("[", "{", "["):
            if all(mark.group()[1:-1].strip(_TRIMMED) for mark in (first, second, third)):
                triples.append(_Triple(first, second, third))
    return triples


def _content_span(text: str, start: int, end: int) -> Span:
    """The span of a mark's content, without an article or punctuation around it."""
    articles = load_lexicon().words("determiners") | load_lexicon().words("possessives")
    while start < end and text[start] in _TRIMMED:
        start += 1
    while end > start and text[end - 1] in _TRIMMED:
        end -= 1
    article = re.match(r"(\w+)\s+", text[start:end])
    if article and article.group(1).casefold() in articles:
        start += article.end()
    return Span(text[start:end], start, end)
