"""Maps of given pictures: under noise, by DDIM inversion, or by rectified-flow inversion.

With dual prompts the same picture comes with a true and with a wrong relation word, and the same label, so that a
classifier cannot profit from reading the word out of the maps (Learn-to-Steer, arXiv:2509.02295).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch
from jaxtyping import Float
from torch import Tensor

from attnsteer.steering.data.collected import Collected, chosen, joined, labelled
from attnsteer.steering.data.stage import PairPrompt, Stage
from attnsteer.steering.noise import log_snr_of
from attnsteer.steering.recording import Recording


@dataclass(frozen=True)
class Pictured:
    """Pictures with prompts and labels, row by row.

    Attributes:
        pictures: In [0, 1]; the same picture may come several times with different prompts.
        prompts: One for each.
        labels: The relation that holds in each picture.

    Raises: ValueError if the numbers differ.
    """

    pictures: Float[Tensor, "batch 3 height width"]
    prompts: Sequence[PairPrompt]
    labels: Sequence[str]

    def __post_init__(self) -> None:
        if not len(self.prompts) == len(self.labels) == len(self.pictures):
            raise ValueError(
                f"got {len(self.pictures)} pictures, {len(self.prompts)} prompts and {len(self.labels)} labels"
            )


class Observer:
    """Keeps the maps of the steps that are wanted, for a method that walks through the noise levels."""

    def __init__(self, stage: Stage, recording: Recording, steps: Sequence[int]) -> None:
        self.stage, self.recording, self.steps = stage, recording, frozenset(steps)
        self.recorded: list[tuple[int, float, Tensor]] = []
        self.channels: list[tuple[int, int]] = []

    def see(self, step: int, latents: Tensor, timestep: Tensor | float, *, predict: bool) -> Tensor | None:
        """Call the denoiser on a step's latents; keep its maps if they are wanted.

        Returns: The denoiser's output in float32, None unless `predict`. Nothing runs if neither is wanted.
        """
        if step not in self.steps:
            return self.stage.predict(latents, timestep) if predict else None
        seen, output = self.stage.observe(latents, timestep, self.recording, whole=predict)
        self.recorded.append((step, log_snr_of(self.stage.schedule, float(timestep)), seen.maps))
        self.channels = seen.channels
        return output


class Method(Protocol):
    """How pictures get to the noise levels at which maps are recorded."""

    @property
    def min_psnr(self) -> float:
        """Decibels below which a picture that came back is dropped; -inf where nothing comes back."""
        ...

    def walk(
        self, stage: Stage, latents: Tensor, observer: Observer, steps: int, generator: torch.Generator
    ) -> Tensor | None:
        """Show the observer the latents of every step; returns the latents that came back, if any."""
        ...


@dataclass(frozen=True)
class Noising:
    """Noise of the level of each step is added: one denoiser call per level, nothing comes back."""

    min_psnr: float = -math.inf

    def walk(
        self, stage: Stage, latents: Tensor, observer: Observer, steps: int, generator: torch.Generator
    ) -> Tensor | None:
        """See `Method`.

        Raises: ValueError if a step does not exist.
        """
        for step in sorted(observer.steps):
            noise = torch.randn(latents.shape, generator=generator).to(latents)
            observer.see(step, *_noised(stage, latents, noise, step, steps), predict=False)
        return None


@dataclass(frozen=True)
class PicturePlan:
    """How maps are made of pictures.

    Attributes:
        recording: Which maps.
        relations: Vocabulary; labels and prompted words are stored as indices into it.
        steps: Step indices at which to record.
        num_inference_steps: Steps these indices count in.
        method: `Noising`, `DDIMInversion` or `RFInversion`.
        call: Further keywords of the pipeline call. Classifier-free guidance is off unless a scale is given here.
    """

    recording: Recording
    relations: tuple[str, ...]
    steps: tuple[int, ...]
    num_inference_steps: int
    method: Method = field(default_factory=Noising)
    call: Mapping[str, Any] = field(default_factory=dict)


def picture_maps(pipe: Any, given: Pictured, plan: PicturePlan, generator: torch.Generator) -> Collected:
    """Maps of given pictures at some noise levels.

    Args:
        pipe: A stock pipeline whose denoiser works on its autoencoder's latents.
        given: The pictures.
        plan: How.
        generator: Draws noise, on the CPU.

    Raises: ValueError if a step or label does not exist, or the pipeline's latents are not the autoencoder's.
    """
    height, width = given.pictures.shape[2:]
    call = {"guidance_scale": 1.0, **plan.call, "num_inference_steps": plan.num_inference_steps}
    stage = Stage.of(pipe, given.prompts, {**call, "height": height, "width": width})
    latents = stage.latents_of(given.pictures)
    observer = Observer(stage, plan.recording, plan.steps)
    back = plan.method.walk(stage, latents, observer, plan.num_inference_steps, generator)
    missed = sorted(observer.steps - {step for step, *_ in observer.recorded})
    if missed:
        raise ValueError(f"there is no step {missed[0]}: {type(pipe).__name__} takes {plan.num_inference_steps}")
    batches = [
        labelled(maps, given.labels, given.prompts, plan.relations, step, level)
        for step, level, maps in observer.recorded
    ]
    rows = list(range(len(given.labels)))
    if back is not None:
        ratio = psnr(stage.pictures_of(back, height, width), given.pictures)
        rows = recovered([p.source for p in given.prompts], ratio.tolist(), plan.method.min_psnr)
        batches = [chosen(batch, rows) for batch in batches]
    return Collected.of(joined(batches), stage, observer.channels, len(given.labels) - len(rows))


def psnr(
    pictures: Float[Tensor, "batch 3 height width"], originals: Float[Tensor, "batch 3 height width"]
) -> Float[Tensor, " batch"]:
    """Peak signal-to-noise ratio in decibels, -10 log10(mean squared difference), of pictures in [0, 1]."""
    return -10 * (pictures.cpu().float() - originals.cpu().float()).square().mean(dim=(1, 2, 3)).log10()


def recovered(sources: Sequence[str], ratios: Sequence[float], least: float) -> list[int]:
    """Rows to keep: those whose picture came back well, until a picture's first prompt where it did not.

    As published: a prompt with a low ratio drops the remaining prompts of the same picture too.
    """
    failed: set[str] = set()
    kept = []
    for row, (source, ratio) in enumerate(zip(sources, ratios, strict=True)):
        if not ratio >= least:
            failed.add(source)
        if source not in failed:
            kept.append(row)
    return kept


def _noised(stage: Stage, latents: Tensor, noise: Tensor, step: int, steps: int) -> tuple[Tensor, Tensor]:
    """The denoiser's input at a step of a run that arrives at these latents, and the step's timestep."""
    schedule = stage.schedule
    if not 0 <= step < len(schedule.timesteps):
        raise ValueError(f"there is no step {step}: {type(schedule).__name__} takes {len(schedule.timesteps)}")
    timestep = schedule.timesteps[step]
    if hasattr(schedule, "scale_noise"):
        sigma = schedule.sigmas[step].to(latents)
        return (1 - sigma) * latents + sigma * noise, timestep
    scheduler = copy.deepcopy(stage.pipe.scheduler)  # the one in the run has begun to count steps
    scheduler.set_timesteps(steps)
    noisy = scheduler.add_noise(latents, noise, timestep.expand(len(latents)))
    return scheduler.scale_model_input(noisy, timestep), timestep
