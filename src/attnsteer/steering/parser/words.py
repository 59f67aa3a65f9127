"""Prompts cut into words and boundaries, with character offsets; prompt syntax is made transparent.

Attention weights `(dog:1.3)`, brackets, quotes, `<lora:...>` and emphasis marks carry no meaning for the parser: they
are left out, and the word after them remembers the gap. A learned word of textual inversion, `<cat-toy>`, is a word.
Commas, colons and line ends separate; full stops, blank lines and BREAK end a sentence.
"""

import re
from dataclasses import dataclass
from typing import Literal

_MARKS = "“”‘„‚‟«»‹›「」『』"  # quotes, but for the straight ones and the apostrophe
_UNSEEN = "\u200b\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2060\ufeff"  # spaces without width, marks of direction
_STOP = r"\.{2,}|…|[.](?=[\s\"'”’)\]]|$)|[!?;。！？；]|\n\s*\n"
_COMMA = r"[,:|/\n•·、，：]|[—–]|(?<=\s)-+(?=\s)|\."
_EMBEDDING = r"<[A-Za-z][\w-]*>"  # a learned word such as <cat-toy>
_TAG = rf"(?!{_EMBEDDING})<[^<>\n]*>"
_MARKUP = rf"{_TAG}|:-?\d+(?:\.\d+)?(?=\s*[)\]}}])|['\"{_MARKS}()\[\]{{}}]|(?<=[\w)])[+\-]+(?![\w+\-])"
_LETTER = rf"(?:\w|[^\x00-\x7f\s\w•·、，：。！？；…—–’{_MARKS}{_UNSEEN}])"
_TOKEN = re.compile(
    rf"(?P<markup>{_MARKUP})|(?P<word>{_EMBEDDING}|\d+(?:[.,]\d+)+\w*|{_LETTER}+(?:['’]\w+)*|&|(?<!\S)\+(?!\S))"
    rf"|(?P<stop>{_STOP})|(?P<comma>{_COMMA})|(?P<other>\S)"
)
_SOFT = frozenset(f"-'’\"{_MARKS}{_UNSEEN}")  # marks that may stand inside a noun phrase
_ABBREVIATIONS = frozenset({"st", "mr", "mrs", "ms", "dr", "vs", "no", "mt", "jr", "sr"})


@dataclass(frozen=True, slots=True)
class Word:
    """A word or a boundary of a prompt.

    Args:
        kind: "word", "comma" (a pause: comma, colon, line end, dash) or "stop" (end of a sentence).
        key: Lower-case form, with straight apostrophes; for boundaries a character that no phrase contains.
        start: Offset of its first character.
        end: Offset after its last character.
        hyphened: Joined to the word before it by a hyphen.
        split: Brackets or weights stand between it and the word before it.
    """

    kind: Literal["word", "comma", "stop"]
    key: str
    start: int
    end: int
    hyphened: bool = False
    split: bool = False


def split_words(text: str) -> list[Word]:
    """Words and boundaries of `text` in order. Linear in its length."""
    words: list[Word] = []
    split = False
    for match in _TOKEN.finditer(text):
        kind, start, end = str(match.lastgroup), match.start(), match.end()
        if kind in ("markup", "other"):
            split = split or match.group() not in _SOFT
            continue
        key = match.group().casefold().replace("’", "'") if kind == "word" else "\x00"
        if key in ("&", "+"):
            key = "and"
        if match.group() == "BREAK":
            kind, key = "stop", "\x00"
        if kind == "stop" and match.group() == "." and words and words[-1].key in _ABBREVIATIONS:
            continue
        hyphened = bool(words) and text[words[-1].end : start] == "-" and words[-1].kind == "word"
        words.append(Word(kind, key, start, end, hyphened, split))  # type: ignore[arg-type]
        split = False
    return words
