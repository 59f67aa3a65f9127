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

from attnsteer.attention import Layout, TextLayer
from attnsteer.families import Family
from attnsteer.segments import Rows, Spans


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
        first, stop = 0, query.shape[-2]
        if spans.query_start is not None and layer.reads.text == "first":
            first = spans.query_start + spans.positive + spans.negative
        elif spans.query_start is not None:
            stop = spans.query_start
        grid = image_grid(self.family, self.patch_size, self._layout, stop - first)
        frames, height, width = grid
        stop = first + frames * height * width
        image = query[:, :, first:stop]
        text = key[:, :, spans.key_start : spans.key_start + spans.positive]
        if mask is not None:
            mask = mask[..., spans.key_start : spans.key_start + spans.positive]
            mask = mask[..., first:stop, :] if mask.shape[-2] > 1 else mask
        maps = self._maps(image, text, mask, scale).unflatten(-1, grid).mean(-3)
        maps = self._finish(maps)
        if self._open:
            self._recorded.append((height * width, layer.index, maps))
            if self.stop_after and len(self._recorded) == len(self.layers):
                raise StopForward(self)

    def _maps(self, query: Tensor, key: Tensor, mask: Tensor | None, scale: float | None) -> Tensor:
        if self.rows is not None:
            query, key = query[self.rows], key[self.rows]
            mask = mask[self.rows] if mask is not None and mask.ndim == 4 and mask.shape[0] > 1 else mask
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


def image_grid(family: Family, patch_size: Any, layout: Layout, tokens: int) -> tuple[int, int, int]:
    """Frames, height and width of the target picture in image tokens, for a layer with `tokens` image queries.

    Raises: ValueError if the tokens do not form a picture of the latents' proportions.
    """
    if family.grid == "none":
        raise ValueError(
            f"how image tokens of {family.denoiser} lie in the picture is not known, so it has no attention maps and "
            "cannot be steered: set `grid` in its family row"
        )
    latents = layout.arguments[family.latents]
    padded = isinstance(latents, list)
    if family.grid == "ids":
        ids = layout.arguments["img_ids"]
        ids = ids[0] if ids.ndim == 3 else ids
        target = ids[ids[:, 0] == ids[0, 0]]  # further pictures (references) count up in the first position
        height, width = (int(target[:, axis].unique().numel()) for axis in (1, 2))
        grid = (1, height, width)
    elif family.grid == "shapes":
        shape = layout.arguments["img_shapes"][0]  # of the first row; further pictures (references) follow the target
        frames, height, width = shape[0] if isinstance(shape[0], tuple | list) else shape
        grid = (int(frames), int(height), int(width))
    elif family.grid == "sizes":
        frames, height, width = (int(layout.arguments[name]) for name in ("num_frames", "height", "width"))
        grid = (frames, height, width)
    elif family.grid == "patches":
        latents = latents[0][None] if padded else latents
        per_axis = (1, patch_size, patch_size) if isinstance(patch_size, int) else (1, 1, *patch_size)[-3:]
        frames, height, width = (1, 1, *latents.shape[2:])[-3:]
        grid = (frames // per_axis[0], height // per_axis[1], width // per_axis[2])
    else:
        height, width = latents.shape[-2:]
        while height * width > tokens and height * width > 1:
            height, width = (height + 1) // 2, (width + 1) // 2
        grid = (1, height, width)
    count = grid[0] * grid[1] * grid[2]
    others = padded or family.grid in ("ids", "shapes")  # image tokens may stand before padding or references
    if count > tokens or (count != tokens and not others):
        raise ValueError(f"{tokens} image tokens do not form a picture of {grid} frames, rows and columns")
    return grid
