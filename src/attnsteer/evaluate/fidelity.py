"""The fidelity suites: pictures against reference pictures of the same prompts, by distances and CLIP score.

Every record keeps the features, so that a report needs neither the models nor the reference pictures.
"""

import io
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from PIL import Image

from attnsteer.evaluate.generation import Studio
from attnsteer.jobs import Job, Record
from attnsteer.pictures import as_image

if TYPE_CHECKING:
    from attnsteer.evaluate.metrics.extractors import Extractor
    from attnsteer.evaluate.metrics.patches import PatchSource
    from attnsteer.evaluate.scores import Scores
    from attnsteer.evaluate.settings import Evaluation

SUITES: Final = {
    "fidelity": "distances to reference pictures and preference scores, for a file of prompts with pictures",
    "shapes-fidelity": "distances to rendered scenes, for prompts that describe them",
}
REFERENCE: Final = "reference"


def fidelity_job(evaluation: "Evaluation", shard_size: int | None) -> Job:
    """The job of a fidelity suite.

    Raises: ValueError if the suite lacks its prompt file or extractor, or a method takes the best of several seeds.
    """
    if any(method.best_of != 1 or method.equal for method in evaluation.columns):
        raise ValueError("fidelity compares sets of pictures; best-of-N needs a rule that judges single ones")
    sources = patch_sources(evaluation.patches)
    if evaluation.suite == "fidelity":
        if evaluation.prompts is None or evaluation.extractor is None:
            raise ValueError(
                "fidelity needs --prompts FILE (lines of JSON with prompt and reference) and --extractor"
                " (inception:PATH, clip:MODEL or pixels)"
            )
        items = read_references(evaluation.prompts)[: evaluation.count]
        _check_patches_fit(items, sources)
    else:
        items = scene_items(evaluation.count or 192, evaluation.seed)
    for number, item in enumerate(items):
        item |= {
            "id": f"{evaluation.suite}-{number:05d}", "seed": evaluation.seed + number, "group": number,
            "number": number, "negative": None,
        }  # fmt: skip
    return Job(
        f"evaluate {evaluation.suite}", items, FidelityWorker(evaluation), evaluation.described(),
        shard_size or evaluation.batch, "picture",
    )  # fmt: skip


def read_references(path: str | Path) -> list[dict[str, Any]]:
    """Read lines of JSON {"prompt": ..., "reference": picture}; pictures are looked for beside the file.

    Raises: ValueError if a line lacks a key; FileNotFoundError if a picture is not there.
    """
    folder, items = Path(path).parent, []
    for number, line in enumerate(Path(path).read_text(encoding="utf-8").splitlines(), 1):
        row = json.loads(line)
        if not {"prompt", "reference"} <= set(row):
            raise ValueError(f"{path}, line {number}: needs the keys prompt and reference")
        picture = folder / row["reference"]
        if not picture.is_file():
            raise FileNotFoundError(f"{path}, line {number}: no picture at {picture}")
        items.append({"prompt": row["prompt"], "reference": str(picture), "scene": None})
    return items


def _check_patches_fit(items: Sequence[Mapping[str, Any]], sources: "Sequence[PatchSource]") -> None:
    """Look at the sizes of all reference pictures, so that a small one does not end the run in the middle."""
    for item in items if sources else ():
        with Image.open(item["reference"]) as picture:
            least = min(picture.size)
        largest = max(source.size for source in sources)
        if least < largest:
            raise ValueError(
                f"{item['reference']} is {least} pixels high or wide, a patch {largest}: choose smaller --patches, or"
                " take its line out of the file"
            )


def scene_items(count: int, seed: int) -> list[dict[str, Any]]:
    """Scenes of one or two objects, with prompts that name them."""
    from attnsteer.world.captions import phrase
    from attnsteer.world.scene import random_scene

    random, items = Random(f"fidelity-{seed}"), []
    for number in range(count):
        scene = random_scene(random, 1 + number % 2)
        prompt = " and ".join(phrase(shape) for shape in scene)
        items.append({"prompt": prompt, "reference": None, "scene": [asdict(shape) for shape in scene]})
    return items


@dataclass(frozen=True)
class FidelityWorker:
    """Loads models and extractor in a working process, and does shards."""

    evaluation: "Evaluation"

    def __call__(self) -> Callable[[Sequence[Mapping[str, Any]]], Iterator[Record]]:
        """Load everything; returns the function of the job."""
        from attnsteer.evaluate.metrics.extractors import make_extractor
        from attnsteer.evaluate.scores import Scores

        own, studio = self.evaluation, Studio(self.evaluation)
        device = studio.model.device
        extractor = make_extractor(own.extractor or "pixels", device)
        return _Lab(studio, extractor, Scores(own.scores, None, device), patch_sources(own.patches)).records


def patch_sources(names: str | None) -> "tuple[PatchSource, ...]":
    """Patch definitions by name: "center:299", "tiled:256", "shifted:256", or several with commas.

    Raises: ValueError for another name, or one that is given twice.
    """
    from attnsteer.evaluate.metrics.patches import PatchSource

    found: list[PatchSource] = []
    for name in (names or "").split(",") if names else ():
        mode, _, size = name.strip().partition(":")
        if not size.isdigit():
            raise ValueError(f"patches must be center:SIZE, tiled:SIZE or shifted:SIZE, got {name!r}")
        found.append(PatchSource(int(size), mode))  # type: ignore[arg-type]
    if len(set(found)) < len(found):
        raise ValueError(f"each patch definition can be named once, got {names!r}")
    return tuple(found)


@dataclass(frozen=True)
class _Lab:
    studio: Studio
    extractor: "Extractor"
    scores: "Scores"
    patches: "tuple[PatchSource, ...]"

    def records(self, items: Sequence[Mapping[str, Any]]) -> Iterator[Record]:
        batch = self.studio.evaluation.batch
        for first in range(0, len(items), batch):
            yield from self._batch(items[first : first + batch])

    def _batch(self, items: Sequence[Mapping[str, Any]]) -> Iterator[Record]:
        methods: list[dict[str, Any]] = [{} for _ in items]
        files: list[dict[str, bytes]] = [{} for _ in items]
        for method in self.studio.methods:
            painted = self.studio.paint(items, method)
            if any(len(one.frames) > 1 for one in painted):
                raise ValueError("fidelity compares pictures; this model makes clips")
            scores = self.scores(painted, [item["prompt"] for item in items])
            for number, one in enumerate(painted):
                methods[number][method.name] = {**one.result(), "scores": scores[number], "tried": 1}
                files[number] |= dict([one.file(method.name)]) | self._features(method.name, one.picture)
        for number, item in enumerate(items):
            with Image.open(io.BytesIO(next(iter(files[number].values())))) as picture:
                side = picture.width
            files[number] |= self._features(REFERENCE, reference_picture(item, side))
            data = {"item": dict(item), "detector": self.extractor.name, "resolved": self.studio.resolved}
            data["methods"] = methods[number]
            yield Record(item["id"], data, files[number])

    def _features(self, name: str, picture: Image.Image) -> dict[str, bytes]:
        found = {f"{name}.npy": _array(self.extractor([picture]).numpy())}
        for source in self.patches:
            found[f"{name}.{source.name}.npy"] = _array(self.extractor(source.patches(picture)).numpy())
        return found


def reference_picture(item: Mapping[str, Any], side: int) -> Image.Image:
    """The reference of an item: its file, or its scene rendered at `side` pixels."""
    if item["scene"] is None:
        with Image.open(item["reference"]) as picture:
            return picture.convert("RGB")
    from attnsteer.world.render import render
    from attnsteer.world.scene import Shape

    scene = tuple(Shape(**shape) for shape in item["scene"])
    return as_image(render([scene], side)[0])


def _array(values: Any) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, values.astype(np.float32), allow_pickle=False)
    return buffer.getvalue()
