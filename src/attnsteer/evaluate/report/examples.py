"""Examples for the report: the same seed under every method, chosen by what changed, with what the detector saw."""

import base64
import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Final

import numpy as np
from PIL import Image

from attnsteer.evaluate.heat_maps import read_heat_maps
from attnsteer.evaluate.methods import Method
from attnsteer.evaluate.report.figures import Data, RunFigures, best_guided
from attnsteer.jobs import Record, read_records
from attnsteer.pictures import encoded, overlay

MOST: Final = 6
HEAT_SIDE: Final = 96
SMALL: Final = 128
KINDS: Final = {".jpg": "jpeg", ".png": "png", ".webp": "webp"}


@dataclass(frozen=True)
class Outline:
    """A detected box in percent of the picture's sides."""

    label: str
    left: float
    top: float
    width: float
    height: float


@dataclass(frozen=True)
class Heat:
    """The attention of a word over a picture."""

    word: str
    source: str


@dataclass(frozen=True)
class Panel:
    """One picture of an example."""

    title: str
    source: str
    right: bool
    failure: str
    note: str
    outlines: Sequence[Outline]
    heats: Sequence[Heat]
    small: bool


@dataclass(frozen=True)
class Example:
    """One item under every method."""

    prompt: str
    negative: str | None
    seed: int
    panels: Sequence[Panel]


@dataclass(frozen=True)
class Group:
    """Examples of one kind."""

    title: str
    count: int
    examples: Sequence[Example]


def chosen_examples(run: RunFigures, most: int = MOST) -> dict[str, tuple[int, list[str]]]:
    """Titles of groups of examples, with how many items belong to each and the ids of up to `most` of them.

    The groups are what got better, got worse, stayed wrong and stayed right under the best guided method (or the last
    one) against the baseline. In each, those come first whose score changed most, among equals the first of the run.
    """
    names = [m.method.name for m in run.methods]
    best = best_guided(run)
    before, after = names[0], names[-1] if best is None else best.method.name
    titles = {m.method.name: m.method.title for m in run.methods}
    wanted = {
        f"Put right by {titles[after]}": (False, True),
        f"Spoilt by {titles[after]}": (True, False),
        f"Wrong under both {titles[before]} and {titles[after]}": (False, False),
        f"Right under both {titles[before]} and {titles[after]}": (True, True),
    }
    if before == after:
        wanted = {"Wrong": (False, False), "Right": (True, True)}
    chosen: dict[str, list[tuple[float, str]]] = {name: [] for name in wanted}
    for data in run.records:
        pair = [data["methods"][name] for name in (before, after)]
        name = next(name for name, value in wanted.items() if value == tuple(bool(one["correct"]) for one in pair))
        chosen[name].append((abs(pair[1]["score"] - pair[0]["score"]), str(data["item"]["id"])))
    return {
        name: (len(rows), [key for _, key in sorted(rows, key=lambda row: -row[0])[:most]])
        for name, rows in chosen.items()
        if rows
    }


def example_groups(run: RunFigures, most: int = MOST) -> list[Group]:
    """The chosen examples with their pictures."""
    chosen = chosen_examples(run, most)
    shown = {key for _, keys in chosen.values() for key in keys}
    pictures = {record.key: record for record in read_records(run.path, files=True) if record.key in shown}
    return [
        Group(name, count, [_example(run, pictures[key]) for key in keys]) for name, (count, keys) in chosen.items()
    ]


def first_examples(path: Path, methods: Sequence[Method], most: int = MOST) -> list[Example]:
    """The first items of a run that judges no single pictures, under every method."""
    found = []
    for record in islice(read_records(path, files=True), most):
        item, panels = record.data["item"], []
        for method in methods:
            file, size, _ = _opened(record, method.name)
            panels.append(
                Panel(method.title, picture_uri(file, record.files[file]), True, "", "", (), (), _small(size))
            )
        found.append(Example(item["prompt"], None, item["seed"], panels))
    return found


def picture_uri(name: str, content: bytes) -> str:
    """A picture as a data URI."""
    return f"data:image/{KINDS[Path(name).suffix]};base64,{base64.b64encode(content).decode()}"


def _example(run: RunFigures, record: Record) -> Example:
    item = record.data["item"]
    panels = [
        _panel(m.method.name, m.method.short_title, record.data["methods"][m.method.name], record, run.path)
        for m in run.methods
    ]
    return Example(item["prompt"], item["negative"], item["seed"], panels)


def _panel(name: str, title: str, result: Data, record: Record, run: Path) -> Panel:
    file, (width, height), picture = _opened(record, name)
    heats = _heats(picture, read_heat_maps(run, record.key, name))
    outlines = [
        Outline(
            label, 100 * left / width, 100 * top / height, 100 * (right - left) / width, 100 * (low - top) / height
        )
        for label, _, left, top, right, low in result["boxes"]
    ]
    note = f"seed {result['seed']}" if result["seed"] != record.data["item"]["seed"] else ""
    uri = picture_uri(file, record.files[file])
    return Panel(title, uri, result["correct"], result["failure"], note, outlines, heats, _small((width, height)))


def _opened(record: Record, name: str) -> tuple[str, tuple[int, int], Image.Image]:
    """File name, size and content of a method's picture, or of the first frame of its clip."""
    file = next(file for file in record.files if file.rpartition(".")[0] == name and Path(file).suffix in KINDS)
    with Image.open(io.BytesIO(record.files[file])) as picture:
        return file, picture.size, picture.convert("RGB")


def _small(size: tuple[int, int]) -> bool:
    """Whether a picture is shown larger than it is, pixel by pixel."""
    return max(size) <= SMALL


def _heats(picture: Image.Image, maps: Mapping[str, np.ndarray]) -> list[Heat]:
    """The maps over the picture, all from zero to their common highest value, so that they compare."""
    if not maps:
        return []
    highest = max(float(values.max()) for values in maps.values())
    small = picture.resize((HEAT_SIDE, round(HEAT_SIDE * picture.height / picture.width)))
    found = []
    for word, values in maps.items():
        content = encoded(overlay(small, values, limits=(0.0, highest)), "WEBP", quality=80)
        found.append(Heat(word, picture_uri("map.webp", content)))
    return found
