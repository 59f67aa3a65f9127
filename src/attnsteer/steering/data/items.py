"""The items of a collection: which pictures, or which prompts."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from attnsteer.steering.data import gqa, orm
from attnsteer.steering.data.on_policy import sample_items
from attnsteer.steering.data.settings import DATA_PRESETS, CollectionSettings
from attnsteer.steering.data.triplets import (
    ATTRIBUTE,
    SPLITS,
    SplitSizes,
    Triplet,
    dual_prompts,
    published_split,
    split_by_picture,
)
from attnsteer.steering.data.wordnet import WordNet

HELD_OUT = 9_000
"""Seed of the first batch of the shapes world that no training sees."""


def items_of(settings: CollectionSettings) -> list[dict[str, Any]]:
    """The items in order, the same for the same settings and data.

    Raises: FileNotFoundError if data is missing; ValueError if there is too little of it.
    """
    if settings.source == "samples":
        if depth := {"in front of", "behind"} & set(settings.relations):
            raise ValueError(
                f"boxes do not tell {' and '.join(sorted(depth))}: collect these from gqa, whose people have said so"
            )
        return sample_items(settings.count or 2000, _nouns(settings), settings.relations, settings.seed)
    if settings.source == "shapes":
        return _shapes_items(settings)
    pictures, sizes = _gqa(settings) if settings.source == "gqa" else _orm(settings)
    wanted = [[t for t in triplets if t.relation in settings.relations] for triplets in pictures]
    if lacking := set(settings.relations) - {triplet.relation for triplets in wanted for triplet in triplets}:
        raise ValueError(f"{settings.data} has no triplets with {', '.join(sorted(lacking))}: leave them out")
    choose = published_split if settings.published else split_by_picture
    triplets = choose(wanted, _scaled(sizes, settings), settings.split, settings.seed)
    return [
        {**triplet.item(number), "prompts": _prompts(triplet, settings)} for number, triplet in enumerate(triplets)
    ]


def prompts_told(settings: CollectionSettings) -> str:
    """Where the prompts of a collection are written down, for its manifest."""
    if settings.source == "shapes":
        return "captions of the shapes world, drawn by the seeds in items.jsonl"
    return "those of each picture are in items.jsonl"


def _prompts(triplet: Triplet, settings: CollectionSettings) -> list[str]:
    pair = dual_prompts(triplet, settings.relations, articles=not settings.published, seed=settings.seed)
    return [prompt.prompt for prompt in pair]


def _gqa(settings: CollectionSettings) -> tuple[list[list[Triplet]], SplitSizes]:
    attributes = gqa.ATTRIBUTES if ATTRIBUTE in settings.relations else ()
    wordnet = None if settings.wordnet is None else WordNet(settings.wordnet)
    boxes = None if settings.published else gqa.BoxFilter()
    relations = tuple(name for name in settings.relations if name != ATTRIBUTE)
    keep = gqa.GQAFilter(wordnet, attributes, relations, unique=not settings.published, boxes=boxes)
    small = any(preset.small for preset in DATA_PRESETS.values() if preset.model == settings.model)
    return gqa.gqa_triplets(_data(settings), keep), gqa.SMALL_SIZES if small else gqa.SIZES


def _orm(settings: CollectionSettings) -> tuple[list[list[Triplet]], SplitSizes]:
    return orm.orm_triplets(_data(settings)), orm.SIZES


def _data(settings: CollectionSettings) -> Path:
    folder = Path(settings.data or "")
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no folder {folder}: pass the local copy of {settings.source} as --data")
    return folder


def _scaled(sizes: SplitSizes, settings: CollectionSettings) -> SplitSizes:
    """The published sizes, all scaled so that the wanted split has `count` triplets per relation."""
    if settings.count is None:
        return sizes
    factor = settings.count / sizes.relation[SPLITS.index(settings.split)]
    relation, attribute = (
        tuple(max(1, round(size * factor)) for size in row) for row in (sizes.relation, sizes.attribute)
    )
    return SplitSizes(relation, attribute)  # type: ignore[arg-type]


def _nouns(settings: CollectionSettings) -> tuple[str, ...]:
    if settings.nouns:
        return settings.nouns
    from attnsteer.evaluate.prompts.nouns import COCO

    return COCO


def _shapes_items(settings: CollectionSettings) -> list[dict[str, Any]]:
    """Batches of the shapes world: a third rendered, two thirds sampled; held-out ones are all sampled."""
    size, total = settings.batch, settings.count or 36 * settings.batch
    batches = max(1, -(-total // size))
    rendered = batches // 3 if settings.split == "train" else 0
    first = {"train": 1_000, "val": HELD_OUT + 500, "test": HELD_OUT}[settings.split] + settings.seed * 100_000
    seeds = [("rendered", settings.seed * 100_000 + number) for number in range(rendered)]
    seeds += [("sampled", first + number) for number in range(batches - rendered)]
    return [{"id": f"{part}-{seed}", "part": part, "seed": seed, "size": size} for part, seed in seeds]
