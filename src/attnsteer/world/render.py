"""Pictures of scenes by signed distances: exact anti-aliasing at any size, thousands of scenes a second."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from attnsteer.world.scene import ATTRIBUTES, BACKGROUND, COLOURS, SHAPES, Scene, Shape

OUTLINE_WIDTH = 0.055
"""Width of an outlined shape's line, as a fraction of the picture's side."""
BLUR_WIDTH = 0.22
"""Distance over which a blurred shape fades out, as a fraction of the picture's side."""
SOFT_WIDTH = 0.11
"""The same for a shape that is drawn softly, as models in few steps do: half of blurred, and not yet blurred."""
SOFT = 3
"""The number of softly drawn solid shapes, after those of `ATTRIBUTES`; the renderer draws none."""


def signed_distances(
    offset_x: Float[Tensor, "*objects height width"],
    offset_y: Float[Tensor, "*objects height width"],
    radius: Float[Tensor, "*objects 1 1"],
) -> Float[Tensor, "3 *objects height width"]:
    """Signed distances (negative inside) to a circle, a square and a triangle, stacked in the order of `SHAPES`.

    The offsets are pixel positions minus the object's centre. All three have about the area of the circle.
    """
    circle = (offset_x.square() + offset_y.square()).sqrt() - radius
    half = 0.88 * radius
    square = torch.maximum(offset_x.abs(), offset_y.abs()) - half
    # An upright isosceles triangle: apex at -1.05 r, base at +0.85 r, half base 1.12 r.
    top, bottom, base = -1.05 * radius, 0.85 * radius, 1.12 * radius
    slope = base / (bottom - top)
    side = (offset_x.abs() - slope * (offset_y - top)) / (1 + slope.square()).sqrt()
    triangle = torch.maximum(side, offset_y - bottom)
    return torch.stack([circle, square, triangle])


def coverage(
    distance: Float[Tensor, "*objects height width"], attribute: Float[Tensor, "*objects 1 1"], size: int
) -> Float[Tensor, "*objects height width"]:
    """How much of each pixel a shape covers (0 to 1).

    `attribute` is 0 for a solid shape, 1 + the index in `ATTRIBUTES`, or `SOFT`; distances as fractions of the side.
    """
    solid = (0.5 - distance * size).clamp(0, 1)
    line = (distance + OUTLINE_WIDTH / 2).abs() - OUTLINE_WIDTH / 2
    outline = (0.5 - line * size).clamp(0, 1)
    width = torch.where(attribute == SOFT, SOFT_WIDTH, BLUR_WIDTH)
    fading = (0.5 - distance / width).clamp(0, 1)
    fading = fading.square() * (3 - 2 * fading)
    return torch.where(attribute == 0, solid, torch.where(attribute == 1, outline, fading))


def object_masks(objects: Sequence[Shape], size: int) -> Float[Tensor, "objects size size"]:
    """The coverage of each object alone, on a square picture of `size` pixels."""
    values = torch.tensor([[o.x, o.y, o.radius] for o in objects], dtype=torch.float32)[..., None, None]
    attribute = torch.tensor([0.0 if o.attribute is None else 1.0 + ATTRIBUTES.index(o.attribute) for o in objects])
    which = torch.tensor([SHAPES.index(o.shape) for o in objects])
    pixels = (torch.arange(size, dtype=torch.float32) + 0.5) / size
    offset_x, offset_y = torch.broadcast_tensors(pixels - values[:, 0], pixels[:, None] - values[:, 1])
    distances = signed_distances(offset_x, offset_y, values[:, 2])
    distance = distances[which, torch.arange(len(objects))]
    return coverage(distance, attribute[:, None, None], size)


def render(scenes: Sequence[Scene], size: int) -> Float[Tensor, "scenes 3 size size"]:
    """Pictures in [0, 1], later objects in front of earlier ones. `size` is in pixels."""
    background = torch.tensor(BACKGROUND)[:, None, None]
    pictures = background.expand(3, size, size).repeat(len(scenes), 1, 1, 1)
    most = max((len(scene) for scene in scenes), default=0)
    for layer in range(most):
        rows = [row for row, scene in enumerate(scenes) if len(scene) > layer]
        objects = [scenes[row][layer] for row in rows]
        mask = object_masks(objects, size)[:, None]
        colour = torch.tensor([COLOURS[o.colour] for o in objects])[:, :, None, None]
        pictures[rows] = pictures[rows] * (1 - mask) + colour * mask
    return pictures
