"""Maps of pairs of objects from one denoiser call: what classifiers are trained on, and what steering judges."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from attnsteer.install import record_maps
from attnsteer.steering.relations import Span

Tokens = Mapping[Span, Sequence[int]]


@dataclass(frozen=True)
class Recording:
    """Which maps are recorded; the same when a classifier is trained and when it steers.

    Attributes:
        layers: Names of attention layers in execution order; None is all of them. With a choice of layers the
            denoiser's forward ends after the last one.
        size: Side to which maps are resized, in cells.
        normalise: Whether each map is divided by its sum.
    """

    layers: tuple[str, ...] | None = None
    size: int = 16
    normalise: bool = False

    def pair_maps(
        self,
        denoiser: nn.Module,
        arguments: dict[str, Any],
        tokens: Sequence[Tokens],
        pairs: Sequence[tuple[int, Span, Span]],
    ) -> Float[Tensor, "pairs 2 channels size size"]:
        """Call the denoiser and return the maps of each pair of spans.

        Args:
            denoiser: A diffusers denoiser.
            arguments: Of the call; used up by it.
            tokens: For each batch row, the text rows of its spans.
            pairs: (batch row, subject, object).
        """
        groups = list(dict.fromkeys(tuple(rows) for row in tokens for rows in row.values()))
        with record_maps(
            denoiser, groups, layers=self.layers, size=self.size, normalise=self.normalise,
            stop_after=self.layers is not None,
        ) as recorder:  # fmt: skip
            denoiser(**arguments)
        maps = recorder.maps
        place = {group: index for index, group in enumerate(groups)}
        return torch.stack(
            [torch.stack([maps[place[tuple(tokens[row][s])]][row] for s in spans]) for row, *spans in pairs]
        )
