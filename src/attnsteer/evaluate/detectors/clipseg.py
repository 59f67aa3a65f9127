"""CLIPSeg as the detector of the published multi-relation scorer: the largest region that fits a text."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Self

import numpy as np
import torch
from jaxtyping import Bool
from PIL import Image
from torch import Tensor
from torch.nn import functional

from attnsteer.evaluate.prompts.nouns import with_article
from attnsteer.evaluate.scoring.boxes import Box

LEVEL: Final = 120 / 255
"""A pixel belongs to a thing if its sigmoid exceeds this."""


@dataclass(frozen=True)
class ClipSeg:
    """CLIPSeg, asked for "a THING"; of the pixels that fit, the largest connected region is the thing.

    Attributes:
        network: A CLIPSegForImageSegmentation.
        processor: Its processor.
        name: Printed beside figures.

    Source: the scorer of arXiv:2509.02295 (threshold 120 of 255, box scaled to the picture). It takes the contour with
        the largest area, which fills holes; here a region's pixels are counted.
    """

    network: Any
    processor: Any
    name: str

    @classmethod
    def load(cls, model: str, device: str = "cpu") -> Self:
        """Load from a folder or the Hub."""
        from transformers import CLIPSegForImageSegmentation, CLIPSegProcessor

        network = CLIPSegForImageSegmentation.from_pretrained(model).to(device).eval()
        return cls(network, CLIPSegProcessor.from_pretrained(model), f"clipseg ({model})")

    def __call__(self, pictures: Sequence[Image.Image], labels: Sequence[Sequence[str]]) -> list[list[Box]]:
        """At most one box for each label of each picture."""
        return [self._boxes(picture, row) for picture, row in zip(pictures, labels, strict=True)]

    def _boxes(self, picture: Image.Image, labels: Sequence[str]) -> list[Box]:
        if not labels:
            return []
        device = self.network.device
        texts = [with_article(label) for label in labels]
        read = self.processor.tokenizer(texts, padding=True, return_tensors="pt")
        seen = self.processor.image_processor(images=picture.convert("RGB"), return_tensors="pt")["pixel_values"]
        with torch.no_grad():
            logits = self.network(
                input_ids=read["input_ids"].to(device), attention_mask=read["attention_mask"].to(device),
                pixel_values=seen.to(device).expand(len(labels), -1, -1, -1),
            ).logits.float().sigmoid().cpu()  # fmt: skip
        logits = logits.reshape(len(labels), *logits.shape[-2:])
        boxes = []
        for label, heat in zip(labels, logits, strict=True):
            region = largest_region(heat > LEVEL)
            if bool(region.any()):
                boxes.append(_box(label, float(heat[region].max()), region, picture.size))
        return boxes


def largest_region(mask: Bool[Tensor, "height width"]) -> Bool[Tensor, "height width"]:
    """The connected region (neighbours also across corners) with the most pixels, the first one on a tie."""
    height, width = mask.shape
    if not bool(mask.any()):
        return mask
    # Every pixel takes the largest number among its neighbours until nothing changes: one number for each region.
    numbers = torch.arange(1, height * width + 1, dtype=torch.float64).reshape(1, 1, height, width) * mask
    while True:
        spread = functional.max_pool2d(numbers, 3, stride=1, padding=1) * mask
        if torch.equal(spread, numbers):
            break
        numbers = spread
    values, counts = np.unique(numbers[0, 0][mask].numpy(), return_counts=True)
    return torch.as_tensor(numbers[0, 0] == float(values[counts.argmax()]))


def _box(label: str, score: float, region: Bool[Tensor, "height width"], size: tuple[int, int]) -> Box:
    rows, columns = region.any(1).nonzero().flatten(), region.any(0).nonzero().flatten()
    x, y = size[0] / region.shape[1], size[1] / region.shape[0]
    return Box(label, score, float(columns[0]), float(rows[0]), float(columns[-1]) + 1, float(rows[-1]) + 1).scaled(
        x, y
    )
