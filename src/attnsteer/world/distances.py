"""Frechet distances of drawn pictures to rendered ones, relative to those of a baseline, with bootstrap intervals.

The features are those of `attnsteer.world.features`, so these distances are not FIDs.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from jaxtyping import Float
from torch import Tensor

from attnsteer.evaluate.metrics import frechet_distance
from attnsteer.evaluate.statistics import Estimate

RESAMPLES = 100
Features = Mapping[str, Float[Tensor, "pictures features"]]
"""Of the pictures of each kind of prompt, by the kind."""


class RelativeDistances:
    """Distances to reference pictures over that of a baseline, for several methods on the same prompts and seeds.

    Args:
        base: Of the baseline's pictures.
        reference: Of rendered pictures of each kind, any number; if `paired`, those that belong to the baseline's.
        paired: Whether each picture has a reference of its own, which is resampled with it.
    """

    def __init__(self, base: Features, reference: Features, *, paired: bool = False) -> None:
        self.reference, self.paired = reference, paired
        generator = torch.Generator().manual_seed(0)
        counts = {kind: len(values) for kind, values in base.items()}
        self.rows = [{kind: torch.arange(count) for kind, count in counts.items()}]
        for _ in range(RESAMPLES):
            drawn = {k: torch.randint(count, (count,), generator=generator) for k, count in counts.items()}
            self.rows.append(drawn)
        self.base = [self._distances(base, reference, rows) for rows in self.rows]

    def of(self, own: Features, reference: Features | None = None) -> Estimate:
        """Mean of the ratios over the kinds, with its 95 % interval.

        The interval is the bootstrap's, over the pictures; the same draw for both. A draw repeats pictures, which
        lengthens every distance, short ones most, so that the drawn ratios lie to one side of the one that was found.
        Their logarithms are shifted to have it as their median.

        Args:
            own: Of a method's pictures, in the order of the baseline's.
            reference: What they are compared with; None takes the baseline's reference.
        """
        found = [self._distances(own, reference or self.reference, rows) for rows in self.rows]
        ratios = [self._mean_ratio(*pair) for pair in zip(found, self.base, strict=True)]
        drawn = torch.tensor(ratios[1:], dtype=torch.float64)
        low, middle, high = drawn.quantile(torch.tensor([0.025, 0.5, 0.975]).double()).tolist()
        low, high = (ratios[0] * end / middle for end in (low, high))
        return Estimate(ratios[0], low, high, sum(len(chosen) for chosen in self.rows[0].values()))

    def _distances(self, features: Features, reference: Features, rows: Mapping[str, Tensor]) -> list[float]:
        return [
            frechet_distance(features[kind][chosen], reference[kind][chosen] if self.paired else reference[kind])
            for kind, chosen in rows.items()
        ]

    def _mean_ratio(self, own: list[float], base: list[float]) -> float:
        ratios = [mine / plain if plain > 0 else math.nan for mine, plain in zip(own, base, strict=True)]
        return sum(ratios) / len(ratios)
