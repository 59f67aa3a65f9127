"""Attention maps: where in the picture each group of text tokens is read.

For cross-attention a map is a column of the ordinary attention probabilities. For joint (and hybrid) attention the
softmax runs over the positive text keys only, as in Learn-to-Steer (arXiv:2509.02295) for FLUX:

    map_g(x) = mean over t in g of softmax over text of (q_x . k_t scale)
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from attnsteer.families import Family
from attnsteer.seam.layers import Layout, TextLayer
from attnsteer.seam.portions import rows_held
from attnsteer.seam.segments import Rows, Spans
from attnsteer.steering.grids import image_grid


class StopForward(Exception):
    """The last layer that was asked for has been recorded: not an error, it ends the forward early."""


@dataclass(eq=False)
class MapRecorder:
    """Records the maps of one denoiser call; made by `record_maps`.

    Args:
        family: The denoiser's row.
        patch_size: The denoiser's patch size, as in its configuration; None where it has none.
        groups: Token indices into the positive text, one list per map.
        layers: Names of the layers to record.
        rows: Batch rows to record; None is all.
        size: Height and width to resize every map to, bilinearly; None keeps each layer's own.
        normalise: Whether to divide each map by its sum + 1e-8.
        stop_after: Whether the forward ends after the last layer in `layers`.
    """

    family: Family
    patch_size: Any
    groups: Sequence[Sequence[int]]
    layers: frozenset[str]
    rows: Rows = None
    size: tuple[int, int] | None = None
    normalise: bool = False
    stop_after: bool = False
    _layout: Layout | None = None
    _recorded: list[tuple[int, int, Tensor]] = field(default_factory=list)
    _open: bool = False

    @property
    def maps(self) -> list[Float[Tensor, "rows channels height width"]]:
        """One tensor per group: channels are layers x heads, by ascending resolution, then in execution order.

        Video models: the mean over the frames. Differentiable with respect to the latents under autograd.

        Raises: ValueError if nothing was recorded, or layers differ in resolution and no `size` was given.
        """
        if not self._recorded:
            raise ValueError("no maps: call the denoiser inside the record_maps block")
        ordered = [maps for *_, maps in sorted(self._recorded, key=lambda entry: entry[:2])]
        shapes = sorted({tuple(maps.shape[-2:]) for maps in ordered})
        if len(shapes) > 1:
            raise ValueError(f"the layers have different resolutions {shapes}: pass size=16, or choose layers")
        return list(torch.cat(ordered, dim=2).unbind(0))

    @property
    def cells(self) -> set[int]:
        """How many cells the recorded layers' maps had before they were resized."""
        return {cells for cells, *_ in self._recorded}

    @property
    def channels(self) -> list[tuple[int, int]]:
        """Index of each recorded layer and how many channels it has, in the order of the maps' channels."""
        return [(index, maps.shape[2]) for _, index, maps in sorted(self._recorded, key=lambda entry: entry[:2])]

    def begin(self, layout: Layout) -> None:
        """Start recording one denoiser call; forgets the previous one.

        Raises: IndexError if a token index is not in the text.
        """
        for token in (token for group in self.groups for token in group):
            if not 0 <= token < layout.positive:
                raise IndexError(f"token {token} is not in the text: its indices are 0 to {layout.positive - 1}")
        self._layout, self._open = layout, True
        self._recorded.clear()

    def end(self) -> None:
        """Stop recording; a recomputation under gradient checkpointing leaves the maps as they are."""
        self._open = False

    def read(
        self, layer: TextLayer, query: Tensor, key: Tensor, mask: Tensor | None, spans: Spans, scale: float | None
    ) -> None:
        """Record one attention operation; tensors are (batch, heads, tokens, head_dim)."""
        if layer.name not in self.layers or self._layout is None:
            return
        if layer.reads.role == "prefix" and spans.positive != self._layout.positive:
            raise ValueError(f"attention maps of {self.family.denoiser}: leave out pictures within the prompt")
        first, stop = _image_queries(query.shape[-2], spans, layer.reads.text)
        grid = image_grid(self.family, self.patch_size, self._layout, stop - first)
        frames, height, width = grid
        if self.family.picture == "last":
            first = stop - frames * height * width
        stop = first + frames * height * width
        image = query[:, :, first:stop]
        text = key[:, :, spans.key_start : spans.key_start + spans.positive]
        if mask is not None:
            mask = mask[..., spans.key_start : spans.key_start + spans.positive]
            mask = mask[..., first:stop, :] if mask.shape[-2] > 1 else mask
        maps = self._maps(image, text, mask, scale).unflatten(-1, grid).mean(-3)
        if query.shape[0] > self._layout.batch:  # one row of the operation for each frame
            maps = maps.unflatten(1, (-1, query.shape[0] // self._layout.batch)).mean(2)
        maps = self._finish(maps)
        if self._open:
            self._keep(layer, query.shape[0], height * width, maps)
            whole = layer.portions.covered in (0, self._layout.batch)
            if self.stop_after and whole and len(self._recorded) == len(self.layers):
                raise StopForward(self)

    def _keep(self, layer: TextLayer, held: int, cells: int, maps: Tensor) -> None:
        """Keep a layer's maps; those of an operation on a piece of the batch (PAG) among those of the others."""
        batch = 0 if self._layout is None else self._layout.batch
        if held >= batch or self.rows is not None:
            self._recorded.append((cells, layer.index, maps))
            return
        start = layer.portions.covered - held
        rest = [maps.new_zeros(maps.shape[0], rows, *maps.shape[2:]) for rows in (start, batch - start - held)]
        padded = torch.cat([rest[0], maps, rest[1]], dim=1)
        earlier = self._recorded[-1] if start and self._recorded and self._recorded[-1][1] == layer.index else None
        if earlier is not None:
            self._recorded[-1] = (cells, layer.index, earlier[2] + padded)
        else:
            self._recorded.append((cells, layer.index, padded))

    def _maps(self, query: Tensor, key: Tensor, mask: Tensor | None, scale: float | None) -> Tensor:
        if self.rows is not None and self._layout is not None:
            batch = self._layout.batch
            chosen = slice(*self.rows.indices(batch)[:2]) if isinstance(self.rows, slice) else self.rows
            rows = rows_held(chosen, 0, query.shape[0], batch)
            query, key = query[rows], key[rows]
            mask = mask[rows] if mask is not None and mask.ndim == 4 and mask.shape[0] > 1 else mask
        if key.shape[1] != query.shape[1]:
            key = key.repeat_interleave(query.shape[1] // key.shape[1], dim=1)
        logits = (query * (query.shape[-1] ** -0.5 if scale is None else scale)) @ key.transpose(-1, -2)
        if mask is not None:
            logits = logits.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else logits + mask
        probs = logits.softmax(-1, dtype=torch.promote_types(logits.dtype, torch.float32))
        return torch.stack([probs[..., list(group)].mean(-1) for group in self.groups])

    def _finish(self, maps: Float[Tensor, "groups rows heads height width"]) -> Tensor:
        if self.size is not None and tuple(maps.shape[-2:]) != self.size:
            flat = F.interpolate(maps.flatten(0, 1), size=self.size, mode="bilinear", align_corners=False)
            maps = flat.unflatten(0, maps.shape[:2])
        return maps / (maps.sum((-2, -1), keepdim=True) + 1e-8) if self.normalise else maps


def _image_queries(queries: int, spans: Spans, text: str) -> tuple[int, int]:
    """Where the image tokens begin and end among the queries."""
    if spans.query_start is None:
        return 0, queries
    if text == "first":
        return spans.query_start + sum(spans.queries or (spans.positive, spans.negative)), queries
    return 0, spans.query_start
