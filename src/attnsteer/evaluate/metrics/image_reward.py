"""ImageReward on the stock BLIP of transformers; the published package needs old versions of everything."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any, Final, Self

import numpy as np
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor, nn

from attnsteer.evaluate.detectors.open_vocabulary import CLIP_DEVIATION, CLIP_MEAN

CHECKPOINT: Final = "ImageReward.pt"
MEAN: Final = 0.16717362830052426
DEVIATION: Final = 1.0333394966054072
TOKENS: Final = 35
VISION: Final = {
    "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16,
    "image_size": 224, "patch_size": 16,
}  # fmt: skip
TEXT: Final = {"vocab_size": 30524, "encoder_hidden_size": 1024}
"""Sizes of the published network: ViT-L/16 and a BERT base that reads it."""
_RENAMED: Final = (
    (r"^visual_encoder\.", "vision_model."),
    (r"\.cls_token$", ".embeddings.class_embedding"),
    (r"\.pos_embed$", ".embeddings.position_embedding"),
    (r"\.patch_embed\.proj\.", ".embeddings.patch_embedding."),
    (r"^vision_model\.norm\.", "vision_model.post_layernorm."),
    (r"^vision_model\.blocks\.", "vision_model.encoder.layers."),
    (r"\.attn\.qkv\.", ".self_attn.qkv."),
    (r"\.attn\.proj\.", ".self_attn.projection."),
    (r"(vision_model.*)\.norm([12])\.", r"\1.layer_norm\2."),
)
"""Names of BLIP's published checkpoints, and those of transformers."""


@dataclass(frozen=True)
class ImageReward:
    """Human preference for a picture of a prompt, standardised to mean 0 and deviation 1 over its training pictures.

    Attributes:
        network: A BlipForImageTextRetrieval, of which the picture and text encoders are used.
        head: From the first text feature to the reward.
        tokenizer: A BERT tokenizer.
        model: Name of the weights.

    Source: Xu et al. 2023, ImageReward, arXiv:2304.05977.
    """

    network: Any
    head: nn.Module
    tokenizer: Any
    model: str

    @property
    def name(self) -> str:
        """E.g. "ImageReward [ImageReward-v1.0]"."""
        return f"ImageReward [{Path(self.model).name}]"

    @classmethod
    def load(cls, folder: str, device: str = "cpu") -> Self:
        """Read a folder with `ImageReward.pt` and a BERT tokenizer; a `config.json` of a BlipConfig gives other sizes.

        Raises: FileNotFoundError if the checkpoint is not there; ValueError if it lacks a weight.
        """
        from transformers import BertTokenizer, BlipConfig, BlipForImageTextRetrieval

        path = Path(folder) / CHECKPOINT
        if not path.is_file():
            raise FileNotFoundError(f"no {CHECKPOINT} in {folder}; download it from zai-org/ImageReward on the Hub")
        own = (Path(folder) / "config.json").is_file()
        config = BlipConfig.from_pretrained(folder) if own else BlipConfig(vision_config=VISION, text_config=TEXT)
        network, weights = BlipForImageTextRetrieval(config), torch.load(path, map_location="cpu", weights_only=True)
        head = load_weights(network, weights)
        tokenizer = BertTokenizer.from_pretrained(folder)
        return cls(network.to(device).eval(), head.to(device).eval(), tokenizer, folder)

    def __call__(self, pictures: Sequence[Image.Image], texts: Sequence[str]) -> list[float]:
        """Rewards, about -2 to 2."""
        if len(pictures) != len(texts):
            raise ValueError(f"got {len(texts)} texts for {len(pictures)} pictures")
        side = self.network.config.vision_config.image_size
        device = self.network.device
        read = self.tokenizer(
            list(texts), padding="max_length", truncation=True, max_length=TOKENS, return_tensors="pt"
        )
        with torch.no_grad():
            pixels = torch.cat([prepared(picture, side) for picture in pictures]).to(device, self.network.dtype)
            seen = self.network.vision_model(pixel_values=pixels).last_hidden_state
            features = self.network.text_encoder(
                input_ids=read["input_ids"].to(device), attention_mask=read["attention_mask"].to(device),
                encoder_hidden_states=seen, encoder_attention_mask=torch.ones(seen.shape[:2], device=device).long(),
            ).last_hidden_state[:, 0]  # fmt: skip
            rewards = self.head(features.float())[:, 0]
        return [(float(reward) - MEAN) / DEVIATION for reward in rewards]


def load_weights(network: nn.Module, weights: Mapping[str, Tensor]) -> nn.Sequential:
    """Fill BLIP with the weights of ImageReward, and return the head: linear layers without activations between them.

    Raises: ValueError if an encoder's weight is missing from the checkpoint or has no place.
    """
    blip = {name.removeprefix("blip."): value for name, value in weights.items() if name.startswith("blip.")}
    renamed = {_renamed(name): value for name, value in blip.items()}
    wanted = {name for name in network.state_dict() if name.startswith(("vision_model.", "text_encoder."))}
    wanted = {name for name in wanted if not name.endswith("position_ids")}
    missing = sorted(wanted - set(renamed))
    if missing:
        raise ValueError(f"the checkpoint is no ImageReward for this network: it lacks {missing[0]}")
    network.load_state_dict({name: renamed[name] for name in wanted}, strict=False)
    numbers = sorted({int(name.split(".")[2]) for name in weights if re.fullmatch(r"mlp\.layers\.\d+\.weight", name)})
    layers = [(weights[f"mlp.layers.{n}.weight"], weights[f"mlp.layers.{n}.bias"]) for n in numbers]
    if not layers or any(a[0].shape[0] != b[0].shape[1] for a, b in pairwise(layers)):
        raise ValueError("the checkpoint is no ImageReward: its head is not a chain of linear layers")
    head = nn.Sequential(*(nn.Linear(weight.shape[1], weight.shape[0]) for weight, _ in layers))
    for linear, (weight, bias) in zip(head, layers, strict=True):
        linear.load_state_dict({"weight": weight.float(), "bias": bias.float()})
    return head


def prepared(picture: Image.Image, side: int) -> Float[Tensor, "1 3 side side"]:
    """A picture as BLIP reads it: shorter side resized bicubically, cut out of the middle, normalised."""
    scale = side / min(picture.size)
    size = [max(side, int(length * scale)) for length in picture.size]
    small = picture.convert("RGB").resize((size[0], size[1]), Image.Resampling.BICUBIC)
    left, top = ((length - side) // 2 for length in size)
    values = torch.from_numpy(np.array(small.crop((left, top, left + side, top + side)))).permute(2, 0, 1)[None]
    mean, deviation = (torch.tensor(values)[None, :, None, None] for values in (CLIP_MEAN, CLIP_DEVIATION))
    return (values.float() / 255 - mean) / deviation


def _renamed(name: str) -> str:
    for pattern, replacement in _RENAMED:
        name = re.sub(pattern, replacement, name)
    return name
