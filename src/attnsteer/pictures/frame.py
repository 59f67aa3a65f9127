"""What every sheet shares: measures, the prompt as a title with its words marked, and the line of settings below."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from attnsteer.pictures.heatmap import colour_ramp
from attnsteer.pictures.palette import HAIRLINE, INK, MUTED, PAPER, RELATION, Colour, object_colour
from attnsteer.pictures.text import Paragraph, Run, lay_out


@dataclass(frozen=True)
class Highlight:
    """A marked stretch of the prompt.

    Attributes:
        start: First character of the stretch in the prompt.
        stop: One past its last character.
        role: The index of an object (its colour, 0, 1, ...), or None for the relation words.
    """

    start: int
    stop: int
    role: int | None = None


@dataclass(frozen=True)
class Measures:
    """Lengths of a sheet in points, and how many pixels a point is.

    Attributes:
        scale: Pixels per point, >= 1; 2 looks sharp on dense screens.
        margin: Around the sheet.
        gap: Between columns.
    """

    scale: int = 2
    margin: int = 28
    gap: int = 20

    def px(self, points: float) -> int:
        """Convert points to pixels."""
        return round(points * self.scale)


@dataclass(frozen=True)
class Header:
    """The measured head of a sheet: the prompt, and under it lines of notes."""

    title: Paragraph
    notes: tuple[Paragraph, ...]
    gap: int

    @property
    def height(self) -> int:
        """Pixels from the first line to the last."""
        return self.title.height + sum(note.height for note in self.notes) + (self.gap if self.notes else 0)

    def draw(self, draw: ImageDraw.ImageDraw, x: int, y: int) -> None:
        """Draw with the top left corner at (x, y)."""
        self.title.draw(draw, x, y)
        y += self.title.height + self.gap
        for note in self.notes:
            note.draw(draw, x, y)
            y += note.height


def header(
    prompt: str, highlights: Sequence[Highlight], notes: Sequence[Sequence[Run]], width: int, measures: Measures
) -> Header:
    """Measure the head of a sheet of `width` pixels (without margins)."""
    size = measures.px(22)
    title = lay_out(marked_prompt(prompt, highlights), size, width, max_lines=4)
    lines = tuple(lay_out(note, measures.px(14), width, max_lines=2) for note in notes)
    return Header(title, lines, measures.px(6))


def marked_prompt(prompt: str, highlights: Sequence[Highlight]) -> list[Run]:
    """Split a prompt into styled runs; where stretches overlap, the one that starts first wins."""
    runs: list[Run] = []
    place = 0
    for mark in sorted(highlights, key=lambda mark: (mark.start, mark.stop)):
        if mark.start < place or mark.stop > len(prompt) or mark.stop <= mark.start:
            continue
        runs.append(Run(prompt[place : mark.start], INK))
        colour = RELATION if mark.role is None else object_colour(mark.role)
        runs.append(Run(prompt[mark.start : mark.stop], colour, marked=True))
        place = mark.stop
    runs.append(Run(prompt[place:], INK))
    return [run for run in runs if run.text]


def footer(text: str, width: int, measures: Measures) -> Paragraph:
    """Measure the line of settings at the foot of a sheet of `width` pixels (without margins)."""
    return lay_out([Run(text, MUTED)], measures.px(12), width, max_lines=3)


def draw_footer(
    draw: ImageDraw.ImageDraw, paper: Image.Image, settings: Paragraph, y: int, measures: Measures, *, legend: bool
) -> None:
    """Draw a hairline, the settings at the left, and the colour legend of the maps at the right."""
    left, right = measures.px(measures.margin), paper.width - measures.px(measures.margin)
    draw.line((left, y, right, y), fill=HAIRLINE, width=measures.px(1))
    settings.draw(draw, left, y + measures.px(9))
    if legend:
        label = lay_out([Run("attention", MUTED)], measures.px(12))
        bar_width, bar_height = measures.px(LEGEND_BAR), measures.px(8)
        top = y + measures.px(9) + (label.height - bar_height) // 2
        ramp = Image.fromarray(np.repeat(colour_ramp(np.linspace(0, 1, bar_width))[None], bar_height, axis=0))
        paper.paste(ramp, (right - bar_width, top))
        label.draw(draw, right - bar_width - measures.px(8) - label.width, y + measures.px(9))


LEGEND_BAR = 72
LEGEND_WIDTH = 160


def new_paper(width: int, height: int) -> tuple[Image.Image, ImageDraw.ImageDraw]:
    """Return a white sheet and something to draw on it with."""
    paper = Image.new("RGB", (width, height), PAPER)
    return paper, ImageDraw.Draw(paper)


def frame_picture(draw: ImageDraw.ImageDraw, x: int, y: int, picture: Image.Image, measures: Measures) -> None:
    """Draw a hairline just outside a picture, so that a white one is told from the paper."""
    line = measures.px(0.5)
    box = (x - line, y - line, x + picture.width + line - 1, y + picture.height + line - 1)
    draw.rectangle(box, outline=HAIRLINE, width=line)


def dot(draw: ImageDraw.ImageDraw, x: float, y: float, diameter: float, colour: Colour) -> None:
    """Draw the dot that ties a heat map to its word in the title."""
    draw.ellipse((x, y, x + diameter, y + diameter), fill=colour)
