"""Finished evaluation runs, as the claims read them: values of each method on each item, costs, and features."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from statistics import median
from typing import Final

import torch
from torch import Tensor

from attnsteer.compare.clips import frames_of
from attnsteer.evaluate.report.figures import MethodFigures, RunFigures, read_run, results_of
from attnsteer.evaluate.statistics import Comparison
from attnsteer.evaluate.sweep import Swept
from attnsteer.jobs import read_records
from attnsteer.world.claims.clips import CLIP_SUITE, wanted_clips
from attnsteer.world.claims.figure import Figure, Place
from attnsteer.world.claims.pairs import paired
from attnsteer.world.claims.roster import CFG
from attnsteer.world.clips import FRAMES, SIDE, render_clips
from attnsteer.world.distances import RelativeDistances
from attnsteer.world.features import RandomFeatures
from attnsteer.world.render import render
from attnsteer.world.scene import Scene, random_scene

BOTH: Final = "kept and absent"
ABSENT: Final = "unwanted absent"
KEPT: Final = "subject kept"
DISTANCE: Final = "distance"
LOOK: Final = "look"
AREA: Final = "area under the curve"
BY_SIZE: Final = frozenset((DISTANCE, LOOK, AREA))
"""Figures whose expected value depends on how much is drawn; tables of different sizes cannot be compared by them."""
COST: Final = "cost"
TIME: Final = "time"
_DETAILS: Final = {ABSENT: "absent", KEPT: "kept"}


@dataclass(frozen=True)
class Drawn:
    """A finished run.

    Attributes:
        run: Its figures; the first method is the baseline.
        block: What its figures are listed under.
    """

    run: RunFigures
    block: str

    @classmethod
    def read(cls, folder: Path, block: str) -> Drawn:
        """Read a run.

        Raises: ValueError if it is not finished.
        """
        run = read_run(folder)
        if len(run.records) < run.of:
            raise ValueError(f"{folder} holds {len(run.records)} of {run.of} pictures; run the claims again to go on")
        return cls(run, block)

    @property
    def names(self) -> list[str]:
        """The methods, the baseline first."""
        return [m.method.name for m in self.run.methods]

    @property
    def seeds(self) -> tuple[int, int]:
        """First and last."""
        seeds = [int(data["item"]["seed"]) for data in self.run.records]
        return min(seeds), max(seeds)

    def figures_of(self, method: str) -> MethodFigures:
        """A method's figures, by its name."""
        return next(m for m in self.run.methods if m.method.name == method)

    def title(self, method: str) -> str:
        """The method and its settings, without those that are off, e.g. "NAG, scale 7" or "NAG, CFG 1.5"."""
        found = self.figures_of(method).method
        if not isinstance(found, Swept):
            return found.title
        own = {("CFG" if name in CFG.values() else name): value for name, value in found.settings.items()}
        off = {"bias": 0.0, "CFG": 1.0}
        return replace(found, settings={name: value for name, value in own.items() if value != off.get(name)}).title

    def place(self, method: str, row: str | None = None) -> Place:
        """Where figures of a method stand."""
        return Place(self.block, row or self.title(method), self.seeds)

    def values(self, method: str, what: str = BOTH) -> list[bool]:
        """Of each item: whether it is right, or one of `ABSENT` and `KEPT`."""
        results = results_of(self.run.records, method)
        if what in _DETAILS:
            return [bool(result["details"][_DETAILS[what]]) for result in results]
        return [bool(result["correct"]) for result in results]

    def against(self, first: str, second: str, what: str = BOTH) -> Comparison:
        """The second method against the first, on the same prompts and seeds."""
        return paired(self.values(first, what), self.values(second, what))

    def share(self, method: str, what: str = BOTH) -> str:
        """E.g. "93.8 %", for evidence."""
        return self.place(method).share(what, self.values(method, what)).text

    def features(self) -> dict[str, Tensor]:
        """Features of the pictures of each method, in the order of the items; of a clip, the mean over its frames."""
        found: dict[str, list[Tensor]] = {name: [] for name in self.names}
        extract = features_of(self.run)
        for record in read_records(self.run.path, files=True):
            for file, content in record.files.items():
                found[file.rpartition(".")[0]].append(extract(frames_of(content)).mean(0))
        return {name: torch.stack(rows) for name, rows in found.items()}

    def costs(self, method: str, row: str | None = None) -> list[Figure]:
        """Operations relative to the baseline, and wall time, the median over the pictures."""
        own, base, place = self.figures_of(method), self.run.methods[0], self.place(method, row)
        pairs = zip(*(results_of(self.run.records, name) for name in (method, base.method.name)), strict=True)
        times = [mine["seconds"] / plain["seconds"] for mine, plain in pairs if plain["seconds"]]
        count = len(self.run.records)
        return [
            place.exact(COST, own.flops / base.flops, count),
            place.exact(TIME, median(times) if times else math.nan, count, timed=True),
        ]


def negative_figures(drawn: Drawn) -> list[Figure]:
    """What each method of a run with negative prompts does: absent, kept, both, distance to what it should draw, cost.

    The distance is that to rendered scenes (or clips) of what was asked for without what is unwanted, relative to the
    baseline's.
    """
    figures: list[Figure] = []
    features = drawn.features()
    distances = RelativeDistances({"": features[drawn.names[0]]}, {"": _wanted_features(drawn.run)})
    for name in drawn.names:
        place = drawn.place(name)
        figures += [place.share(what, drawn.values(name, what)) for what in (ABSENT, KEPT, BOTH)]
        figures.append(place.estimate(DISTANCE, distances.of({"": features[name]}), "x"))
        figures += drawn.costs(name)
    return figures


def features_of(run: RunFigures) -> RandomFeatures:
    """The feature space of a run: at the size of the clips' pixels for clips."""
    return RandomFeatures(SIDE) if run.suite.name == CLIP_SUITE else RandomFeatures()


def _wanted_features(run: RunFigures) -> Tensor:
    extract = features_of(run)
    if run.suite.name == CLIP_SUITE:
        clips = render_clips(wanted_clips(run.records), FRAMES, extract.side)
        return extract.of_pixels(clips.flatten(0, 1)).unflatten(0, (-1, FRAMES)).mean(1)
    return extract.of_pixels(render(wanted_scenes(run.records), extract.side))


def wanted_scenes(records: Sequence[Mapping[str, object]], each: int = 4) -> list[Scene]:
    """Scenes such as the training pictures, of the shape that each prompt names, without what is unwanted in it."""
    random, scenes = Random("claims-wanted"), []
    for data in records:
        asked = data["item"]["asked"]  # type: ignore[index]
        for _ in range(each):
            scenes.append(_scene(random, asked["subject"], asked["unwanted"]))
    return scenes


def _scene(random: Random, shape: str, unwanted: str) -> Scene:
    while True:
        scene = random_scene(random, 1, attribute_probability=0.6)
        if scene[0].shape == shape and unwanted not in (scene[0].colour, scene[0].attribute):
            return scene
