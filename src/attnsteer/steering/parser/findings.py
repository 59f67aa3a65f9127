"""What a reader has found in a prompt so far, whatever its language."""

from collections.abc import Sequence
from typing import Protocol

from attnsteer.steering.parser.places import Placed, compare
from attnsteer.steering.parser.spans import ParseReport, Relation, Skipped, Span


class _Piece(Protocol):
    @property
    def start(self) -> int: ...

    @property
    def end(self) -> int: ...


class Findings:
    """Collects relations, skipped clauses and placed nouns of one prompt.

    Args:
        text: The prompt.
    """

    def __init__(self, text: str) -> None:
        self.text = text
        self.relations: list[Relation] = []
        self.skipped: list[Skipped] = []
        self.placed: list[Placed] = []

    def relate(self, subjects: Sequence[_Piece], name: str, objects: Sequence[_Piece], phrase: _Piece) -> None:
        """Add the relation `name` of every subject to every object; `phrase` is where the prompt says so."""
        for subject in subjects:
            for target in objects:
                if subject.start < target.end and target.start < subject.end:
                    self.skip(phrase, phrase, "subject and object are the same words")
                else:
                    self.relations.append(Relation(self.span(subject, subject), name, self.span(target, target)))

    def skip(self, first: _Piece, last: _Piece, reason: str) -> None:
        """Note that the text from `first` to `last` gave no relation."""
        self.skipped.append(Skipped(self.span(first, last), reason))

    def span(self, first: _Piece, last: _Piece) -> Span:
        """The prompt's text that reaches over both pieces, in whatever order they stand."""
        start, end = min(first.start, last.start), max(first.end, last.end)
        return Span(self.text[start:end], start, end)

    def report(self) -> ParseReport:
        """Compare the placed nouns, and give everything in reading order."""
        for found in compare(self.placed):
            if found.name:
                self.relate([found.first.noun], found.name, [found.second.noun], found.first.phrase)
            else:
                self.skip(found.second.noun, found.second.phrase, found.reason)
        relations = sorted(self.relations, key=lambda relation: min(relation.subject.start, relation.object.start))
        return ParseReport(tuple(relations), tuple(sorted(self.skipped, key=lambda skipped: skipped.span.start)))
