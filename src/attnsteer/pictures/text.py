"""Text on sheets: the font bundled with Pillow, styled words, line breaks, and measuring before drawing."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, TypeAlias

from PIL import ImageDraw, ImageFont

from attnsteer.pictures.palette import INK, Colour, tint

# Pillow is untyped for the type checker: a FreeTypeFont.
Font: TypeAlias = Any

# Looked for by name, in this order, when the bundled font lacks a letter.
_WIDER_FONTS = ("NotoSans-Regular.ttf", "NotoSansCJK-Regular.ttc", "DejaVuSans.ttf", "Arial Unicode.ttf", "arial.ttf")

# How far the band of marked words stands out at its sides, in letter sizes.
_BAND = 0.2


@dataclass(frozen=True)
class Run:
    """A stretch of text in one style.

    Attributes:
        text: May hold spaces, where lines can break.
        colour: Of the letters.
        bold: Heavier letters.
        marked: Draws the words on a soft band of their own colour.
    """

    text: str
    colour: Colour = INK
    bold: bool = False
    marked: bool = False


@dataclass(frozen=True)
class _Word:
    run: Run
    text: str
    x: float
    width: float
    glued: bool


@dataclass(frozen=True)
class Paragraph:
    """Text that is broken into lines and measured, ready to be drawn; lengths are pixels."""

    lines: tuple[tuple[_Word, ...], ...]
    size: int
    width: float
    line_height: int

    @property
    def height(self) -> int:
        """Height of all lines."""
        return self.line_height * len(self.lines)

    def draw(self, draw: ImageDraw.ImageDraw, x: float, y: float) -> None:
        """Draw with the top left corner at (x, y)."""
        for number, line in enumerate(self.lines):
            top = y + number * self.line_height
            for position, word in enumerate(line):
                if word.run.marked:
                    follows = position + 1 < len(line) and line[position + 1].run is word.run
                    right = line[position + 1].x if follows else word.x + word.width
                    self._band(draw, x + word.x, x + right, top, word)
            for word in line:
                font = font_for(word.text, self.size)
                baseline = top + 0.76 * self.line_height
                stroke = self.size / 56 if word.run.bold else 0
                spot = (x + word.x, baseline)
                draw.text(spot, word.text, fill=word.run.colour, font=font, anchor="ls", stroke_width=stroke)

    def _band(self, draw: ImageDraw.ImageDraw, left: float, right: float, top: float, word: _Word) -> None:
        pad = _BAND * self.size
        box = (left - pad, top + 0.04 * self.line_height, right + pad, top + 0.98 * self.line_height)
        draw.rounded_rectangle(box, radius=0.22 * self.size, fill=tint(word.run.colour))


def lay_out(runs: Sequence[Run] | str, size: int, width: float = float("inf"), max_lines: int = 0) -> Paragraph:
    """Break styled text into lines.

    Args:
        runs: Styled stretches in reading order, or plain text in the ink colour.
        size: Letter size in pixels, >= 1.
        width: Line width in pixels; a single longer word stands out over the edge.
        max_lines: Cut after this many lines, with an ellipsis; 0 keeps all.
    """
    if isinstance(runs, str):
        runs = [Run(runs)]
    space = font_for(" ", size).getlength(" ")
    lines: list[list[_Word]] = [[]]
    x = 0.0
    before: Run | None = None
    for run, text, spaced in _words(runs):
        length = font_for(text, size).getlength(text) + (size / 40 if run.bold else 0)
        room = space if before is run else space + _BAND * size * (run.marked + (before is not None and before.marked))
        before = run
        advance = x + (room if spaced and lines[-1] else 0.0)
        if advance + length > width and lines[-1] and spaced:
            lines.append([])
            advance = 0.0
        lines[-1].append(_Word(run, text, advance, length, not spaced))
        x = advance + length
    if max_lines and len(lines) > max_lines:
        lines = lines[:max_lines]
        last = lines[-1][-1]
        lines[-1].append(_Word(last.run, "...", last.x + last.width, font_for("...", size).getlength("..."), True))
    used = max((line[-1].x + line[-1].width for line in lines if line), default=0.0)
    return Paragraph(tuple(tuple(line) for line in lines), size, used, round(1.36 * size))


def _words(runs: Sequence[Run]) -> list[tuple[Run, str, bool]]:
    """Split runs into (run, word, whether a space precedes it)."""
    found: list[tuple[Run, str, bool]] = []
    spaced = False
    for run in runs:
        pieces = run.text.replace("\n", " ").split(" ")
        for number, piece in enumerate(pieces):
            spaced = spaced or number > 0
            if piece:
                found.append((run, piece, spaced))
                spaced = False
    return found


@lru_cache(maxsize=256)
def font_at(size: int, name: str | None = None) -> Font:
    """Return Pillow's bundled font, or the system font called `name`, at a size in pixels."""
    return ImageFont.load_default(size=size) if name is None else ImageFont.truetype(name, size)


@lru_cache(maxsize=4096)
def font_for(text: str, size: int) -> Font:
    """Return the bundled font if it has every letter of `text`, else the first installed one of a short list."""
    bundled = font_at(size)
    if _covers(bundled, text):
        return bundled
    for name in _WIDER_FONTS:
        try:
            font = font_at(size, name)
        except OSError:
            continue
        if _covers(font, text):
            return font
    return bundled


def _covers(font: Font, text: str) -> bool:
    missing = bytes(font.getmask("\U0010fffd"))
    return all(letter.isspace() or bytes(font.getmask(letter)) != missing for letter in set(text))
