"""Picture grids: the same prompts and seeds under several methods, taken by rule and not by looks."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from PIL import Image

from attnsteer.compare.clips import film_strip, frames_of
from attnsteer.evaluate.report.examples import picture_uri
from attnsteer.jobs import Record, read_records
from attnsteer.pictures import as_image, encoded
from attnsteer.world.blocks import without_blocks
from attnsteer.world.claims.runs import Drawn

ROWS: Final = 4


@dataclass(frozen=True)
class Cell:
    """One picture: a data URI, whether it is right, and why not."""

    source: str
    right: bool
    failure: str


@dataclass(frozen=True)
class Grid:
    """Pictures in rows of one prompt and seed each.

    Attributes:
        title: What it shows.
        columns: Titles of the methods.
        rows: For each row, its caption and one cell for each column.
        strips: The cells are strips of frames, to be shown one below the other.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[tuple[str, Sequence[Cell]]]
    strips: bool = False


def grid_of(drawn: Drawn, title: str, methods: Sequence[str], rows: int = ROWS) -> Grid:
    """The first prompts of a run, each of another kind as far as there are kinds, under some of its methods."""
    run = drawn.run
    kinds: dict[str, str] = {}
    for data in run.records:
        kinds.setdefault(data["item"]["kind"], data["item"]["id"])
    chosen = list(kinds.values())
    chosen += [data["item"]["id"] for data in run.records if data["item"]["id"] not in chosen]
    shown = set(chosen[:rows])
    records = [record for record in read_records(run.path, files=True) if record.key in shown]
    strips = any(file.endswith(".webp") for record in records for file in record.files)
    return Grid(title, [drawn.title(name) for name in methods], [_row(record, methods) for record in records], strips)


def picture(content: bytes) -> str:
    """A data URI without loss and small: of a picture, or of a clip's frames side by side."""
    strip = film_strip(_without_blocks(frames_of(content)))
    return picture_uri("picture.webp", encoded(strip, "WEBP", lossless=True, quality=100, method=6))


def _without_blocks(frames: Sequence[Image.Image]) -> Sequence[Image.Image]:
    """Frames of blocks of equal pixels with one pixel for each block, which the page enlarges; others as they are."""
    values = torch.from_numpy(np.stack([np.asarray(frame) for frame in frames])).permute(0, 3, 1, 2)
    small = without_blocks(values.float() / 255)
    if len(frames) == 1 or small.shape[-1] == values.shape[-1]:
        return frames
    return [as_image(frame) for frame in small]


def _row(record: Record, methods: Sequence[str]) -> tuple[str, list[Cell]]:
    item, cells = record.data["item"], []
    for name in methods:
        file = next(file for file in record.files if file.rpartition(".")[0] == name)
        result = record.data["methods"][name]
        cells.append(Cell(picture(record.files[file]), bool(result["correct"]), str(result["failure"])))
    without = f", without {item['negative']}" if item["negative"] else ""
    return f"{item['prompt']}{without} (seed {item['seed']})", cells
