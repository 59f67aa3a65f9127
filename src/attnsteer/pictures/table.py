"""The map table: one row per word, one column per step, every map laid over the finished picture."""

from dataclasses import dataclass

import numpy as np
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
from attnsteer.pictures.palette import MUTED, object_colour
from attnsteer.pictures.text import Run, lay_out


@dataclass(frozen=True)
class MapTable:
    """Everything on a map table.

    Attributes:
        prompt: The title.
        image: The finished picture, shown at the left of every row.
        words: One label per row.
        columns: One label per column, e.g. "step 5 of 20".
        attention: One (height, width) map per row and column.
        highlights: Marked stretches of the prompt.
        footer: Settings.
        common_scale: Colour all maps of a row on the row's scale, so that their strength can be compared; otherwise
            every map on its own.
        label: What `image` is.
    """

    prompt: str
    image: Image.Image
    words: tuple[str, ...]
    columns: tuple[str, ...]
    attention: tuple[tuple[ArrayLike, ...], ...]
    highlights: tuple[Highlight, ...] = ()
    footer: str = ""
    common_scale: bool = False
    label: str = "picture"


def render_map_table(table: MapTable, *, cell: int = 170, scale: int = 2) -> Image.Image:
    """Draw a map table.

    Args:
        table: What to show.
        cell: Width of a picture in points.
        scale: Pixels per point.

    Returns: RGB picture.

    Raises: ValueError if the numbers of words, columns and maps do not fit, or a map is not two-dimensional.
    """
    rows, columns = len(table.words), len(table.columns)
    if not rows or not columns or len(table.attention) != rows or any(len(row) != columns for row in table.attention):
        shape = [len(row) for row in table.attention]
        raise ValueError(f"need one map for each of {rows} words x {columns} columns, got rows of {shape}")
    measures = Measures(scale=scale, gap=12)
    width, margin, gap = measures.px(cell), measures.px(measures.margin), measures.px(measures.gap)
    picture = enlarge(table.image, width)
    inner = max((columns + 1) * width + columns * gap, measures.px(420))
    head = header(table.prompt, table.highlights, [], inner, measures)
    foot = footer(table.footer, inner - measures.px(LEGEND_WIDTH), measures)
    labels = [lay_out([Run(text, MUTED)], measures.px(13), width, 1) for text in (table.label, *table.columns)]
    label_height = max(label.height for label in labels) + measures.px(4)
    row_height = measures.px(24) + picture.height + measures.px(8)
    body = measures.px(18) + label_height + rows * row_height + measures.px(14)
    foot_height = measures.px(9) + max(foot.height, measures.px(17))
    paper, draw = new_paper(inner + 2 * margin, margin + head.height + body + foot_height + measures.px(20))
    head.draw(draw, margin, margin)
    y = margin + head.height + measures.px(18)
    for number, label in enumerate(labels):
        label.draw(draw, margin + number * (width + gap), y)
    y += label_height
    for number in range(rows):
        _draw_row(table, number, paper, draw, y, picture, measures)
        y += row_height
    draw_footer(draw, paper, foot, y + measures.px(14), measures, legend=True)
    return paper


def _draw_row(
    table: MapTable,
    number: int,
    paper: Image.Image,
    draw: ImageDraw.ImageDraw,
    y: int,
    picture: Image.Image,
    measures: Measures,
) -> None:
    """Draw the word, the picture and the maps of one row, the top at `y`."""
    colour, x = object_colour(number), measures.px(measures.margin)
    text = lay_out([Run(table.words[number], colour, bold=True)], measures.px(14), paper.width, 1)
    size = measures.px(8)
    dot(draw, x, y + (text.height - size) / 2, size, colour)
    text.draw(draw, x + measures.px(15), y)
    y += measures.px(24)
    maps = table.attention[number]
    limits = _extremes(maps) if table.common_scale else None
    paper.paste(picture, (x, y))
    frame_picture(draw, x, y, picture, measures)
    for attention in maps:
        x += picture.width + measures.px(measures.gap)
        paper.paste(overlay(picture, attention, limits=limits), (x, y))


def _extremes(maps: tuple[ArrayLike, ...]) -> tuple[float, float]:
    arrays = [np.asarray(attention, dtype=np.float64) for attention in maps]
    return min(float(array.min()) for array in arrays), max(float(array.max()) for array in arrays)
