"""What a parsed prompt is made of: pieces of text with character offsets, and the relations between them."""

import difflib
import re
from dataclasses import dataclass
from typing import NamedTuple

from attnsteer.steering.parser.lexicon import canonical_relation, load_lexicon

_LONGEST_COMPOUND = 3  # words


@dataclass(frozen=True, slots=True)
class Span:
    """A piece of a prompt: a noun phrase without its article or number, with its adjectives.

    Args:
        text: The characters themselves: `prompt[start:end] == text`.
        start: Offset of the first character, >= 0.
        end: Offset after the last character.

    Raises: ValueError if `end - start` is not the length of `text`.
    """

    text: str
    start: int
    end: int

    def __post_init__(self) -> None:
        if self.start < 0 or self.end - self.start != len(self.text):
            raise ValueError(f"a span of {len(self.text)} characters cannot reach from {self.start} to {self.end}")

    @property
    def head(self) -> "Span":
        """The head noun alone: "red circle" -> "circle", "glass of water" -> "glass", "big hot dog" -> "hot dog"."""
        before_of = re.split(r"\sof\s", self.text, maxsplit=1, flags=re.IGNORECASE)[0]
        words = list(re.finditer(r"[^\s]+", before_of)) or list(re.finditer(r"[^\s]+", self.text))
        if not words:
            return self
        first = len(words) - 1
        compounds = load_lexicon().words("compounds")
        for size in range(2, min(_LONGEST_COMPOUND, len(words)) + 1):
            if " ".join(word.group().casefold() for word in words[-size:]) in compounds:
                first = len(words) - size
        start, end = words[first].start(), words[-1].end()
        return Span(self.text[start:end], self.start + start, self.start + end)


@dataclass(frozen=True, slots=True)
class Relation:
    """`subject` stands `relation` `object`, as in "a dog (subject) to the left of a cat (object)".

    Args:
        subject: Where the prompt names the thing that is placed.
        relation: Canonical name, one of `attnsteer.steering.parser.lexicon.RELATIONS`.
        object: Where the prompt names the thing it is placed against.
    """

    subject: Span
    relation: str
    object: Span

    @classmethod
    def of(cls, prompt: str, subject: str | Span, relation: str, object: str | Span) -> "Relation":
        """State a relation explicitly; the two phrases are looked up in the prompt, the relation need not be in it.

        Where a phrase occurs several times its first occurrence is taken that does not overlap the other phrase;
        give a `Span` to choose another.

        Args:
            prompt: The text given to the pipeline.
            subject: Phrase as written in the prompt (any case, whole words), or its span.
            relation: Canonical name or a synonym: "right of", "over", "next to".
            object: As `subject`.

        Raises: ValueError if a phrase is not in the prompt or the relation is unknown.
        """
        name = canonical_relation(relation)
        first, second = _locate_pair(prompt, subject, object)
        return cls(first, name, second)


class Skipped(NamedTuple):
    """A clause that names a relation but gives none, and why."""

    span: Span
    reason: str


class ParseReport(NamedTuple):
    """What was understood of a prompt: its relations in reading order, and the clauses left alone."""

    relations: tuple[Relation, ...]
    skipped: tuple[Skipped, ...]


def _locate_pair(prompt: str, subject: str | Span, object: str | Span) -> tuple[Span, Span]:
    """Spans of both phrases; the longer one chooses first, so that "bear" is not found inside "teddy bear"."""
    found: dict[int, Span] = {}
    phrases = (subject, object)
    for index in sorted((0, 1), key=lambda i: (isinstance(phrases[i], str), -len(_text_of(phrases[i])), i)):
        found[index] = _locate(prompt, phrases[index], found.get(1 - index))
    return found[0], found[1]


def _text_of(phrase: str | Span) -> str:
    return phrase if isinstance(phrase, str) else phrase.text


def _locate(prompt: str, phrase: str | Span, taken: Span | None) -> Span:
    if isinstance(phrase, Span):
        if prompt[phrase.start : phrase.end] != phrase.text:
            raise ValueError(f"the span {phrase} is not part of the prompt {prompt!r}; parse the same text again")
        return phrase
    words = phrase.split()
    if not words:
        raise ValueError("a relation needs two phrases; one of them is empty")
    pattern = r"(?<!\w)" + r"\s+".join(map(re.escape, words)) + r"(?!\w)"
    for match in re.finditer(pattern, prompt, re.IGNORECASE):
        if taken is None or match.end() <= taken.start or match.start() >= taken.end:
            return Span(match.group(), match.start(), match.end())
    close = difflib.get_close_matches(phrase, re.findall(r"\w+", prompt)[:200], n=1)
    hint = f'; did you mean "{close[0]}"?' if close else ""
    again = " a second time" if taken is not None and taken.text.casefold() == phrase.casefold() else ""
    raise ValueError(f'"{phrase}" is not in the prompt{again}: write it exactly as in {prompt[:200]!r}{hint}')
