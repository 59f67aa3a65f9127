"""Detectors that look for anything that has a name: OWL-ViT, OWLv2 and Grounding DINO, through transformers."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Self

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from torch.nn import functional

from attnsteer.evaluate.prompts.nouns import with_article
from attnsteer.evaluate.scoring.boxes import Box

CLIP_MEAN: Final = (0.48145466, 0.4578275, 0.40821073)
CLIP_DEVIATION: Final = (0.26862954, 0.26130258, 0.27577711)


@dataclass(frozen=True)
class Owl:
    """OWL-ViT or OWLv2, asked for "a photo of a THING".

    Attributes:
        network: An OwlViTForObjectDetection or Owlv2ForObjectDetection.
        processor: Its processor.
        name: Printed beside figures.
        threshold: Boxes need a higher score; VISOR's value is 0.1.
    """

    network: Any
    processor: Any
    name: str
    threshold: float = 0.1

    @classmethod
    def load(cls, model: str, device: str = "cpu") -> Self:
        """Load from a folder or the Hub."""
        from transformers import AutoModelForZeroShotObjectDetection, AutoProcessor

        network = AutoModelForZeroShotObjectDetection.from_pretrained(model).to(device).eval()
        return cls(network, AutoProcessor.from_pretrained(model), f"{network.config.model_type} ({model})")

    def __call__(self, pictures: Sequence[Image.Image], labels: Sequence[Sequence[str]]) -> list[list[Box]]:
        """Boxes for the labels of each picture; every box carries its most likely label."""
        with torch.no_grad():
            found = []
            for picture, row in zip(pictures, labels, strict=True):
                texts = [f"a photo of {with_article(label)}" for label in row]
                inputs = self.processor(text=[texts], return_tensors="pt").to(self.network.device)
                output = self.network(**inputs, pixel_values=self._pixels(picture).to(self.network.device))
                (result,) = self.processor.post_process_grounded_object_detection(
                    output, threshold=self.threshold, target_sizes=[(picture.height, picture.width)]
                )
                found.append(_boxes(result, [row[int(number)] for number in result["labels"]]))
            return found

    def _pixels(self, picture: Image.Image) -> Float[Tensor, "1 3 side side"]:
        picture = picture.convert("RGB")
        if self.network.config.model_type != "owlv2":
            given: Tensor = self.processor.image_processor(images=picture, return_tensors="pt")["pixel_values"]
            return given
        return padded_square(picture, int(self.network.config.vision_config.image_size))


def padded_square(picture: Image.Image, side: int) -> Float[Tensor, "1 3 side side"]:
    """A picture as OWLv2 reads it: grey below or beside it to make it square, resized without aliasing, normalised.

    The processor of transformers smooths through scipy; this is torch's antialiased bilinear resize.
    """
    pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None].float() / 255
    longest = max(picture.size)
    pixels = functional.pad(pixels, (0, longest - picture.width, 0, longest - picture.height), value=0.5)
    pixels = functional.interpolate(pixels, (side, side), mode="bilinear", align_corners=False, antialias=True)
    mean, deviation = (torch.tensor(values)[None, :, None, None] for values in (CLIP_MEAN, CLIP_DEVIATION))
    return (pixels - mean) / deviation


@dataclass(frozen=True)
class GroundingDino:
    """Grounding DINO, asked for one thing at a time, so that its answers cannot blend two of them.

    Attributes:
        network: A GroundingDinoForObjectDetection.
        processor: Its processor.
        name: Printed beside figures.
        threshold: Boxes need a higher score; 0.25 is the published default.
    """

    network: Any
    processor: Any
    name: str
    threshold: float = 0.25

    @classmethod
    def load(cls, model: str, device: str = "cpu") -> Self:
        """Load from a folder or the Hub."""
        from transformers import AutoModelForZeroShotObjectDetection, AutoProcessor

        network = AutoModelForZeroShotObjectDetection.from_pretrained(model).to(device).eval()
        return cls(network, AutoProcessor.from_pretrained(model), f"grounding-dino ({model})")

    def __call__(self, pictures: Sequence[Image.Image], labels: Sequence[Sequence[str]]) -> list[list[Box]]:
        """Boxes for the labels of each picture."""
        with torch.no_grad():
            found: list[list[Box]] = []
            for picture, row in zip(pictures, labels, strict=True):
                boxes: list[Box] = []
                for label in row:
                    inputs = self.processor(
                        text=f"{with_article(label)}.", images=picture.convert("RGB"), return_tensors="pt"
                    )
                    output = self.network(**inputs.to(self.network.device))
                    (result,) = self.processor.post_process_grounded_object_detection(
                        output, inputs["input_ids"], threshold=self.threshold,
                        target_sizes=[(picture.height, picture.width)],
                    )  # fmt: skip
                    boxes += _boxes(result, [label] * len(result["scores"]))
                found.append(boxes)
            return found


def _boxes(result: Any, labels: Sequence[str]) -> list[Box]:
    rows = zip(labels, result["scores"].tolist(), result["boxes"].tolist(), strict=True)
    boxes = [Box(label, score, *corners) for label, score, corners in rows]
    return sorted(boxes, key=lambda box: -box.score)
