"""Prompts that chain relations, and rendered scenes of what they ask for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from random import Random
from typing import TYPE_CHECKING

from jaxtyping import Float
from torch import Tensor

from attnsteer.evaluate.suites import find_suite
from attnsteer.world.features import RandomFeatures
from attnsteer.world.render import render
from attnsteer.world.scene import Scene, random_scene, relations_between

if TYPE_CHECKING:
    from attnsteer.evaluate.prompts import Task

SUITE = "shapes-chains"
KINDS = ("2 objects, 1 relation", "3 objects, 2 relations", "4 objects, 3 relations")
SEED = 11
RENDERED = 8
"""Scenes of each prompt: the more, the less chance there is in what pictures are compared with."""


def chains(count: int) -> dict[str, list[Task]]:
    """The first `count` prompts of each of `KINDS`, the same ones every time."""
    tasks = find_suite(SUITE).own(count, SEED)  # type: ignore[misc]
    return {kind: [task for task in tasks if task.kind == kind][:count] for kind in KINDS}


def obeying_scene(random: Random, task: Task) -> Scene:
    """A random scene of the objects that a prompt names, standing as it says."""
    places = {label: place for place, label in enumerate(task.labels)}
    while True:
        drawn = zip(random_scene(random, len(places)), task.labels, strict=True)
        scene = tuple(replace(item, colour=label.split()[0], shape=label.split()[1]) for item, label in drawn)
        clauses = [(scene[places[first]], relation, scene[places[last]]) for first, relation, last in
                   task.asked["clauses"]]  # fmt: skip
        if all(relation in relations_between(first, last) for first, relation, last in clauses):
            return scene


def rendered_features(tasks: Mapping[str, Sequence[Task]]) -> dict[str, Float[Tensor, "scenes features"]]:
    """Features of `RENDERED` rendered scenes of every prompt, by kind: what the pictures' quality is measured from."""
    features = RandomFeatures()
    found = {}
    for kind, chosen in tasks.items():
        random = Random(f"ablation-{kind}")
        scenes = [obeying_scene(random, task) for task in chosen for _ in range(RENDERED)]
        found[kind] = features.of_pixels(render(scenes, features.side))
    return found
