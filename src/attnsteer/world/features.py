"""A feature space for pictures of the shapes world: a small convolutional network with fixed random weights.

Random convolutions tell clean shapes from smeared, merged or miscoloured ones without a trained network, and hardly
mind where in the picture a shape stands: what steering is meant to change does not count as a change of quality.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Float
from PIL import Image
from torch import Tensor

from attnsteer.evaluate.metrics.extractors import Pixels

WIDTHS = (3, 16, 32)


@dataclass(frozen=True)
class RandomFeatures:
    """Mean and deviation over the picture of each channel of two random 3 x 3 convolutions with ReLU.

    Attributes:
        side: Pictures are averaged to so many pixels first.
    """

    side: int = 32

    @property
    def name(self) -> str:
        """E.g. "random-convolutions-32"."""
        return f"random-convolutions-{self.side}"

    def __call__(self, pictures: Sequence[Image.Image]) -> Float[Tensor, "pictures features"]:
        """Features of some square pictures: 64 of them, float32."""
        pixels = Pixels(self.side)(pictures).unflatten(1, (3, self.side, self.side))
        return self.of_pixels(pixels)

    def of_pixels(self, pixels: Float[Tensor, "pictures 3 side side"]) -> Float[Tensor, "pictures features"]:
        """Features of pictures in [0, 1]."""
        generator, hidden = torch.Generator().manual_seed(0), pixels.float() - 0.5
        for fan_in, fan_out in zip(WIDTHS, WIDTHS[1:], strict=False):
            weight = torch.randn(fan_out, fan_in, 3, 3, generator=generator) * (2 / (9 * fan_in)) ** 0.5
            hidden = F.relu(F.conv2d(hidden, weight))
        return torch.cat([hidden.mean(dim=(2, 3)), hidden.std(dim=(2, 3))], dim=1)
