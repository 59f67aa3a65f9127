"""Relation classifiers that differ in what they were trained on: the maps, the training, and the tests."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from attnsteer.world.claims.relations import relation_task
from attnsteer.world.claims.roster import CLASSIFIED, WorldModel
from attnsteer.world.claims.scope import Scope
from attnsteer.world.claims.task import EvaluationTask, Task

SINGLE: Final = "true words only"
DUAL: Final = "dual prompts"
SAMPLED: Final = "own pictures"
BOTH: Final = "both"
SYMMETRIES: Final = ("swap", "mirror", "upend")
RENDERED_SECONDS: Final = 8.0
SAMPLED_SECONDS: Final = 45.0
EPOCH_SECONDS: Final = 2.5
"""For each shard in the training set."""
DETAILS: Final = "tests.json"
TRUE_WORDS: Final = "true words"
HALF: Final = "half"


@dataclass(frozen=True)
class MapsTask:
    """Collects one part of the maps of a model.

    Attributes:
        name: Its folder's; the part lies in it.
        seconds: About.
        model: With it.
        part: "rendered", "sampled" or "held-out".
        shards: How many.
    """

    name: str
    seconds: float
    model: str
    part: str
    shards: int
    needs: tuple[str, ...] = ()

    def run(self, work: Path) -> None:
        """Collect the shards that are not there yet."""
        from attnsteer.steering.recording import Recording
        from attnsteer.world.measure import load_pipeline
        from attnsteer.world.steering import MAP_SIZE, Collection, collect

        if self.done(work) >= 1:
            return
        amount = Collection(self.shards, self.shards, self.shards)
        recording = Recording(size=MAP_SIZE)
        collect(load_pipeline(self.model), Path(self.model).name, work / self.name, recording, amount, (self.part,))

    def done(self, work: Path) -> float:
        """The share of finished shards."""
        return min(1.0, len(list((work / self.name / self.part).glob("shard-*.safetensors"))) / self.shards)


@dataclass(frozen=True)
class TrainingTask:
    """Trains a classifier on maps that were collected, and tests it.

    Attributes:
        name: Its folder's, which becomes the classifier's.
        seconds: About.
        needs: The tasks that collect maps.
        folders: Folders of maps to train on.
        chosen: Which of the rendered maps: `TRUE_WORDS` or `HALF`.
        held_out: Folder of the maps it is tested on.
        epochs: Of training.
    """

    name: str
    seconds: float
    needs: tuple[str, ...]
    folders: tuple[str, ...]
    chosen: str
    held_out: str
    epochs: int

    def run(self, work: Path) -> None:
        """Train, test, and write the classifier with the tests beside it."""
        from attnsteer.steering.dataset import read_manifest
        from attnsteer.steering.train import TrainSettings, evaluate_classifier, train_classifier
        from attnsteer.world.steering import architecture_for

        if self.done(work) >= 1:
            return
        folders = [
            chosen_maps(work / folder, work / f"{self.name}-maps", self.chosen)
            if folder.endswith("rendered")
            else work / folder
            for folder in self.folders
        ]
        classifier = train_classifier(
            folders, work / self.name, classifier=architecture_for(read_manifest(folders[0])),
            settings=TrainSettings(epochs=self.epochs, symmetries=SYMMETRIES),
        )  # fmt: skip
        tests = evaluate_classifier(classifier, [work / self.held_out])
        (work / self.name / DETAILS).write_text(json.dumps(tests, indent=2) + "\n", encoding="utf-8")

    def done(self, work: Path) -> float:
        """1 if the tests are written."""
        return 1.0 if (work / self.name / DETAILS).is_file() else 0.0


def chosen_maps(source: Path, target: Path, chosen: str) -> Path:
    """A copy of half of the maps in a folder.

    Args:
        source: Maps of rendered pictures, each with a true and with a wrong word.
        target: Folder of the copy.
        chosen: `TRUE_WORDS` takes the maps whose prompt is true, `HALF` those of the first half of the pictures: as
            many maps either way.
    """
    from attnsteer.steering.dataset import MapDataset, ShardWriter

    dataset = MapDataset([source])
    true = (dataset.prompt_relation == dataset.label).nonzero().flatten().tolist()
    rows = true if chosen == TRUE_WORDS else list(range(len(dataset) // 2))
    writer = ShardWriter(target, replace(dataset.manifest, shards={}))
    if not list(writer.finished()):
        writer.write(0, dataset.__getitems__(rows))
    return target


@dataclass(frozen=True)
class Bench:
    """All tasks about classifiers of one model; several claims read from them."""

    scope: Scope
    model: WorldModel

    @property
    def base(self) -> str:
        """First part of the names of folders."""
        return f"classifiers/{self.model.plain_folder}"

    def maps(self) -> dict[str, MapsTask]:
        """The maps by part; of the rendered ones each classifier takes half."""
        size = self.scope.size
        parts = {
            "rendered": (size.rendered, RENDERED_SECONDS),
            "sampled": (size.sampled, SAMPLED_SECONDS),
            "held-out": (size.held_out, SAMPLED_SECONDS),
        }
        return {
            part: MapsTask(f"{self.base}-maps-{part}", count * seconds, self.model.name, part, count)
            for part, (count, seconds) in parts.items()
        }

    def training(self, kinds: Sequence[str]) -> dict[str, TrainingTask]:
        """The classifiers of some kinds."""
        return {kind: self._training(kind) for kind in kinds}

    def _training(self, kind: str) -> TrainingTask:
        maps, size = self.maps(), self.scope.size
        parts: dict[str, tuple[str, ...]] = {
            SINGLE: ("rendered",), DUAL: ("rendered",), SAMPLED: ("sampled",), BOTH: ("rendered", "sampled"),
        }  # fmt: skip
        folders = {part: f"{maps[part].name}/{part}" for part in maps}
        shards = sum(maps[part].shards / (2 if part == "rendered" else 1) for part in parts[kind])
        return TrainingTask(
            f"{self.base}-{kind.replace(' ', '-')}", size.epochs * shards * EPOCH_SECONDS,
            tuple(maps[part].name for part in (*parts[kind], "held-out")),
            tuple(folders[part] for part in parts[kind]), TRUE_WORDS if kind == SINGLE else HALF,
            folders["held-out"], size.epochs,
        )  # fmt: skip

    def steering(self, kind: str) -> EvaluationTask:
        """Steering with a classifier of some kind."""
        trained = self._training(kind)
        return relation_task(
            self.scope, self.model, f"classifiers-{kind.replace(' ', '-')}", "shapes-position", "none,steer",
            classifier=f"task:{trained.name}", needs=(trained.name,),
        )  # fmt: skip

    def tests(self, kind: str) -> dict[str, Any]:
        """What the tests of a classifier found: accuracy and leakage."""
        found: dict[str, Any] = json.loads((self.scope.work / self._training(kind).name / DETAILS).read_text())
        return found


def classifier_tasks(scope: Scope, parts: Sequence[str], kinds: Sequence[str]) -> list[Task]:
    """For each model that can be steered: the maps of `parts`, a classifier of each kind, and steering with each."""
    tasks: list[Task] = []
    for model in scope.of(*CLASSIFIED):
        bench, maps = Bench(scope, model), Bench(scope, model).maps()
        tasks += [maps[part] for part in parts]
        tasks += bench.training(tuple(kinds)).values()
        tasks += [bench.steering(kind) for kind in kinds]
    return tasks
