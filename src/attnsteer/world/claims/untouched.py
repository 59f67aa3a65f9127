"""Nothing is lost when no relation is named: the very same picture, in the same time."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any, Final

import torch

from attnsteer.jobs import Job, Record, read_records
from attnsteer.pictures import as_image, encoded
from attnsteer.world.claims.claim import Claim, Finding, Result, absent, certain
from attnsteer.world.claims.figure import Figure, Place
from attnsteer.world.claims.negatives import ROW_SECONDS, START_SECONDS, block_of
from attnsteer.world.claims.pictures import Cell, Grid, picture
from attnsteer.world.claims.roster import STEERED, WorldModel
from attnsteer.world.claims.scope import SEED, Scope
from attnsteer.world.claims.task import JobTask
from attnsteer.world.scene import COLOURS, SHAPES

SLOWEST: Final = 1.05
SHOWN: Final = 3
"""Prompts in the grid."""
PICTURES: Final = 4
"""Drawn together; a relation in a single one of them would be steered."""


@dataclass(frozen=True)
class UntouchedTask(JobTask):
    """Draws prompts without a relation, plain and under steering in turn.

    Attributes:
        model: With it.
        count: Prompts.
    """

    model: str = ""
    count: int = 24

    def job(self, work: Path) -> Job:
        """An item is a batch of prompts."""
        things = [f"a {colour} {shape}" for shape in SHAPES for colour in COLOURS]
        prompts = [things[number % len(things)] for number in range(self.count)]
        items = [
            {"id": f"batch-{first:04d}", "prompts": prompts[first : first + PICTURES], "seed": SEED + first}
            for first in range(0, self.count, PICTURES)
        ]
        return Job("untouched", items, _Worker(self.model), {"model": self.model}, 1, "batch")


@dataclass(frozen=True)
class _Worker:
    model: str

    def __call__(self) -> Callable[[Sequence[Mapping[str, Any]]], Iterator[Record]]:
        from attnsteer.pipeline.guided import guide
        from attnsteer.steering.learned import LearnedSteering
        from attnsteer.world.measure import Generation

        drawn = Generation.of(self.model)
        steered = guide(drawn.pipe, LearnedSteering.from_pretrained(str(drawn.classifier)))

        def draw(item: Mapping[str, Any], generate: Any) -> tuple[Any, float]:
            start = time.perf_counter()
            made = drawn.pictures(item["prompts"], first_seed=item["seed"], generate=generate)
            return made, time.perf_counter() - start

        def records(items: Sequence[Mapping[str, Any]]) -> Iterator[Record]:
            for item in items:
                draw(item, steered)  # the first call pays for the parser and for kernels
                (plain, before), (guided, after) = draw(item, drawn.pipe), draw(item, steered)
                same = [bool(torch.equal(a, b)) for a, b in zip(plain, guided, strict=True)]
                data = {"prompts": item["prompts"], "same": same, "plain": before, "steered": after}
                shown = {"plain.png": plain[0], "steered.png": guided[0]}
                files = {name: encoded(as_image(pixels), "PNG") for name, pixels in shown.items()}
                yield Record(item["id"], data, files)

        return records


def _task(scope: Scope, model: WorldModel) -> UntouchedTask:
    count = PICTURES * max(3, scope.size.pairs // 4 // PICTURES)
    rows = 2.0 if model.guidance_scale > 1 else 1.0
    seconds = START_SECONDS + 3 * count * model.steps * rows * ROW_SECONDS[model.architecture]
    return UntouchedTask(f"untouched/{model.steered_folder}-in-{model.steps}", seconds, (), model.name, count)


def plan(scope: Scope) -> list[UntouchedTask]:
    """One job for each model with a classifier."""
    return [_task(scope, model) for model in scope.of(*STEERED)]


def read(scope: Scope) -> Result:
    """The share of pictures that are the same bit for bit, and the median ratio of times."""
    figures: list[Figure] = []
    findings: list[Finding] = []
    grids: list[Grid] = []
    for model, task in zip(scope.of(*STEERED), plan(scope), strict=True):
        records = list(read_records(scope.work / task.name, files=True))
        same = [value for record in records for value in record.data["same"]]
        ratio = median(record.data["steered"] / record.data["plain"] for record in records)
        place = Place(block_of(model), "Steered, no relation named", (SEED, SEED + len(same) - 1))
        figures.append(place.share("bit-equal", same))
        figures.append(place.exact("time", ratio, len(same), timed=True))
        equal = f"{sum(same)} of {len(same)} pictures bit-equal"
        findings.append(certain(f"{place.block}: the picture is the stock pipeline's, bit for bit", all(same), equal))
        took = f"{ratio:.3f} times the time (median of {len(records)} batches)"
        findings.append(certain(f"{place.block}: it takes no longer", ratio <= SLOWEST, took))
        grids.append(Grid(place.block, ["Stock pipeline", place.row], [_row(record) for record in records[:SHOWN]]))
    return Result(figures, findings + absent(scope.missing(*STEERED)), grids)


def _row(record: Record) -> tuple[str, list[Cell]]:
    same = record.data["same"][0]
    failure = "" if same else "not the stock pipeline's picture"
    cells = [Cell(picture(record.files[name]), same, failure) for name in ("plain.png", "steered.png")]
    return record.data["prompts"][0], cells


CLAIM: Final = Claim(
    "untouched",
    "Nothing is lost when no relation is named",
    "Yiflach et al. 2026, arXiv:2509.02295",
    "Prompts without a relation, drawn by the stock pipeline and by the same pipeline under steering, from the same"
    " seeds, compared bit for bit. Times are uncertain by some hundredths: three runs with the MMDiT, whose classifier"
    " plays no part here, gave 0.985, 1.042 and the one below.",
    plan,
    read,
)
