"""What a few-step student must predict so that one of its steps lands where its teacher took several.

Or so that it lands at the end of the teacher's trajectory from wherever it is, as consistency models do: then noise is
added again for the next step, and one student serves one step, two and four.
"""

from __future__ import annotations

import inspect
from typing import Any, Protocol

import torch
from diffusers import (
    DDIMScheduler,
    FlowMatchLCMScheduler,
    FluxPipeline,
    LCMScheduler,
    StableDiffusionPipeline,
    UniPCMultistepScheduler,
)
from diffusers.models.attention_processor import AttnProcessor
from jaxtyping import Float, Int
from torch import Tensor, nn

from attnsteer.world.calls import side_of
from attnsteer.world.plain_attention import use_plain_attention
from attnsteer.world.text import MAX_TOKENS, tokenize
from attnsteer.world.unet import denoising_loss

Ids = dict[str, Int[Tensor, "batch tokens"]]
Steps = Int[Tensor, " batch"]


class Landing(Protocol):
    """One per architecture; `landing_of` chooses."""

    denoiser: nn.Module
    text_encoders: list[str]

    def noise(self, batch: int, generator: torch.Generator) -> Tensor:
        """Latents that a trajectory begins with, as the pipeline takes them."""

    def ids(self, captions: list[str]) -> Ids:
        """Token ids of the captions, by the name of their text encoder."""

    def prepare_teacher(self) -> None:
        """Give the pipeline the sampler that draws the teacher's trajectories."""

    def prepare_student(self, steps: int) -> None:
        """Give the pipeline the sampler of the student, set to its number of steps."""

    def prepare_consistent(self) -> None:
        """Give the pipeline the sampler that adds noise again after each step; `prepare_student` comes first."""

    def loss(self, states: Tensor, targets: Tensor, steps: Steps, ends: Steps, ids: Ids) -> Tensor:
        """Mean loss of the denoiser: states before the student's `steps`, targets before the steps `ends`.

        One more than the last step is the end of the trajectory, the picture.
        """


def landing_of(pipe: Any) -> Landing:
    """How students of this pipeline's denoiser are trained."""
    return FluxLanding(pipe) if isinstance(pipe, FluxPipeline) else UNetLanding(pipe)


class UNetLanding:
    """A U-Net that predicts the picture, stepped by DDIM."""

    text_encoders = ["text_encoder"]

    def __init__(self, pipe: StableDiffusionPipeline) -> None:
        """Of one stock pipeline."""
        self.pipe, self.denoiser = pipe, pipe.unet
        self.schedule = pipe.scheduler.config
        self.timesteps, self.alphas = torch.empty(0), torch.empty(0)

    def noise(self, batch: int, generator: torch.Generator) -> Tensor:
        """See `Landing`."""
        return torch.randn(batch, 3, side_of(self.pipe), side_of(self.pipe), generator=generator)

    def ids(self, captions: list[str]) -> Ids:
        """See `Landing`."""
        return {"text_encoder": tokenize(self.pipe.tokenizer, captions)}

    def prepare_teacher(self) -> None:
        """See `Landing`."""
        self.pipe.scheduler = UniPCMultistepScheduler.from_config(self.schedule)

    def prepare_student(self, steps: int) -> None:
        """See `Landing`."""
        self.pipe.scheduler = student_scheduler(self.schedule)
        self.pipe.scheduler.set_timesteps(steps)
        self.timesteps = self.pipe.scheduler.timesteps
        alphas = self.pipe.scheduler.alphas_cumprod[self.timesteps]
        self.alphas = torch.cat([alphas, self.pipe.scheduler.final_alpha_cumprod.view(1)])
        self.denoiser.set_attn_processor(AttnProcessor())  # trains faster on a CPU than the fused kernel

    def prepare_consistent(self) -> None:
        """See `Landing`."""
        self.pipe.scheduler = LCMScheduler.from_config(self.pipe.scheduler.config)

    def loss(self, states: Tensor, targets: Tensor, steps: Steps, ends: Steps, ids: Ids) -> Tensor:
        """See `Landing`; weighted as in the teacher's training."""
        wanted = implied_picture(states, targets, self.alphas[steps], self.alphas[ends])
        with torch.no_grad():
            texts = self.pipe.text_encoder(ids["text_encoder"]).last_hidden_state
        with torch.autocast("cpu", torch.bfloat16):
            predicted = self.denoiser(states, self.timesteps[steps], texts).sample
        return denoising_loss(predicted, wanted, self.alphas[steps]).mean()


class FluxLanding:
    """An MMDiT that predicts the velocity, stepped by Euler; the student's noise levels are among the teacher's."""

    text_encoders = ["text_encoder", "text_encoder_2"]

    def __init__(self, pipe: FluxPipeline) -> None:
        """Of one stock pipeline."""
        self.pipe, self.denoiser = pipe, pipe.transformer
        self.sigmas = torch.empty(0)

    def noise(self, batch: int, generator: torch.Generator) -> Tensor:
        """See `Landing`: packed, (batch, tokens, 12)."""
        side = side_of(self.pipe)
        return FluxPipeline._pack_latents(torch.randn(batch, 3, side, side, generator=generator), batch, 3, side, side)

    def ids(self, captions: list[str]) -> Ids:
        """See `Landing`."""
        tokenizers = {"text_encoder": self.pipe.tokenizer, "text_encoder_2": self.pipe.tokenizer_2}
        return {name: tokenize(tokenizer, captions) for name, tokenizer in tokenizers.items()}

    def prepare_teacher(self) -> None:
        """See `Landing`: the pipeline's own sampler."""

    def prepare_student(self, steps: int) -> None:
        """See `Landing`."""
        # FluxPipeline spaces its levels like this; the scheduler shifts them.
        self.pipe.scheduler.set_timesteps(sigmas=torch.linspace(1, 1 / steps, steps).tolist())
        self.sigmas = self.pipe.scheduler.sigmas
        use_plain_attention(self.denoiser)  # trains faster on a CPU than the fused kernel

    def prepare_consistent(self) -> None:
        """See `Landing`."""
        known = inspect.signature(FlowMatchLCMScheduler.__init__).parameters
        config = self.pipe.scheduler.config
        self.pipe.scheduler = FlowMatchLCMScheduler(**{name: config[name] for name in config if name in known})

    def loss(self, states: Tensor, targets: Tensor, steps: Steps, ends: Steps, ids: Ids) -> Tensor:
        """See `Landing`: squared error of the mean velocity (x_end - x) / (sigma_end - sigma)."""
        here, there = (sigmas[:, None, None] for sigmas in (self.sigmas[steps], self.sigmas[ends]))
        side = side_of(self.pipe) // 2
        places = FluxPipeline._prepare_latent_image_ids(len(states), side, side, "cpu", torch.float32)
        with torch.no_grad():
            pooled = self.pipe.text_encoder(ids["text_encoder"]).pooler_output
            texts = self.pipe.text_encoder_2(ids["text_encoder_2"]).last_hidden_state
        with torch.autocast("cpu", torch.bfloat16):
            predicted = self.denoiser(
                hidden_states=states, timestep=here[:, 0, 0], pooled_projections=pooled, encoder_hidden_states=texts,
                txt_ids=torch.zeros(MAX_TOKENS, 3), img_ids=places, return_dict=False,
            )[0]  # fmt: skip
        return (predicted.float() - (targets - states) / (there - here)).square().mean()


def student_scheduler(teacher: Any) -> DDIMScheduler:
    """The teacher's schedule (a scheduler's configuration), deterministic and without thresholding.

    Thresholding would move the states that the student learns to hit.
    """
    return DDIMScheduler.from_config(teacher, thresholding=False)


def implied_picture(
    state: Float[Tensor, "batch 3 size size"],
    target: Float[Tensor, "batch 3 size size"],
    alpha: Float[Tensor, " batch"],
    next_alpha: Float[Tensor, " batch"],
) -> Float[Tensor, "batch 3 size size"]:
    """The x_0 with which one DDIM step leads from `state` (alpha-bar `alpha`) to `target` (`next_alpha`).

    x_s = a_s x_0 + s_s (x_t - a_t x_0) / s_t  solved for x_0, with a = sqrt(alpha-bar), s = sqrt(1 - alpha-bar).
    Source: Salimans & Ho 2022, Progressive distillation, arXiv:2202.00512, Appendix G.
    """
    here, there = (value[:, None, None, None] for value in (alpha, next_alpha))
    ratio = (1 - there).sqrt() / (1 - here).sqrt()
    return (target - ratio * state) / (there.sqrt() - here.sqrt() * ratio)
