"""Pictures of prompts over a sweep of settings, to look at: a job like the suites', but nothing is judged."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from PIL import Image

from attnsteer.compare.clips import film_strip, frames_of
from attnsteer.evaluate.generation import Studio
from attnsteer.evaluate.settings import GALLERY, Evaluation
from attnsteer.evaluate.sweep import swept_methods
from attnsteer.jobs import Job, Record, RunFolder, read_records
from attnsteer.pictures import Panel, Sheet, render_sheet

COLUMN: Final = 180
"""Width in points of a picture on the sheet."""
STRIP: Final = 900
"""The same of a strip of frames."""


def gallery_job(evaluation: Evaluation, prompts: Sequence[str], seeds: int, shard_size: int | None = None) -> Job:
    """The job that generates every prompt from `seeds` seeds, each with every method; a shard is one batch by default.

    Raises: ValueError if there are no prompts, or a method is chosen by a rule, which a gallery does not have.
    """
    if evaluation.suite != GALLERY or not prompts or seeds < 1:
        raise ValueError(f"a sweep needs the suite {GALLERY!r}, one or more prompts and seeds >= 1")
    if any(method.best_of != 1 or method.equal for method in evaluation.columns):
        raise ValueError("best-of-N needs a rule that judges pictures; sweep it with `attnsteer evaluate --sweep`")
    items = [
        {
            "id": f"{GALLERY}-{row:03d}-{number:03d}", "prompt": prompt, "negative": None, "group": row,
            "seed": evaluation.seed + number,
        }
        for row, prompt in enumerate(prompts)
        for number in range(seeds)
    ]  # fmt: skip
    settings = evaluation.described()
    return Job(GALLERY, items, _Painter(evaluation), settings, shard_size or evaluation.batch, "picture")


@dataclass(frozen=True)
class _Painter:
    evaluation: Evaluation

    def __call__(self) -> Callable[[Sequence[Mapping[str, Any]]], Iterator[Record]]:
        studio, batch = Studio(self.evaluation), self.evaluation.batch

        def records(items: Sequence[Mapping[str, Any]]) -> Iterator[Record]:
            for first in range(0, len(items), batch):
                some = items[first : first + batch]
                done = {method.name: studio.paint(some, method) for method in studio.methods}
                for number, item in enumerate(some):
                    methods = {name: painted[number].result() for name, painted in done.items()}
                    files = dict(painted[number].file(name) for name, painted in done.items())
                    yield Record(item["id"], {"item": dict(item), "methods": methods}, files)

        return records


def gallery_sheets(run: str | Path) -> dict[str, Image.Image]:
    """One sheet for each prompt of a finished gallery: a row for each seed, a column for each method; clips as strips.

    Raises: FileNotFoundError if the folder is no run; ValueError if it is a run of something else.
    """
    described = RunFolder(run).description()["fixed"]
    if described["name"] != GALLERY:
        raise ValueError(f"{run} is a run of {described['name']!r}; use `attnsteer report` for evaluations")
    settings = described["settings"]
    titles = {method.name: method.title for method in swept_methods(settings["methods"], settings["sweep"])}
    rows: dict[str, list[tuple[Panel, ...]]] = {}
    cell = COLUMN
    for record in read_records(run, files=True):
        item = record.data["item"]
        pictures = {name.rpartition(".")[0]: content for name, content in record.files.items()}
        seconds = {name: f"{result['seconds']:.2f} s" for name, result in record.data["methods"].items()}
        shown = {name: frames_of(pictures[name]) for name in titles}
        panels = [
            Panel(title, f"seed {item['seed']}, {seconds[name]}", film_strip(shown[name]))
            for name, title in titles.items()
        ]
        clips = any(len(frames) > 1 for frames in shown.values())  # each strip of frames has a row of its own
        cell = STRIP if clips else COLUMN
        rows.setdefault(item["prompt"], []).extend([(panel,) for panel in panels] if clips else [tuple(panels)])
    model, negative = str(settings["model"]), settings["negative"]
    return {
        prompt: render_sheet(Sheet(prompt, first, negative=negative, footer=model, rows=tuple(rest)), cell=cell)
        for prompt, (first, *rest) in rows.items()
    }
