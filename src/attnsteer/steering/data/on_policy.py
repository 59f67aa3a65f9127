"""Prompts for a model's own samples, and labels for them from a detector of `attnsteer.evaluate.detectors`.

A model that ignores the relation word shows word and picture unrelated, so the samples are dual prompts by themselves,
and they look exactly as steering will find them.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from random import Random
from typing import TYPE_CHECKING, Any, Final

from jaxtyping import Float
from torch import Tensor

from attnsteer.evaluate.prompts.nouns import with_article
from attnsteer.evaluate.scoring.boxes import Box, best
from attnsteer.evaluate.scoring.geneval import relative_position
from attnsteer.pictures import as_image
from attnsteer.steering.data.stage import PairPrompt

if TYPE_CHECKING:
    from attnsteer.evaluate.detectors import Detector

NONE: Final = "none"
"""Label of pictures that show none of the relations or lack an object, where it is in the vocabulary."""

NEAR: Final = 0.4
"""Greatest distance of the centres of things that are near, as a share of the picture's shorter side."""


def sample_items(count: int, nouns: Sequence[str], relations: Sequence[str], seed: int) -> list[dict[str, Any]]:
    """Random prompts, "a photo of a cat to the left of a dog", as items of a job with seeds of their own.

    Args:
        count: How many.
        nouns: Names that the detector knows, at least two.
        relations: Words to draw from; "none" stands for "and".
        seed: Of the draws, and of the first picture.

    Raises: ValueError for fewer than two nouns.
    """
    if len(set(nouns)) < 2:
        raise ValueError(f"prompts about two things need at least two nouns, got {list(nouns)}")
    draw = Random(f"samples:{seed}")
    items = []
    for number in range(count):
        first, second = draw.sample(list(nouns), 2)
        word = draw.choice(list(relations))
        said = "and" if word == NONE else word
        items.append(
            {
                "id": f"{number:06d}",
                "prompt": f"a photo of {with_article(first)} {said} {with_article(second)}",
                "subject": first,
                "object": second,
                "word": None if word == NONE else word,
                "seed": seed + number,
                "source": f"sample-{seed}-{number}",
            }  # fmt: skip
        )
    return items


def sample_prompt(item: dict[str, Any]) -> PairPrompt:
    """The prompt of an item."""
    return PairPrompt(*(item[name] for name in ("prompt", "subject", "object", "word", "source")))


@dataclass(frozen=True)
class DetectorLabels:
    """Labels finished pictures by the boxes of a detector and GenEval's rule of position.

    A picture is labelled if exactly one relation of the vocabulary holds, or with two axes the diagonal of both.
    Things are "near" if their centres are at most `NEAR` apart, and no direction of the vocabulary holds.

    Attributes:
        detector: Finds the two objects.
        pairs: Subject and object of each picture, in the detector's words.
        relations: Vocabulary. With "none" in it, unclear pictures get that label instead of no label.
    """

    detector: Detector
    pairs: Sequence[tuple[str, str]]
    relations: Sequence[str]

    def __call__(self, pictures: Float[Tensor, "batch 3 height width"]) -> list[str | None]:
        """The relation of subject to object in each picture, None where it cannot be told."""
        shown = [as_image(picture) for picture in pictures]
        found = self.detector(shown, [list(pair) for pair in self.pairs])
        sides = [min(picture.size) for picture in shown]
        return [self._label(b, *pair, side) for b, pair, side in zip(found, self.pairs, sides, strict=True)]

    def _label(self, boxes: Sequence[Box], subject: str, other: str, side: int) -> str | None:
        unclear = NONE if NONE in self.relations else None
        first, second = best(boxes, subject), best(boxes, other)
        if first is None or second is None:
            return unclear
        if "near" in self.relations and math.dist(first.centre, second.centre) <= NEAR * side:
            unclear = "near"
        holding = relative_position(first, second)
        if len(holding) == 2:  # "above and to the left of", the vertical word first
            joined = " and ".join(sorted(holding, key=lambda name: name.startswith("to the")))
            return joined if joined in self.relations else unclear
        known = [name for name in sorted(holding) if name in self.relations]
        return known[0] if known else unclear
