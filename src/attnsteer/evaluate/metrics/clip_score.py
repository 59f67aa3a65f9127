"""CLIP score: how well pictures fit their texts, on today's transformers. PickScore-type models score the same way."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor


@dataclass(frozen=True)
class ClipModel:
    """A CLIP model with its processor.

    Attributes:
        model: A transformers CLIPModel (or one with the same methods).
        processor: Its processor.
    """

    model: Any
    processor: Any

    @classmethod
    def load(cls, name: str, device: str = "cpu") -> Self:
        """Load from a folder or the Hub, e.g. "openai/clip-vit-large-patch14" or "yuvalkirstain/PickScore_v1"."""
        from transformers import CLIPModel, CLIPProcessor

        return cls(CLIPModel.from_pretrained(name).to(device).eval(), CLIPProcessor.from_pretrained(name))

    def picture_features(self, pictures: Sequence[Image.Image]) -> Float[Tensor, "pictures width"]:
        """Features of length one."""
        with torch.no_grad():
            inputs = self.processor.image_processor(images=[p.convert("RGB") for p in pictures], return_tensors="pt")
            return _unit(self.model.get_image_features(pixel_values=inputs["pixel_values"].to(self.model.device)))

    def text_features(self, texts: Sequence[str]) -> Float[Tensor, "texts width"]:
        """Features of length one; texts are cut at the model's length."""
        with torch.no_grad():
            inputs = self.processor.tokenizer(list(texts), padding=True, truncation=True, return_tensors="pt")
            inputs = {name: value.to(self.model.device) for name, value in inputs.items() if name != "token_type_ids"}
            return _unit(self.model.get_text_features(**inputs))


def clip_scores(clip: ClipModel, pictures: Sequence[Image.Image], texts: Sequence[str]) -> list[float]:
    """CLIP score of each picture with its own text, 100 max(cos, 0), in [0, 100].

    Args:
        clip: The model. With a PickScore-type model the figure is that model's preference, up to its scale.
        pictures: Any sizes.
        texts: One per picture.

    Raises: ValueError if there is not one text per picture.
    Source: Hessel et al. 2021, arXiv:2104.08718, without its factor 2.5, as the field reports it.
    """
    if len(pictures) != len(texts):
        raise ValueError(f"got {len(texts)} texts for {len(pictures)} pictures")
    cosine = (clip.picture_features(pictures) * clip.text_features(texts)).sum(1)
    return [float(value) for value in 100 * cosine.clamp(min=0)]


def _unit(output: Any) -> Float[Tensor, "rows width"]:
    # transformers 5 returns an output object whose pooled output is the projected feature; 4 returned a tensor.
    features: Tensor = output if isinstance(output, Tensor) else output.pooler_output
    return torch.nn.functional.normalize(features.float(), dim=-1).cpu()
