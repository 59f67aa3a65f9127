"""Lettering in a prompt: what stands in quotes is written in the picture, and places nothing.

Single quotes are also apostrophes. A straight one opens where no letter or digit stands before it and closes where
none follows, so "the dog's left", "the dogs' bowl" and "'90s" hold no quotes. A double one right behind a digit does
not open: it is an inch.
"""

import re
from collections.abc import Iterator, Sequence

from attnsteer.steering.parser.words import Word

QUOTED = "it stands in quotes, as lettering"
_PAIRS = {
    "“": "”", "„": "“”", "‟": "”", "«": "»", "»": "«", "‹": "›", "›": "‹", "「": "」", "『": "』", "‘": "’", "‚": "‘’",
}  # fmt: skip
_MARK = re.compile(r"[\"'“”„‟«»‹›「」『』‘’‚\n]")
_SHORT = re.compile(r"'(?:\d\ds?|n'|til|tis|twas|em|cause|round|neath|tween)(?!\w)", re.IGNORECASE)
_EAST_ASIAN = "\u1100"  # letters from here on know no apostrophe
_LONGEST = 400  # characters between two marks; longer ones are no pair


def quoted_words(text: str, words: Sequence[Word]) -> list[bool]:
    """For each word whether it stands in quotes; a prompt that is quoted as a whole has no such words."""
    whole = (len(text) - len(text.lstrip()), len(text.rstrip()))
    regions = [region for region in quoted_regions(text) if region != whole]
    flags, at = [], 0
    for word in words:
        while at < len(regions) and regions[at][1] <= word.start:
            at += 1
        flags.append(at < len(regions) and regions[at][0] <= word.start)
    return flags


def quoted_regions(text: str) -> list[tuple[int, int]]:
    """Start and end of everything in quotes, marks included, in order; quotes within quotes belong to the outer ones.

    Marks must stand in one line. Linear in the text's length.
    """
    regions: list[tuple[int, int]] = []
    start, closing = -1, ""
    for at, mark in _marks(text):
        if start >= 0 and (mark == "\n" or at - start > _LONGEST):
            start = -1
        if start >= 0 and mark in closing and _closes(text, at):
            regions.append((start, at + 1))
            start = -1
        elif start < 0 and _opens(text, at):
            start, closing = at, _PAIRS.get(mark, mark)
    return regions


def _marks(text: str) -> Iterator[tuple[int, str]]:
    return ((match.start(), match.group()) for match in _MARK.finditer(text))


def _opens(text: str, at: int) -> bool:
    mark, before, after = text[at], text[at - 1 : at] or " ", text[at + 1 : at + 2] or " "
    if after.isspace() or mark in "”’\n":
        return False
    if mark in "'‘":
        return not before.isalnum() and not _SHORT.match(text, at)
    return mark != '"' or not before.isdigit()


def _closes(text: str, at: int) -> bool:
    after = text[at + 1 : at + 2]
    return text[at] not in "'’" or not after.isalnum() or after >= _EAST_ASIAN  # Korean particles follow directly
