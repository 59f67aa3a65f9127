"""Train the relation classifier of an embedded model: `python -m attnsteer.world.steering --model FOLDER --work DIR`.

Maps are collected from rendered pictures under noise with dual prompts, and from the model's own samples labelled by
the exact detector. The detector gives labels here and scores elsewhere; steering itself never sees it. Every shard and
every epoch is kept, so the command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import Any

import torch
from torch import Tensor

from attnsteer.steering.classifier_settings import ClassifierSettings, EncoderSize, LeanAdvice
from attnsteer.steering.collect import PairPrompt, noised_maps, sampled_maps
from attnsteer.steering.data.shapes import recorded_layers
from attnsteer.steering.dataset import Manifest, MapBatch, ShardWriter, read_manifest
from attnsteer.steering.recording import Recording
from attnsteer.steering.symmetry import SYMMETRIES
from attnsteer.steering.train import TrainSettings, default_classifier, evaluate_classifier, train_classifier
from attnsteer.world.calls import call_keywords, side_of, text_keywords
from attnsteer.world.captions import phrase
from attnsteer.world.detect import detect
from attnsteer.world.measure import find_pair, load_pipeline
from attnsteer.world.render import render
from attnsteer.world.scene import RELATIONS, Scene, random_scene, relations_between

logger = logging.getLogger(__name__)

PARTS = ("rendered", "sampled", "held-out")
STEPS = 20
COLLECTED = tuple(range(4, 10))
"""Steps whose maps are collected for training."""
STEERED = tuple(range(5, 10))
"""Steered steps. On pictures that were drawn for this choice, starting a step earlier put more chains of relations
right than starting at 6, where the classifier is surer; starting at 4 brought nothing more."""
LEAN = LeanAdvice(iterations=6, step_size=0.03, backtracking=False, presence=0.01)
"""Chosen on the same pictures of the embedded U-Net: short steps keep more objects whole than the rule's default of
three longer ones, and going on from a step that raised the loss puts more relations right than taking it back. The
peak is one that nearly all objects which are there exceed at step 12, and most that are missing do not. For another
model these are a first guess."""
MAP_SIZE = 16
WIDTH = EncoderSize().width
DROPOUT = 0.1
OBJECTS = {2: 0.6, 3: 0.25, 4: 0.15}
"""Share of pictures with so many objects; in larger ones the relation of one neighbouring pair is learnt."""


@dataclass(frozen=True)
class Collection:
    """How much is collected: shards of `batch` pictures; held-out shards come from other seeds."""

    rendered_shards: int = 28
    sampled_shards: int = 44
    held_out_shards: int = 6
    batch: int = 48
    guidance_scale: float = 1.5


def scene_with_pair(random: Random) -> tuple[Scene, int]:
    """Objects, and the place in the prompt of the first of the pair whose relation counts."""
    scene = random_scene(random, random.choices(list(OBJECTS), list(OBJECTS.values()))[0], attribute_probability=0.05)
    return scene, random.randrange(len(scene) - 1)


def clear_scene(random: Random) -> tuple[Scene, int, str]:
    """Objects and a pair of which exactly one relation holds."""
    while True:
        scene, first = scene_with_pair(random)
        holding = relations_between(scene[first], scene[first + 1])
        if len(holding) == 1:
            return scene, first, holding.pop()


def pair_prompt(scene: Scene, first: int, word: str, source: str) -> PairPrompt:
    """A prompt such as "a red circle WORD a blue square and a green triangle" with whatever relation word is wanted.

    Neighbours other than the pair are joined by "and" or by a relation word, drawn by `source`.
    """
    random = Random(source)
    names = [phrase(shape, attribute=False) for shape in scene]
    joints = [word if i == first else random.choice(("and", *RELATIONS)) for i in range(len(scene) - 1)]
    text = names[0] + "".join(f" {joint} {name}" for joint, name in zip(joints, names[1:], strict=True))
    subject, reference = (name.split(" ", 1)[1] for name in names[first : first + 2])
    return PairPrompt(text, subject, reference, word, source)


def rendered_batch(pipe: Any, recording: Recording, seed: int, size: int) -> MapBatch:
    """Rendered pictures, each with the true and with one wrong relation word (dual prompts), at every second step."""
    random = Random(f"rendered-{seed}")
    scenes = [clear_scene(random) for _ in range(size)]
    pictures = render([scene for scene, _, _ in scenes], side_of(pipe)).repeat(2, 1, 1, 1)
    labels = [label for _, _, label in scenes] * 2
    prompts = [pair_prompt(scene, first, label, f"r{seed}-{i}") for i, (scene, first, label) in enumerate(scenes)]
    for i, (scene, first, label) in enumerate(scenes):
        wrong = random.choice([name for name in RELATIONS if name != label])
        prompts.append(pair_prompt(scene, first, wrong, f"r{seed}-{i}"))
    return noised_maps(
        pipe, pictures, prompts, labels, recording, RELATIONS, steps=COLLECTED[1::2], num_inference_steps=STEPS,
        generator=torch.Generator().manual_seed(seed), call=text_keywords(pipe),
    )  # fmt: skip


def sampled_batch(
    pipe: Any, recording: Recording, seed: int, collection: Collection, steps: Sequence[int] = COLLECTED
) -> MapBatch:
    """The model's own pictures for random relation prompts, labelled by the detector, at every one of `steps`."""
    random = Random(f"sampled-{seed}")
    scenes = [scene_with_pair(random) for _ in range(collection.batch)]
    prompts = [pair_prompt(s, first, random.choice(RELATIONS), f"s{seed}-{i}") for i, (s, first) in enumerate(scenes)]

    def label(pictures: Tensor) -> list[str | None]:
        wanted = [scene[first : first + 2] for scene, first in scenes]
        return [_clear_relation(pair, found) for pair, found in zip(wanted, detect(pictures), strict=True)]

    call = call_keywords(pipe, collection.batch, STEPS, collection.guidance_scale)
    call["generator"] = [torch.Generator().manual_seed(seed * 100_000 + i) for i in range(collection.batch)]
    return sampled_maps(pipe, prompts, label, recording, RELATIONS, steps=steps, call=call)


def _clear_relation(scene: Scene, found: Sequence[Any]) -> str | None:
    pair = find_pair(scene, found)
    holding = relations_between(*pair) if pair is not None else set()
    return holding.pop() if len(holding) == 1 else None


def collect(
    pipe: Any,
    name: str,
    folder: Path,
    recording: Recording,
    collection: Collection,
    only: Sequence[str] = PARTS,
) -> dict[str, Path]:
    """Collect the shards of some parts that are not there yet; returns the parts' folders."""
    layers, _ = recorded_layers(pipe, recording)
    channels = sum(count for _, count, _ in layers)
    settings = {
        "scheduler": type(pipe.scheduler).__name__, "num_inference_steps": STEPS,
        "guidance_scale": collection.guidance_scale, "channel_layers": [list(layer) for layer in layers],
    }  # fmt: skip
    manifest = Manifest(name, RELATIONS, channels, recording.size, recording.layers, settings=settings)

    def sampled(seed: int, steps: Sequence[int] = COLLECTED) -> MapBatch:
        return sampled_batch(pipe, recording, seed, collection, steps)

    parts: dict[str, tuple[int, Callable[[int], MapBatch]]] = {
        "rendered": (collection.rendered_shards, lambda n: rendered_batch(pipe, recording, n, collection.batch)),
        "sampled": (collection.sampled_shards, lambda n: sampled(1_000 + n)),
        "held-out": (collection.held_out_shards, lambda n: sampled(14_000 + n, STEERED)),
    }
    parts = {part: plan for part, plan in parts.items() if part in only}
    for part, (shards, batch_of) in parts.items():
        writer = ShardWriter(folder / part, manifest)
        for number in sorted(set(range(shards)) - set(writer.finished())):
            writer.write(number, batch_of(number))
            logger.info("%s: shard %d of %d", part, number + 1, shards)
    return {part: folder / part for part in parts}


def architecture_for(
    manifest: Manifest, width: int = WIDTH, dropout: float = DROPOUT, presence: float | None = LEAN.presence
) -> ClassifierSettings:
    """A classifier of these maps for our steps, antisymmetric.

    Args:
        manifest: Of the maps.
        width: Of its encoders.
        dropout: In training, [0, 1).
        presence: Peak of the map of an object that is there; None where peaks do not tell.
    """
    own = default_classifier(manifest)
    encoder = EncoderSize(width, feedforward=2 * width)
    return replace(
        own, extractor=encoder, head=encoder, head_widths=(4 * width, 2 * width), dropout=dropout, antisymmetric=True,
        lean=replace(LEAN, presence=presence), source=replace(own.source, timesteps=STEERED, num_steps=STEPS),
    )  # fmt: skip


def train(
    model: Path, work: Path, output: Path, collection: Collection, settings: TrainSettings, **architecture: Any
) -> dict[str, Any]:
    """Collect, train, measure on held-out samples of the model, and write the classifier; returns its metrics.

    `architecture` holds further arguments of `architecture_for`.
    """
    pipe = load_pipeline(model)
    folders = collect(pipe, model.name, work, Recording(size=MAP_SIZE), collection)
    classifier = train_classifier(
        [folders["rendered"], folders["sampled"]], work / "classifier", settings=settings,
        classifier=architecture_for(read_manifest(folders["sampled"]), **architecture),
        on_epoch=lambda report: logger.info("%s", report),
    )  # fmt: skip
    classifier.metrics = evaluate_classifier(classifier, [folders["held-out"]])
    classifier.save_pretrained(output, dtype=torch.float16)
    return classifier.metrics


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="diffusers folder of the text-to-image model")
    parser.add_argument("--work", type=Path, required=True, help="folder for maps and checkpoints")
    parser.add_argument("--output", type=Path, help="folder for the classifier (default: MODEL/steering)")
    parser.add_argument("--rendered-shards", type=int, default=Collection.rendered_shards)
    parser.add_argument("--sampled-shards", type=int, default=Collection.sampled_shards)
    parser.add_argument("--held-out-shards", type=int, default=Collection.held_out_shards)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--width", type=int, default=WIDTH, help="of the classifier's encoders; 40 halves its size")
    parser.add_argument(
        "--presence", type=float, default=LEAN.presence,
        help="peak of the map of an object that is there; 0 where peaks do not tell, as in our MMDiT",
    )  # fmt: skip
    training = TrainSettings()
    parser.add_argument("--dropout", type=float, default=DROPOUT, help="in training")
    parser.add_argument("--learning-rate", type=float, default=training.learning_rate, help="at the start")
    parser.add_argument(
        "--patience", type=int, default=training.plateau_patience, help="epochs without gain until it is halved"
    )
    parser.add_argument(
        "--symmetries", nargs="+", choices=sorted(SYMMETRIES), default=["swap", "mirror", "upend"],
        help="augmentations with exact labels",
    )  # fmt: skip
    parser.add_argument("--only-collect", nargs="+", choices=PARTS, help="collect these parts and stop")
    given = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    collection = Collection(given.rendered_shards, given.sampled_shards, given.held_out_shards)
    if given.only_collect:
        pipe = load_pipeline(given.model)
        collect(pipe, given.model.name, given.work, Recording(size=MAP_SIZE), collection, given.only_collect)
        return
    output = given.output or given.model / "steering"
    training = TrainSettings(
        epochs=given.epochs, learning_rate=given.learning_rate, plateau_patience=given.patience,
        symmetries=tuple(given.symmetries),
    )  # fmt: skip
    architecture = {"width": given.width, "dropout": given.dropout, "presence": given.presence or None}
    metrics = train(given.model, given.work, output, collection, training, **architecture)
    sys.stdout.write(json.dumps({name: metrics[name] for name in ("samples", "accuracy", "leakage")}, indent=2) + "\n")


if __name__ == "__main__":
    main()
