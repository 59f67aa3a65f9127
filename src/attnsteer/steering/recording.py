"""Maps of pairs of objects from one denoiser call: what classifiers are trained on, and what steering judges."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from attnsteer.families import family_of
from attnsteer.install import record_maps, uncompiled
from attnsteer.steering.relations import Span
from attnsteer.texts.inject import text_length

Tokens = Mapping[Span, Sequence[int]]
Pairs = Sequence[tuple[int, Span, Span]]


@dataclass(frozen=True)
class Observed:
    """One denoiser call with its maps.

    Attributes:
        maps: Of each pair of spans.
        output: What the denoiser returned.
        channels: Layer index and number of channels, in the order of the maps' channels.
    """

    maps: Float[Tensor, "pairs 2 channels size size"]
    output: Any
    channels: list[tuple[int, int]]


@dataclass(frozen=True)
class Recording:
    """Which maps are recorded; the same when a classifier is trained and when it steers.

    Attributes:
        layers: Names of attention layers in execution order; None is all of them. With a choice of layers the
            denoiser's forward ends after the last one.
        size: Side to which maps are resized, in cells.
        normalise: Whether each map is divided by its sum.
        text_length: Text tokens that the maps' softmax must run over, padding included; None accepts any number.
        side: Side that the maps of all layers must have before they are resized, in cells; None accepts any.
    """

    layers: tuple[str, ...] | None = None
    size: int = 16
    normalise: bool = False
    text_length: int | None = None
    side: int | None = None

    def pair_maps(
        self,
        denoiser: nn.Module,
        arguments: dict[str, Any],
        tokens: Sequence[Tokens],
        pairs: Pairs,
    ) -> Float[Tensor, "pairs 2 channels size size"]:
        """Call the denoiser, up to the last layer wanted, and return the maps of each pair of spans.

        Args:
            denoiser: A diffusers denoiser.
            arguments: Of the call; used up by it.
            tokens: For each batch row, the text rows of its spans.
            pairs: (batch row, subject, object).

        Raises: ValueError if the text has another length than `text_length`, or the maps another side than `side`.
        """
        return self.observe(denoiser, arguments, tokens, pairs, whole=False).maps

    def observe(
        self,
        denoiser: nn.Module,
        arguments: dict[str, Any],
        tokens: Sequence[Tokens],
        pairs: Pairs,
        *,
        whole: bool = True,
    ) -> Observed:
        """As `pair_maps`, with the denoiser's output (None unless `whole`) and the order of the channels."""
        self._check_text(denoiser, arguments)
        groups = list(dict.fromkeys(tuple(rows) for row in tokens for rows in row.values()))
        output = None
        with record_maps(
            denoiser, groups, layers=self.layers, size=self.size, normalise=self.normalise,
            stop_after=self.layers is not None and not whole,
        ) as recorder:  # fmt: skip
            output = denoiser(**arguments)
        self._check_side(recorder.cells)
        maps = recorder.maps
        place = {group: index for index, group in enumerate(groups)}
        frames = len(maps[0]) // len(tokens)  # where each frame of a video has text of its own
        stacked = [
            torch.stack([maps[place[tuple(tokens[row][s])]][row * frames : (row + 1) * frames].mean(0) for s in spans])
            for row, *spans in pairs
        ]
        return Observed(torch.stack(stacked), output if whole else None, recorder.channels)

    def _check_side(self, cells: set[int]) -> None:
        if self.side is None or cells == {self.side**2}:
            return
        factor = self.side / max(cells) ** 0.5
        raise ValueError(
            f"the classifier's maps had {self.side}x{self.side} cells, this call's have {max(cells)} in all: give the "
            f"pipeline the height and width the classifier was trained for ({factor:.3g} times those of this call)"
        )

    def _check_text(self, denoiser: nn.Module, arguments: Mapping[str, Any]) -> None:
        if self.text_length is None:
            return
        length = text_length(family_of(uncompiled(denoiser)), arguments)
        if length != self.text_length:
            raise ValueError(
                f"the classifier's maps are a softmax over {self.text_length} text tokens, this call has {length}: "
                f"pass max_sequence_length={self.text_length} to the pipeline (its tokenizer pads to that), or train "
                "a classifier on maps of this length"
            )
