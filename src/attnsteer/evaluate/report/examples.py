"""Examples for the report: the same seed under every method, chosen by what changed, with what the detector saw."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from PIL import Image

from attnsteer.evaluate.report.figures import Data, RunFigures
from attnsteer.jobs import Record, read_records

MOST: Final = 6


@dataclass(frozen=True)
class Outline:
    """A detected box in percent of the picture's sides."""

    label: str
    left: float
    top: float
    width: float
    height: float


@dataclass(frozen=True)
class Panel:
    """One picture of an example."""

    title: str
    source: str
    right: bool
    failure: str
    outlines: Sequence[Outline]
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


def example_groups(run: RunFigures, most: int = MOST) -> list[Group]:
    """Up to `most` examples each of what got better, worse, stayed right and stayed wrong, the first of the run.

    What counts is the baseline against the last method that is guided (or the last one).
    """
    names = [m.method.name for m in run.methods]
    guided = [m.method.name for m in run.methods[1:] if m.method.best_of == 1]
    before, after = names[0], (guided or names)[-1]
    title = next(m.method.title for m in run.methods if m.method.name == after)
    base = run.methods[0].method.title
    wanted = {
        f"Put right by {title}": (False, True),
        f"Spoilt by {title}": (True, False),
        f"Wrong under both {base} and {title}": (False, False),
        f"Right under both {base} and {title}": (True, True),
    }
    if before == after:
        wanted = {"Wrong": (False, False), "Right": (True, True)}
    chosen: dict[str, list[str]] = {name: [] for name in wanted}
    for data in run.records:
        pair = tuple(bool(data["methods"][name]["correct"]) for name in (before, after))
        name = next(name for name, value in wanted.items() if value == pair)
        chosen[name].append(_key(data))
    shown = {key for keys in chosen.values() for key in keys[:most]}
    pictures = {record.key: record for record in read_records(run.path, files=True) if record.key in shown}
    return [
        Group(name, len(keys), [_example(run, pictures[key]) for key in keys[:most]])
        for name, keys in chosen.items()
        if keys
    ]


def picture_uri(name: str, content: bytes) -> str:
    """A picture as a data URI."""
    kind = "jpeg" if Path(name).suffix == ".jpg" else "png"
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def _example(run: RunFigures, record: Record) -> Example:
    item = record.data["item"]
    panels = [
        _panel(m.method.name, m.method.title, record.data["methods"][m.method.name], record) for m in run.methods
    ]
    return Example(item["prompt"], item["negative"], item["seed"], panels)


def _panel(name: str, title: str, result: Data, record: Record) -> Panel:
    file = next(file for file in record.files if file.rpartition(".")[0] == name)
    with Image.open(io.BytesIO(record.files[file])) as picture:
        width, height = picture.size
    outlines = [
        Outline(
            label, 100 * left / width, 100 * top / height, 100 * (right - left) / width, 100 * (low - top) / height
        )
        for label, _, left, top, right, low in result["boxes"]
    ]
    uri = picture_uri(file, record.files[file])
    return Panel(title, uri, result["correct"], result["failure"], outlines, width <= 128)


def _key(data: Data) -> str:
    return str(data["item"]["id"])
