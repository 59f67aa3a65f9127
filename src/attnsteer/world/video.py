"""The embedded video model in a stock WanPipeline, and what it is trained on: the clip behind the noise."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import Any

import torch
from diffusers import UniPCMultistepScheduler, WanPipeline, WanTransformer3DModel
from jaxtyping import Float
from torch import Tensor, nn
from transformers import T5Tokenizer, UMT5EncoderModel

from attnsteer.world import clips
from attnsteer.world.clip_captions import clip_caption
from attnsteer.world.plain_attention import use_plain_attention
from attnsteer.world.text import MAX_TOKENS
from attnsteer.world.umt5 import build_clip_tokenizer, build_umt5_encoder, train_umt5_encoder
from attnsteer.world.video_autoencoder import LATENT_CHANNELS, pack_frames, packing_autoencoder

LOGIT_MEAN, LOGIT_DEVIATION = 1.0, 1.2
"""The noise level sigma of a training clip is the logistic of a normal variable with these."""
SHIFT = 3.0
"""Timestep shift of the scheduler: more of its steps at high noise, where the layout is decided."""
MOST_WEIGHT = 5.0
"""Bound of the loss weight of clips with little noise."""


@dataclass(frozen=True)
class VideoSize:
    """Sizes of the embedded video model. One token is a patch of 4 x 4 pixels in four frames.

    `picture` is the side in latent pixels; the autoencoder shows each as a block of 4 x 4 video pixels.
    """

    picture: int = clips.SIDE
    frames: int = clips.FRAMES
    heads: int = 4
    head_dim: int = 32
    blocks: int = 5


def build_video_transformer(size: VideoSize, text_width: int) -> WanTransformer3DModel:
    """A small random WanTransformer3DModel with the widths of its feed-forward layers twice its own."""
    return WanTransformer3DModel(
        patch_size=(1, 4, 4), num_attention_heads=size.heads, attention_head_dim=size.head_dim,
        in_channels=LATENT_CHANNELS, out_channels=LATENT_CHANNELS, text_dim=text_width, freq_dim=128,
        ffn_dim=2 * size.heads * size.head_dim, num_layers=size.blocks, rope_max_seq_len=64,
    )  # fmt: skip


def assemble_wan_pipeline(
    transformer: WanTransformer3DModel, tokenizer: T5Tokenizer, text_encoder: UMT5EncoderModel
) -> WanPipeline:
    """A stock WanPipeline; call it with four times the size in pixels and `max_sequence_length=32`.

    Its UniPC scheduler takes the network's output for the clip itself, not for the flow's velocity.
    """
    scheduler = UniPCMultistepScheduler(
        prediction_type="sample", use_flow_sigmas=True, flow_shift=SHIFT, solver_order=2, lower_order_final=True
    )
    return WanPipeline(
        vae=packing_autoencoder(), tokenizer=tokenizer, text_encoder=text_encoder, transformer=transformer,
        scheduler=scheduler,
    )  # fmt: skip


class VideoRecipe:
    """How the embedded video model is built, taught to read, and trained."""

    def __init__(self, size: VideoSize) -> None:
        """Random weights in a stock pipeline."""
        self.size, self.picture = size, size.picture
        self.tokenizer = build_clip_tokenizer()
        self.text_encoder = build_umt5_encoder(self.tokenizer)
        self.denoiser = build_video_transformer(size, self.text_encoder.config.d_model)
        # On a CPU the backward pass of plain matrix products is faster than that of the fused kernel.
        use_plain_attention(self.denoiser)
        self.pipeline = assemble_wan_pipeline(self.denoiser, self.tokenizer, self.text_encoder)

    @property
    def text_encoders(self) -> dict[str, nn.Module]:
        """The pipeline's text encoder by its name; it is frozen while the denoiser is trained."""
        return {"text_encoder": self.text_encoder}

    def describe(self) -> dict[str, Any]:
        """The sizes, for the log."""
        return {"architecture": "video", **asdict(self.size)}

    def teach_words(self, iterations: int, seed: int) -> dict[str, float]:
        """Train the text encoder on its own; returns its accuracy (0 to 1)."""
        accuracy = train_umt5_encoder(self.tokenizer, self.text_encoder, iterations, seed)
        return {"text_encoder_accuracy": round(accuracy, 4)}

    def draw(self, random: Random, count: int) -> tuple[Float[Tensor, "count frames 3 size size"], list[str]]:
        """Clips of the training distribution in [0, 1], and their captions."""
        drawn = [clips.training_clip(random, self.size.frames) for _ in range(count)]
        texts = [" ".join(clip_caption(clip, random)) for clip in drawn]
        return clips.render_clips(drawn, self.size.frames, self.picture), texts

    def loss(
        self, pictures: Float[Tensor, "batch frames 3 size size"], texts: list[str], generator: torch.Generator
    ) -> Float[Tensor, " batch"]:
        """Squared error of the predicted clip at x = (1 - sigma) clip + sigma noise, weighted by min(1 / sigma^2, 5).

        1 / sigma^2 is the weight that an error of the velocity noise - clip would have. Predicting the clip itself
        lets a token be as narrow as the pixels it stands for. Source: Li & He 2025, Back to basics,
        arXiv:2511.13720, Eq. 6; the noise levels are those of Esser et al. 2024, arXiv:2403.03206, Eq. 19.
        """
        latents = pack_frames(pictures)
        sigma = torch.sigmoid(LOGIT_MEAN + LOGIT_DEVIATION * torch.randn(len(texts), generator=generator))
        noise = torch.randn(latents.shape, generator=generator)
        mixed = torch.lerp(latents, noise, sigma.view(-1, 1, 1, 1, 1))
        with torch.no_grad():  # exactly what the pipeline feeds its transformer, padding included
            states, _ = self.pipeline.encode_prompt(
                texts, do_classifier_free_guidance=False, max_sequence_length=MAX_TOKENS
            )
        with torch.autocast("cpu", torch.bfloat16):
            predicted = self.denoiser(mixed, 1000 * sigma, states, return_dict=False)[0]
        weight = sigma.square().reciprocal().clamp(max=MOST_WEIGHT)
        return weight * (predicted.float() - latents).square().mean((1, 2, 3, 4))

    def start_from(self, model: Path) -> None:
        """Take the weights of the diffusers folder `model`, which may have another picture size and frame number."""
        earlier = WanPipeline.from_pretrained(model)
        self.text_encoder.load_state_dict(earlier.text_encoder.state_dict())
        self.denoiser.load_state_dict(earlier.transformer.state_dict())
