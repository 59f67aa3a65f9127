"""Rectified-flow inversion: controlled differential equations from a picture to noise and back."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from attnsteer.steering.data.pictures import Observer
from attnsteer.steering.data.stage import Stage


@dataclass(frozen=True)
class RFInversion:
    """Towards Gaussian noise e along a controlled equation, back towards the picture x along another.

    With noise levels s_0 > ... > s_N = 0 of the pipeline's run, and v(z, s) the denoiser's velocity dz/ds:

        to the noise   z' = z + [v + gamma ((e - z) / (1 - i / (N + 1)) - v)] (s_i - s_{i+1}),   i = 0..N-1
        and back       z' = z + [-v + eta ((x - z) / s_i + v)] (s_i - s_{i+1}),                  i = 0..N-1

    On the way to the noise v is taken at the level reached, 1 - s_i. At gamma = 1 and eta = 1, the published values, v
    drops out: the latents are a mix of the picture and fresh noise, and the picture always comes back. The denoiser
    then runs only where maps are recorded.

    Attributes:
        gamma: Control on the way to the noise, [0, 1].
        eta: Control on the way back, [0, 1].
        start: Fraction of the steps from which `eta` acts, [0, 1].
        stop: Fraction of the steps up to which it acts, [start, 1].
        min_psnr: Decibels; pictures that come back worse are dropped. Published: 20. The autoencoder's loss counts.

    Raises: ValueError if a setting is out of range.

    Source: Rout et al. 2024, RF-Inversion, arXiv:2410.10792, with the settings and the discretisation of the data
    pipeline of Learn-to-Steer, arXiv:2509.02295.
    """

    gamma: float = 1.0
    eta: float = 1.0
    start: float = 0.0
    stop: float = 1.0
    min_psnr: float = 20.0

    def __post_init__(self) -> None:
        for name in ("gamma", "eta"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"{name} must be in [0, 1], got {getattr(self, name)}; the published value is 1")
        if not 0.0 <= self.start <= self.stop <= 1.0:
            raise ValueError(f"start and stop must satisfy 0 <= start <= stop <= 1, got {self.start} and {self.stop}")

    def walk(
        self, stage: Stage, latents: Tensor, observer: Observer, steps: int, generator: torch.Generator
    ) -> Tensor | None:
        """See `attnsteer.steering.data.pictures.Method`.

        Raises: ValueError if the pipeline is none of flow matching.
        """
        schedule = stage.schedule
        if not hasattr(schedule, "scale_noise") or getattr(schedule, "sigmas", None) is None:
            raise ValueError(
                f"rectified-flow inversion needs flow matching, {type(schedule).__name__} is none: use the method "
                "ddim or noise"
            )
        sigmas = schedule.sigmas.double().tolist()
        total = float(schedule.config.num_train_timesteps)
        noise = torch.randn(latents.shape, generator=generator).to(latents)
        return self.back(latents, self.noised(stage, latents, noise, sigmas, total), observer, sigmas, total)

    def noised(self, stage: Stage, latents: Tensor, noise: Tensor, sigmas: list[float], total: float) -> Tensor:
        """The end of the way to the noise."""
        for i, (sigma, after) in enumerate(zip(sigmas, sigmas[1:], strict=False)):
            velocity = (noise - latents) / (1 - i / len(sigmas))
            if self.gamma < 1:
                own = stage.predict(latents, (1 - sigma) * total)
                velocity = own + self.gamma * (velocity - own)
            latents = latents + velocity * (sigma - after)
        return latents

    def back(self, clean: Tensor, latents: Tensor, observer: Observer, sigmas: list[float], total: float) -> Tensor:
        """The end of the way back; the observer sees every step."""
        count = len(sigmas) - 1
        for i, (sigma, after) in enumerate(zip(sigmas, sigmas[1:], strict=False)):
            eta = self.eta if self.start <= i / count < self.stop else 0.0
            own = observer.see(i, latents, sigma * total, predict=eta < 1)
            velocity = (clean - latents) / sigma
            if own is not None:
                velocity = -own + eta * (velocity + own)
            latents = latents + velocity * (sigma - after)
        return latents
