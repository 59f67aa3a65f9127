"""DDIM inversion by fixed points: the noise that a stock Stable Diffusion would have turned into a given picture."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from diffusers import DDIMScheduler
from torch import Tensor

from attnsteer.steering.data.pictures import Observer
from attnsteer.steering.data.stage import Stage


@dataclass(frozen=True)
class DDIMInversion:
    """Invert step by step, then reconstruct with the same prompt and record on the way; no guidance in either pass.

    A DDIM step from t to s < t is  z_s = a z_t + b e(z_t, t),  with a = sqrt(A_s / A_t) and
    b = sqrt(1 - A_s) - a sqrt(1 - A_t). Its inverse solves  z_t = (z_s - b e(z_t, t)) / a  by iteration from
    z_t = z_s. A is the cumulative signal power, e the noise that the denoiser predicts.

    Attributes:
        iterations: Denoiser calls per step of the way to the noise; the published value is 5.
        min_psnr: Decibels; pictures that come back worse are dropped. Published: 19.5. The autoencoder's loss counts.

    Raises: ValueError if `iterations` is below 1.

    Source: the data pipeline of Learn-to-Steer, arXiv:2509.02295 (50 steps, guidance 1); DDIM: Song et al. 2020,
    arXiv:2010.02502.
    """

    iterations: int = 5
    min_psnr: float = 19.5

    def __post_init__(self) -> None:
        if self.iterations < 1:
            raise ValueError(f"iterations must be >= 1, got {self.iterations}; the published value is 5")

    def walk(
        self, stage: Stage, latents: Tensor, observer: Observer, steps: int, generator: torch.Generator
    ) -> Tensor | None:
        """See `attnsteer.steering.data.pictures.Method`; draws nothing.

        Raises: ValueError if the pipeline's scheduler is none of a diffusion model.
        """
        scheduler = ddim_of(stage.schedule, steps)
        for timestep in scheduler.timesteps.flip(0):
            latents = self.inverted(stage, scheduler, latents, timestep)
        for step, timestep in enumerate(scheduler.timesteps):
            predicted = observer.see(step, latents, timestep, predict=True)
            latents = scheduler.step(predicted, timestep, latents, return_dict=False)[0]
        return latents

    def inverted(self, stage: Stage, scheduler: DDIMScheduler, latents: Tensor, timestep: Tensor) -> Tensor:
        """The latents at a timestep that one DDIM step takes to the given ones."""
        stride = scheduler.config.num_train_timesteps // scheduler.num_inference_steps
        signal, cleaner = power(scheduler, int(timestep)), power(scheduler, int(timestep) - stride)
        a = (cleaner / signal).sqrt()
        b = (1 - cleaner).sqrt() - a * (1 - signal).sqrt()
        noisier = latents
        for _ in range(self.iterations):
            predicted = stage.predict(noisier, timestep)
            noisier = (latents - b * noise_of(scheduler, predicted, noisier, signal)) / a
        return noisier


def ddim_of(scheduler: Any, steps: int) -> DDIMScheduler:
    """A deterministic, invertible DDIM scheduler with the noise levels of another one.

    Raises: ValueError if the other one is not of a diffusion model with cumulative signal powers.
    """
    if getattr(scheduler, "alphas_cumprod", None) is None:
        raise ValueError(
            f"DDIM inversion needs a diffusion model, {type(scheduler).__name__} is none: use the method rf for flow "
            "matching, or noise"
        )
    made: DDIMScheduler = DDIMScheduler.from_config(scheduler.config, clip_sample=False, thresholding=False)
    made.set_timesteps(steps)
    return made


def power(scheduler: DDIMScheduler, timestep: int) -> Tensor:
    """Cumulative signal power at a timestep; that of the end of sampling where the timestep is negative."""
    found: Tensor = scheduler.alphas_cumprod[timestep] if timestep >= 0 else scheduler.final_alpha_cumprod
    return found


def noise_of(scheduler: DDIMScheduler, predicted: Tensor, latents: Tensor, signal: Tensor) -> Tensor:
    """The noise e in latents = sqrt(A) x + sqrt(1 - A) e that a prediction stands for.

    epsilon: e;   v_prediction: sqrt(A) v + sqrt(1 - A) z;   sample: (z - sqrt(A) x) / sqrt(1 - A)

    Raises: ValueError for another type of prediction.
    """
    kind = scheduler.config.prediction_type
    if kind == "epsilon":
        return predicted
    if kind == "v_prediction":
        return signal.sqrt() * predicted + (1 - signal).sqrt() * latents
    if kind == "sample":
        return (latents - signal.sqrt() * predicted) / (1 - signal).sqrt()
    raise ValueError(f"cannot invert a model that predicts {kind!r}")
