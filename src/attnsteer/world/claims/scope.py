"""How much is drawn: the whole table in at most three hours of two cores, or a quick look."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from attnsteer.world.claims.roster import Kind, WorldModel, missing_kinds, of_kinds

SEED: Final = 6_000_000
"""Of the first picture and of the prompts; no model was trained on these seeds, and no setting chosen by them."""


@dataclass(frozen=True)
class Size:
    """How much is drawn.

    Attributes:
        name: Part of the folder's name.
        few: Prompts of each unwanted thing for models of a few steps; there are six things.
        many: Likewise for models of many steps.
        clips: Likewise for clips; there are four kinds of unwanted things.
        points: Scales on each curve, at most five.
        pairs: Prompts with one relation.
        chains: Prompts of each number of relations; half as many for all models but U-Nets, which draw faster.
        shown: Of these, how many appear as pictures in the table of losses.
        rendered: Shards of rendered pictures; each classifier is trained on half of them.
        sampled: Shards of the model's own pictures.
        held_out: Shards that they are tested on.
        epochs: Of their training.
        batch: Pictures or clips that are drawn together, and that a killed process loses. More would be slower: their
            features no longer fit into a small machine's cache.
    """

    name: str
    few: int = 24
    many: int = 12
    clips: int = 32
    points: int = 5
    pairs: int = 96
    chains: int = 96
    shown: int = 2
    rendered: int = 16
    sampled: int = 12
    held_out: int = 6
    epochs: int = 12
    batch: int = 12


FULL: Final = Size("full")
QUICK: Final = Size(
    "quick", few=2, many=2, clips=2, points=3, pairs=8, chains=4, shown=1, rendered=4, sampled=2, held_out=1, epochs=6
)


@dataclass(frozen=True)
class Scope:
    """What a claim is tried on.

    Attributes:
        size: How much is drawn.
        models: All models.
        work: Folder of all runs.
    """

    size: Size
    models: Sequence[WorldModel]
    work: Path

    def of(self, *kinds: Kind) -> list[WorldModel]:
        """The models of some kinds."""
        return of_kinds(self.models, kinds)

    def missing(self, *kinds: Kind) -> list[str]:
        """The kinds of which there is no model yet."""
        return missing_kinds(self.models, kinds)

    def chains(self, model: WorldModel) -> int:
        """Prompts of each number of relations for a model."""
        return self.size.chains if model.architecture == "U-Net" else max(1, self.size.chains // 2)

    def spread(self, values: Sequence[float]) -> str:
        """As many of the five values of a curve as this size draws, evenly spread, for a sweep."""
        last, count = len(values) - 1, self.size.points
        chosen = [values[round(number * last / (count - 1))] for number in range(count)]
        return ",".join(f"{value:g}" for value in chosen)
