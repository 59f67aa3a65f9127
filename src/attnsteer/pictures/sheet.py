"""The comparison sheet: one prompt and one seed, several ways to generate, heat maps below every picture."""

from collections.abc import Sequence
from dataclasses import dataclass

from numpy.typing import ArrayLike
from PIL import Image, ImageDraw

from attnsteer.pictures.frame import (
    LEGEND_WIDTH,
    Highlight,
    Measures,
    dot,
    draw_footer,
    footer,
    frame_picture,
    header,
    new_paper,
)
from attnsteer.pictures.grid import enlarge
from attnsteer.pictures.heatmap import overlay
from attnsteer.pictures.palette import BAD, GOOD, INK, MUTED, NEUTRAL, object_colour, tint
from attnsteer.pictures.text import Paragraph, Run, lay_out


@dataclass(frozen=True)
class Heat:
    """The attention map of one word or object.

    Attributes:
        label: The words, e.g. "red circle".
        attention: (height, width) map of any resolution.
        role: Index of the object: its colour in the title (0, 1, ...).
    """

    label: str
    attention: ArrayLike
    role: int = 0


@dataclass(frozen=True)
class Badge:
    """A short verdict on a panel, e.g. "circle left of square"; `good` is None for a neutral remark."""

    text: str
    good: bool | None = None


@dataclass(frozen=True)
class Panel:
    """One way to generate.

    Attributes:
        title: Its name, e.g. "NAG".
        caption: What was done, e.g. "scale 5, tau 2.5, alpha 0.25"; one or two lines.
        image: The picture; small ones are enlarged with hard pixels.
        heats: Attention maps, shown below the picture.
        badges: Verdicts, shown below the caption.
        backdrop: What lies below the heat maps, e.g. a frame of a video; by default the picture itself.
    """

    title: str
    caption: str
    image: Image.Image
    heats: tuple[Heat, ...] = ()
    badges: tuple[Badge, ...] = ()
    backdrop: Image.Image | None = None


@dataclass(frozen=True)
class Sheet:
    """Everything on a comparison sheet.

    Attributes:
        prompt: The title.
        panels: From left to right, at least one.
        highlights: Marked stretches of the prompt.
        negative: The negative prompt, shown below the title.
        footer: Settings common to all panels.
        rows: Further rows of panels (other prompts or seeds) below the first, each as long as `panels` or shorter.
    """

    prompt: str
    panels: tuple[Panel, ...]
    highlights: tuple[Highlight, ...] = ()
    negative: str | None = None
    footer: str = ""
    rows: tuple[tuple[Panel, ...], ...] = ()


@dataclass(frozen=True)
class _Cell:
    title: Paragraph
    caption: Paragraph
    badges: tuple[tuple[Badge, Paragraph], ...]
    picture: Image.Image
    heats: tuple[tuple[Heat, Paragraph, Image.Image], ...]


def render_sheet(sheet: Sheet, *, cell: int = 250, scale: int = 2) -> Image.Image:
    """Draw a comparison sheet.

    Args:
        sheet: What to show.
        cell: Width of a column in points.
        scale: Pixels per point; 2 looks sharp on dense screens, 1 makes a small file.

    Returns: RGB picture.

    Raises: ValueError if there is no panel or a measure is not positive.
    """
    if not sheet.panels:
        raise ValueError("a sheet needs at least one panel")
    if cell < 40 or scale < 1:
        raise ValueError(f"cell must be >= 40 and scale >= 1, got {cell} and {scale}")
    measures = Measures(scale=scale)
    column, margin, gap = measures.px(cell), measures.px(measures.margin), measures.px(measures.gap)
    rows = [[_measure(panel, column, measures) for panel in row] for row in (sheet.panels, *sheet.rows)]
    columns = max(len(row) for row in rows)
    inner = max(columns * column + (columns - 1) * gap, measures.px(420))
    notes = [[Run("without  ", MUTED), Run(sheet.negative, BAD, marked=True)]] if sheet.negative else []
    head = header(sheet.prompt, sheet.highlights, notes, inner, measures)
    legend = any(cell.heats for row in rows for cell in row)
    foot = footer(sheet.footer, inner - (measures.px(LEGEND_WIDTH) if legend else 0), measures)
    depths = [_RowDepths.of(row, measures) for row in rows]
    body = sum(depth.total for depth in depths) + measures.px(22) * len(rows)
    foot_height = measures.px(9) + max(foot.height, measures.px(17))
    paper, draw = new_paper(inner + 2 * margin, margin + head.height + body + foot_height + measures.px(42))
    head.draw(draw, margin, margin)
    y = margin + head.height + measures.px(20)
    for row, depth in zip(rows, depths, strict=True):
        for number, part in enumerate(row):
            _draw(part, paper, draw, margin + number * (column + gap), y, depth, measures)
        y += depth.total + measures.px(22)
    draw_footer(draw, paper, foot, y, measures, legend=legend)
    return paper


@dataclass(frozen=True)
class _RowDepths:
    """Heights that the cells of one row share, in pixels, so that their parts line up."""

    text: int
    picture: int
    heats: int

    @property
    def total(self) -> int:
        return self.text + self.picture + self.heats

    @staticmethod
    def of(row: Sequence[_Cell], measures: Measures) -> "_RowDepths":
        text = max(_text_height(cell, measures) for cell in row)
        heats = max((_heats_height(cell, measures) for cell in row), default=0)
        return _RowDepths(text, max(cell.picture.height for cell in row), heats)


def _measure(panel: Panel, width: int, measures: Measures) -> _Cell:
    picture = enlarge(panel.image, width)
    backdrop = panel.image if panel.backdrop is None else panel.backdrop
    across = _heats_across(len(panel.heats))
    room = (min(width, measures.px(250)) - (across - 1) * measures.px(8)) // across
    letters = measures.px(12 if across == 2 else 10)
    heats = tuple(
        (
            heat,
            lay_out([Run(heat.label, object_colour(heat.role))], letters, room - measures.px(13), 1),
            overlay(enlarge(backdrop, room), heat.attention),
        )
        for heat in panel.heats
    )
    badges = tuple(
        (badge, lay_out([Run(badge.text, _badge_colour(badge))], measures.px(12), width - measures.px(22), 2))
        for badge in panel.badges
    )
    title = lay_out([Run(panel.title, INK, bold=True)], measures.px(17), width, 1)
    return _Cell(title, lay_out([Run(panel.caption, MUTED)], measures.px(12), width, 2), badges, picture, heats)


def _heats_across(count: int) -> int:
    return 2 if count in (0, 1, 2, 4) else 3


def _badge_colour(badge: Badge) -> tuple[int, int, int]:
    return NEUTRAL if badge.good is None else GOOD if badge.good else BAD


def _text_height(cell: _Cell, measures: Measures) -> int:
    badges = sum(text.height + measures.px(8) for _, text in cell.badges)
    return cell.title.height + cell.caption.height + badges + measures.px(8)


def _heats_height(cell: _Cell, measures: Measures) -> int:
    across = _heats_across(len(cell.heats))
    rows = [cell.heats[start : start + across] for start in range(0, len(cell.heats), across)]
    return sum(
        measures.px(8) + max(text.height + picture.height for _, text, picture in row) + measures.px(2) for row in rows
    )


def _draw(
    cell: _Cell, paper: Image.Image, draw: ImageDraw.ImageDraw, x: int, y: int, depth: _RowDepths, measures: Measures
) -> None:
    cell.title.draw(draw, x, y)
    cell.caption.draw(draw, x, y + cell.title.height)
    top = y + cell.title.height + cell.caption.height + measures.px(6)
    for badge, text in cell.badges:
        _draw_badge(draw, badge, text, x, top, measures)
        top += text.height + measures.px(8)
    y += depth.text
    paper.paste(cell.picture, (x, y))
    frame_picture(draw, x, y, cell.picture, measures)
    y += depth.picture
    across = _heats_across(len(cell.heats))
    for start in range(0, len(cell.heats), across):
        row = cell.heats[start : start + across]
        y += measures.px(8)
        for number, (heat, text, picture) in enumerate(row):
            left = x + number * (picture.width + measures.px(8))
            size = measures.px(7)
            dot(draw, left + measures.px(1), y + (text.height - size) / 2, size, object_colour(heat.role))
            text.draw(draw, left + measures.px(13), y)
            paper.paste(picture, (left, y + text.height + measures.px(2)))
        y += max(text.height + picture.height for _, text, picture in row) + measures.px(2)


def _draw_badge(draw: ImageDraw.ImageDraw, badge: Badge, text: Paragraph, x: int, y: int, measures: Measures) -> None:
    colour = _badge_colour(badge)
    box = (x, y, x + text.width + measures.px(20), y + text.height + measures.px(4))
    draw.rounded_rectangle(box, radius=measures.px(5), fill=tint(colour))
    text.draw(draw, x + measures.px(10), y + measures.px(2))
