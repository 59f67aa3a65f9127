"""What each part of steering brings on an embedded model: `python -m attnsteer.world.ablate --work runs/ablation`.

Every variant draws the same held-out prompts from the same seeds; the exact detector judges. Printed are the shares of
right pictures by number of relations and of pictures that hold all objects, the Frechet distance to rendered scenes
relative to that of the plain model's pictures, and the cost relative to a plain picture; each with its 95 % interval
where chance plays a part. A batch that is done is kept, so the command goes on where it was stopped; a variant or a
longer count can be added later.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from attnsteer.evaluate.metrics.extractors import Pixels
from attnsteer.evaluate.suites import find_suite
from attnsteer.jobs import Job, Record, run_job
from attnsteer.pictures import encoded
from attnsteer.world.ablation_table import table
from attnsteer.world.calls import call_keywords, denoiser_of
from attnsteer.world.chains import KINDS, SUITE, chains
from attnsteer.world.detect import detect
from attnsteer.world.features import RandomFeatures
from attnsteer.world.measure import load_pipeline
from attnsteer.world.models import WEIGHTS, embedded_models, steering_folder
from attnsteer.world.render import render
from attnsteer.world.variants import VARIANTS

FIRST_SEED = 7_000_000
SEED_STEP = 1_000_000_007
OWN = "the model's own"


@dataclass(frozen=True)
class Ablation:
    """What is compared.

    Attributes:
        model: Embedded model, or diffusers folder.
        classifier: Folder of its relation classifier.
        variants: Keys of `VARIANTS`; "plain" is always among them.
        count: Prompts of each kind.
        batch: Pictures that are drawn together.
        steps: Denoising steps.
        guidance_scale: The pipeline's own.

    Raises: ValueError for an unknown variant, or a count that is no multiple of the batch.
    """

    model: str
    classifier: str
    variants: tuple[str, ...] = tuple(VARIANTS)
    count: int = 96
    batch: int = 48
    steps: int = 20
    guidance_scale: float = 1.5

    def __post_init__(self) -> None:
        unknown = sorted(set(self.variants) - set(VARIANTS))
        if unknown:
            raise ValueError(f"unknown variants {unknown}; there are {', '.join(VARIANTS)}")
        if self.count % self.batch or min(self.count, self.batch) < 1:
            raise ValueError(f"count must be a multiple of batch, got {self.count} and {self.batch}")

    def jobs(self) -> dict[str, Job]:
        """One resumable job per variant; an item is a batch of prompts of one kind."""
        items = []
        for kind, tasks in chains(self.count).items():
            prompts = [asdict(task) for task in tasks]
            for first in range(0, len(prompts), self.batch):
                chunk = prompts[first : first + self.batch]
                items.append({"kind": kind, "first": first, "tasks": chunk, "id": f"{kind[0]}-{first:05d}"})
        settings = {name: value for name, value in asdict(self).items() if name not in ("variants", "count")}
        if self.model in embedded_models() and Path(self.classifier) == WEIGHTS / self.model / "steering":
            settings["classifier"] = OWN  # wherever the package lies
        names = list(dict.fromkeys(("plain", *self.variants)))
        return {
            name: Job(f"ablation: {name}", items, Worker(self, name), {**settings, "variant": name}, 1, "batch")
            for name in names
        }

    def examples(self, each: int) -> Job:
        """A job that keeps pictures: of the first `each` prompts of every kind, by every variant; one item each.

        They are those of `jobs`, but for what the size of a batch changes in the last digits. The records'
        data says which of their files, in order, are right.
        """
        names = list(dict.fromkeys(("plain", *self.variants)))
        tasks = [asdict(task) for kind in chains(each).values() for task in kind]
        seeds = [FIRST_SEED + number % each for number in range(len(tasks))]
        items = [{"id": name, "tasks": tasks, "seeds": seeds} for name in names]
        return Job(
            "ablation: examples", items, ExampleWorker(self), {"model": self.model, "steps": self.steps}, 1, "one"
        )


@dataclass(frozen=True)
class ExampleWorker:
    """Draws the pictures of `Ablation.examples`."""

    ablation: Ablation

    def __call__(self) -> Callable[[Sequence[Mapping[str, Any]]], Iterator[Record]]:
        """The function of the job; each variant loads the model anew."""
        return lambda items: (_Bench(self.ablation, item["id"]).example(item) for item in items)


@dataclass(frozen=True)
class Worker:
    """Loads the model and makes the function of a variant's job."""

    ablation: Ablation
    variant: str

    def __call__(self) -> Callable[[Sequence[Mapping[str, Any]]], Iterator[Record]]:
        """Load everything."""
        return _Bench(self.ablation, self.variant).records


class _Bench:
    """A variant on a loaded model."""

    def __init__(self, ablation: Ablation, name: str) -> None:
        from attnsteer.evaluate.cost import Meter
        from attnsteer.evaluate.detectors.shapes import ShapesDetector
        from attnsteer.pipeline.guided import guide
        from attnsteer.steering.learned import LearnedSteering

        self.ablation, self.variant = ablation, VARIANTS[name]
        self.plain = load_pipeline(ablation.model)
        self.detector, self.features = ShapesDetector(), RandomFeatures()
        change = self.variant.change
        self.pipe = self.plain
        if change is not None:
            self.pipe = guide(self.plain, change(LearnedSteering.from_pretrained(ablation.classifier)))
        self.meter = Meter(denoiser_of(self.plain))
        with self.meter.counted("plain"):
            self.plain(["a circle"], **call_keywords(self.plain, 1, 2, ablation.guidance_scale))

    def records(self, items: Sequence[Mapping[str, Any]]) -> Iterator[Record]:
        for item in items:
            yield self._record(item)

    def _record(self, item: Mapping[str, Any]) -> Record:
        tasks, seeds = item["tasks"], [FIRST_SEED + item["first"] + i for i in range(len(item["tasks"]))]
        if not self.meter.knows("variant"):
            with self.meter.counted("variant"):
                self._draw(tasks[:1], seeds[:1])
        with self.meter.measured("variant", len(tasks)) as cost:
            pictures, verdicts = self._best(tasks, seeds)
        data = {
            "kind": item["kind"],
            "right": [correct for correct, _ in verdicts],
            "present": [present for _, present in verdicts],
            "seconds": cost.seconds / len(tasks),
            "evaluations": cost.evaluations / len(tasks),
        }
        features = {"features.bin": self.features(pictures), "redrawn.bin": self.features.of_pixels(redrawn(pictures))}
        files = {name: values.numpy().astype("float32").tobytes() for name, values in features.items()}
        return Record(item["id"], data, files)

    def example(self, item: Mapping[str, Any]) -> Record:
        """Pictures of an item of `Ablation.examples`."""
        tasks, seeds = item["tasks"], item["seeds"]
        pictures, verdicts = self._best(tasks, seeds)
        data = {
            "prompts": [task["prompt"] for task in tasks],
            "seeds": seeds,
            "right": [correct for correct, _ in verdicts],
            "present": [present for _, present in verdicts],
        }
        files = {f"{row:02d}.png": encoded(picture, "PNG") for row, picture in enumerate(pictures)}
        return Record(item["id"], data, files)

    def _best(self, tasks: Sequence[Any], seeds: Sequence[int]) -> tuple[list[Any], list[tuple[bool, bool]]]:
        """Pictures with (relations right, all objects there), the best of several seeds where the variant says so."""
        pictures = self._draw(tasks, seeds)
        verdicts = self._judge(tasks, pictures)
        for extra in range(1, self.variant.best_of):
            others = self._draw(tasks, [seed + extra * SEED_STEP for seed in seeds])
            for row, verdict in enumerate(self._judge(tasks, others)):
                if verdict > verdicts[row]:
                    pictures[row], verdicts[row] = others[row], verdict
        return pictures, verdicts

    def _draw(self, tasks: Sequence[Any], seeds: Sequence[int]) -> list[Any]:
        own = self.ablation
        return list(
            self.pipe(
                prompt=[task["prompt"] for task in tasks],
                generator=[torch.Generator().manual_seed(seed) for seed in seeds],
                **call_keywords(self.plain, len(tasks), own.steps, own.guidance_scale),
            ).images
        )  # fmt: skip

    def _judge(self, tasks: Sequence[Any], pictures: Sequence[Any]) -> list[tuple[bool, bool]]:
        from attnsteer.evaluate.prompts import Task

        found = self.detector(pictures, [task["labels"] for task in tasks])
        judge, verdicts = find_suite(SUITE).judge, []
        for task, boxes, picture in zip(tasks, found, pictures, strict=True):
            right = judge(Task(**task), boxes, picture.size).correct
            verdicts.append((bool(right), set(task["labels"]) <= {box.label for box in boxes}))
        return verdicts


def redrawn(pictures: Sequence[Image.Image]) -> Float[Tensor, "pictures 3 side side"]:
    """What the detector sees in each square picture, rendered: the same layout, looking as it should."""
    side = pictures[0].width
    pixels = Pixels(side)(pictures).unflatten(1, (3, side, side))
    return render([tuple(one.shape for one in found) for found in detect(pixels)], side)


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="shapes-unet", help="embedded model or diffusers folder")
    parser.add_argument("--classifier", help="folder of the relation classifier (default: the model's own)")
    parser.add_argument("--work", type=Path, required=True, help="folder for results")
    parser.add_argument("--variants", nargs="+", default=list(VARIANTS), choices=VARIANTS)
    parser.add_argument("--count", type=int, default=96, help="prompts of each kind")
    parser.add_argument("--batch", type=int, default=48, help="pictures drawn together; count is a multiple of it")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--guidance-scale", type=float, default=1.5)
    given = parser.parse_args(arguments)
    embedded = given.model in embedded_models()
    classifier = given.classifier or str(steering_folder(given.model) if embedded else Path(given.model) / "steering")
    ablation = Ablation(
        given.model, classifier, tuple(given.variants), given.count, given.batch, given.steps, given.guidance_scale
    )
    for name, job in ablation.jobs().items():
        run_job(job, given.work / f"{name}-{given.count}")
    folders = {name: given.work / f"{name}-{given.count}" for name in ablation.jobs()}
    sys.stdout.write(table(folders, KINDS) + "\n")


if __name__ == "__main__":
    main()
