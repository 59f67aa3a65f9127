"""The exact detector: which shapes a picture of the shapes world shows, and where.

Pixels are assigned to the colour whose mixture with the background explains them best; connected regions of a colour
are objects; each is fitted with every shape in every style over a grid of sizes and sub-pixel places.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from attnsteer.world.render import coverage, signed_distances
from attnsteer.world.scene import ATTRIBUTES, BACKGROUND, COLOURS, SHAPES, Shape

STYLES = (None, *ATTRIBUTES, None)
"""What an object can look like: solid, with an attribute, or solid with soft edges (`SOFT`), which is none."""
LEAST_CONTRAST = 0.12
"""Pixels nearer to the background than this (Euclidean, RGB in [0, 1]) belong to no object."""
LEAST_AREA = 0.007
"""Regions that cover less of the picture are specks."""
LEAST_SCORE = 0.5
"""Detections that explain less of their region's coverage are of no recognisable shape."""
RADII = tuple(0.096 + 0.0094 * step for step in range(10))
CHUNK = 64
CENTROID_OF_TRIANGLE = 0.85 - 1.9 / 3
"""How far a triangle's centre of mass lies below its centre, in radii."""


@dataclass(frozen=True)
class Detection:
    """A shape as the detector sees it, with the share of the region's coverage that the fit explains (0 to 1).

    `box` is left, top, right, bottom as fractions of the side. Where `score` < `LEAST_SCORE` the shape is a guess.
    """

    shape: Shape
    score: float
    box: tuple[float, float, float, float]

    @property
    def recognised(self) -> bool:
        """Whether the region looks like one of the world's shapes."""
        return self.score >= LEAST_SCORE


def detect(pictures: Float[Tensor, "batch 3 size size"]) -> list[list[Detection]]:
    """The objects of each picture (values in [0, 1], any size from 16 pixels on), largest region first.

    Raises: ValueError if the pictures are not square RGB tensors.
    """
    if pictures.ndim != 4 or pictures.shape[1] != 3 or pictures.shape[2] != pictures.shape[3]:
        raise ValueError(f"pictures must have shape (batch, 3, size, size), got {tuple(pictures.shape)}")
    colour_coverage, colour_mask = colour_regions(pictures.float())
    found: list[list[Detection]] = [[] for _ in pictures]
    regions, owners = [], []
    for row, colour, region in connected_regions(colour_mask):
        area = colour_coverage[row, colour] * region
        if area.mean() >= LEAST_AREA:
            regions.append(area)
            owners.append((row, list(COLOURS)[colour]))
    if regions:
        for (row, colour_name), region, fit in zip(owners, regions, fit_shapes(torch.stack(regions)), strict=True):
            style, kind, x, y, radius, score = fit
            shape = Shape(kind, colour_name, x, y, radius, style)
            found[row].append(Detection(shape, score, _box(region)))
    return [sorted(objects, key=lambda o: -o.shape.radius) for objects in found]


def colour_regions(
    pictures: Float[Tensor, "batch 3 size size"],
) -> tuple[Float[Tensor, "batch colours size size"], Bool[Tensor, "batch colours size size"]]:
    """For every colour: how much of a pixel it covers, and whether the pixel belongs to it rather than to another."""
    background = torch.tensor(BACKGROUND)[None, :, None, None]
    difference = pictures - background
    directions = torch.tensor(list(COLOURS.values())) - torch.tensor(BACKGROUND)
    amount = torch.einsum("bchw,kc->bkhw", difference, directions) / directions.square().sum(1)[None, :, None, None]
    explained = amount[:, :, None] * directions[None, :, :, None, None]
    residual = (difference[:, None] - explained).square().sum(2)
    nearest = functional.one_hot(residual.argmin(1), len(COLOURS)).permute(0, 3, 1, 2).bool()
    visible = difference.square().sum(1, keepdim=True).sqrt() > LEAST_CONTRAST
    mask = nearest & visible & (amount > 0.15)
    return amount.clamp(0, 1) * mask, mask


def connected_regions(masks: Bool[Tensor, "batch colours size size"]) -> Iterator[tuple[int, int, Tensor]]:
    """Yield (row, colour index, mask) of every 8-connected region, by letting the largest label spread."""
    size = masks.shape[-1]
    labels = torch.arange(1, size * size + 1, dtype=torch.float32).view(1, 1, size, size) * masks
    while True:
        spread = functional.max_pool2d(labels, 3, stride=1, padding=1) * masks
        if torch.equal(spread, labels):
            break
        labels = spread
    for row, colour in product(range(masks.shape[0]), range(masks.shape[1])):
        if masks[row, colour].any():
            for label in labels[row, colour].unique().tolist():
                if label > 0:
                    yield row, colour, labels[row, colour] == label


def fit_shapes(
    regions: Float[Tensor, "regions size size"],
) -> list[tuple[str | None, str, float, float, float, float]]:
    """The best (style, shape, x, y, radius, score) for each region's coverage, by search and one refinement."""
    return [fit for chunk in regions.split(CHUNK) for fit in _fit_chunk(chunk)]


def _fit_chunk(regions: Tensor) -> list[tuple[str | None, str, float, float, float, float]]:
    count, size = len(regions), regions.shape[-1]
    every = torch.arange(count)
    pixels = (torch.arange(size) + 0.5) / size
    mass = regions.sum((1, 2))
    centre = torch.stack([(regions.sum(1) * pixels).sum(1), (regions.sum(2) * pixels).sum(1)], dim=1) / mass[:, None]
    radii = torch.tensor(RADII).expand(count, -1)
    errors = template_errors(regions, centre[:, None, 0], centre[:, None, 1], radii, centroid=True)
    best = errors.flatten(1).argmin(1)
    kind = best // len(RADII) % len(SHAPES)
    radius = radii[every, best % len(RADII)]
    lift = torch.where(kind == SHAPES.index("triangle"), CENTROID_OF_TRIANGLE * radius, 0.0)
    steps = torch.tensor(list(product((-0.5, 0.0, 0.5), (-0.5, 0.0, 0.5), (-0.25, 0.0, 0.25)))) / size
    fine = torch.stack([centre[:, 0], centre[:, 1] - lift, radius], dim=1)[:, None] + steps
    errors = template_errors(regions, fine[..., 0], fine[..., 1], fine[..., 2], centroid=False)[every, :, kind]
    least, best = errors.flatten(1).min(1)
    score = (1 - least / regions.square().sum((1, 2))).clamp(min=0)
    return [
        (STYLES[style], SHAPES[shape], x, y, r, value)
        for style, shape, (x, y, r), value in zip(
            (best // len(steps)).tolist(), kind.tolist(), fine[every, best % len(steps)].tolist(), score.tolist(),
            strict=True,
        )
    ]  # fmt: skip


def template_errors(
    regions: Float[Tensor, "regions size size"],
    x: Float[
        Tensor,
        (
            regions  # candidates
        ),
    ],
    y: Float[
        Tensor,
        (
            regions  # candidates
        ),
    ],
    radius: Float[Tensor, "regions candidates"],
    *,
    centroid: bool,
) -> Float[Tensor, "regions styles shapes candidates"]:
    """Squared error of every template against each region; with `centroid`, (x, y) is the centre of mass."""
    size = regions.shape[-1]
    pixels = (torch.arange(size) + 0.5) / size
    radius = radius[..., None, None]
    shape = (*radius.shape[:2], size, size)
    offset_x = (pixels - x[..., None, None]).expand(shape)
    offset_y = (pixels[:, None] - y[..., None, None]).expand(shape)
    distances = signed_distances(offset_x, offset_y, radius)
    if centroid:
        triangle = SHAPES.index("triangle")
        lifted = signed_distances(offset_x, offset_y + CENTROID_OF_TRIANGLE * radius, radius)
        distances = torch.cat([distances[:triangle], lifted[triangle:]])
    target = regions[:, None]
    errors = [
        (coverage(distances, torch.tensor(float(style)), size) - target).square().sum((-2, -1))
        for style in range(len(STYLES))
    ]
    return torch.stack(errors).permute(2, 0, 1, 3)


def _box(region: Float[Tensor, "size size"]) -> tuple[float, float, float, float]:
    size = region.shape[-1]
    solid = region > 0.5 * region.max()
    columns, rows = solid.any(0).nonzero().flatten(), solid.any(1).nonzero().flatten()
    left, right, top, bottom = columns[0].item(), columns[-1].item() + 1, rows[0].item(), rows[-1].item() + 1
    return left / size, top / size, right / size, bottom / size
