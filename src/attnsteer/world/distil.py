"""Distil the embedded U-Net to few steps: `python -m attnsteer.world.distil --model FOLDER --work DIR`.

The teacher draws trajectories of its probability-flow ODE with classifier-free guidance and many steps. The student,
which starts as a copy, learns to land on the same states with one DDIM step where the teacher took several, and
without guidance. Source: Salimans & Ho 2022, Progressive distillation, arXiv:2202.00512 (its target, Appendix G),
here with all halvings in one and the states kept on disk, as in Luhman & Luhman 2021, arXiv:2101.02388.

Every shard of trajectories and every 100 iterations are kept, so the command goes on where it was stopped.
"""

from __future__ import annotations

import argparse
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import Any

import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline, UniPCMultistepScheduler
from diffusers.models.attention_processor import AttnProcessor
from jaxtyping import Float
from safetensors.torch import load_file, save_file
from torch import Tensor

from attnsteer.world.captions import random_pair
from attnsteer.world.export import export_model
from attnsteer.world.text import tokenize
from attnsteer.world.unet import denoising_loss


@dataclass(frozen=True)
class Distillation:
    """Settings of one run.

    Attributes:
        steps: Of the student.
        substeps: Teacher steps for one of the student's.
        guidance_scale: Of the teacher; the student needs none.
        shards, batch: Trajectories on disk: `shards` files of `batch`.
    """

    seed: int = 0
    steps: int = 4
    substeps: int = 3
    guidance_scale: float = 1.5
    shards: int = 18
    batch: int = 64
    iterations: int = 800
    learning_rate: float = 2e-4
    average: float = 0.995


def student_scheduler(teacher: Any) -> DDIMScheduler:
    """The teacher's schedule, deterministic and without thresholding, which would move the states it learns to hit."""
    return DDIMScheduler.from_config(teacher.config, thresholding=False)


def implied_picture(
    state: Float[Tensor, "batch 3 size size"],
    target: Float[Tensor, "batch 3 size size"],
    alpha: Float[Tensor, " batch"],
    next_alpha: Float[Tensor, " batch"],
) -> Float[Tensor, "batch 3 size size"]:
    """The x_0 with which one DDIM step leads from `state` (alpha-bar `alpha`) to `target` (`next_alpha`).

    x_s = a_s x_0 + s_s (x_t - a_t x_0) / s_t  solved for x_0, with a = sqrt(alpha-bar), s = sqrt(1 - alpha-bar).
    """
    here, there = (value[:, None, None, None] for value in (alpha, next_alpha))
    ratio = (1 - there).sqrt() / (1 - here).sqrt()
    return (target - ratio * state) / (there.sqrt() - here.sqrt() * ratio)


def collect(pipe: StableDiffusionPipeline, folder: Path, settings: Distillation) -> list[Path]:
    """Write the shards of teacher trajectories that are not there yet: states (batch, steps + 1, 3, size, size)."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{shard:04d}.safetensors" for shard in range(settings.shards)]
    pipe.scheduler = UniPCMultistepScheduler.from_config(pipe.scheduler.config)
    size = pipe.unet.config.sample_size
    for shard, path in enumerate(paths):
        if path.is_file():
            continue
        random = Random(f"distil-{settings.seed}-{shard}")
        captions = [random_pair(random)[1] for _ in range(settings.batch)]
        generator = torch.Generator().manual_seed(settings.seed * 1_000_003 + shard)
        noise = torch.randn(settings.batch, 3, size, size, generator=generator)
        states = [noise]

        def keep(_pipe: Any, step: int, _timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            if (step + 1) % settings.substeps == 0:
                states.append(tensors["latents"].clone())  # noqa: B023 - called before the loop goes on
            return {}

        pipe(
            captions, num_inference_steps=settings.steps * settings.substeps, latents=noise.clone(),
            guidance_scale=settings.guidance_scale, output_type="latent", callback_on_step_end=keep,
        )  # fmt: skip
        tensors = {"states": torch.stack(states, 1).half(), "ids": tokenize(pipe.tokenizer, captions)}
        save_file(tensors, path.with_suffix(".tmp"))
        os.replace(path.with_suffix(".tmp"), path)
    return paths


class Student:
    """The student in training: one step, checkpoint, export."""

    def __init__(
        self, pipe: StableDiffusionPipeline, shards: list[Path], folder: Path, settings: Distillation
    ) -> None:
        """Start from the teacher in `pipe`, or from the checkpoint in `folder`."""
        self.pipe, self.folder, self.settings = pipe, folder, settings
        files = [load_file(path) for path in shards]
        self.states, self.ids = (torch.cat([file[name] for file in files]) for name in ("states", "ids"))
        pipe.scheduler = student_scheduler(pipe.scheduler)
        pipe.scheduler.set_timesteps(settings.steps)
        self.timesteps = pipe.scheduler.timesteps
        alphas = pipe.scheduler.alphas_cumprod[self.timesteps]
        self.alphas = torch.cat([alphas, pipe.scheduler.final_alpha_cumprod.view(1)])
        pipe.unet.set_attn_processor(AttnProcessor())  # trains faster on a CPU than the fused kernel
        self.average = {name: value.clone() for name, value in pipe.unet.state_dict().items()}
        self.optimizer = torch.optim.AdamW(pipe.unet.parameters(), lr=settings.learning_rate, weight_decay=0.0)
        self.iteration = 0
        if (folder / "checkpoint.pt").is_file():
            state = torch.load(folder / "checkpoint.pt", weights_only=True)
            if state["settings"] != asdict(settings):
                raise ValueError(f"the run in {folder} has other settings ({state['settings']}); use another folder")
            pipe.unet.load_state_dict(state["unet"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.average, self.iteration = state["average"], state["iteration"]

    def step(self) -> float:
        """One optimizer step on random states of random trajectories; returns the loss."""
        generator = torch.Generator().manual_seed(self.settings.seed * 7_000_003 + self.iteration)
        rows = torch.randint(len(self.states), (32,), generator=generator)
        steps = torch.randint(self.settings.steps, (32,), generator=generator)
        state, target = self.states[rows, steps].float(), self.states[rows, steps + 1].float()
        wanted = implied_picture(state, target, self.alphas[steps], self.alphas[steps + 1])
        with torch.no_grad():
            texts = self.pipe.text_encoder(self.ids[rows]).last_hidden_state
        with torch.autocast("cpu", torch.bfloat16):
            predicted = self.pipe.unet(state, self.timesteps[steps], texts).sample
        loss = denoising_loss(predicted, wanted, self.alphas[steps]).mean()
        rate = self.settings.learning_rate * (1 - self.iteration / self.settings.iterations)
        for group in self.optimizer.param_groups:
            group["lr"] = max(rate, 1e-5)
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.pipe.unet.parameters(), 1.0)
        self.optimizer.step()
        self.iteration += 1
        with torch.no_grad():
            for name, value in self.pipe.unet.state_dict().items():
                self.average[name].lerp_(value, 1 - self.settings.average)
        return float(loss.item())

    def save(self) -> None:
        """Write checkpoint and diffusers folder, each to a temporary name first."""
        unet = self.pipe.unet
        state = {
            "unet": unet.state_dict(), "average": self.average, "optimizer": self.optimizer.state_dict(),
            "iteration": self.iteration, "settings": asdict(self.settings),
        }  # fmt: skip
        torch.save(state, self.folder / "checkpoint.tmp")
        os.replace(self.folder / "checkpoint.tmp", self.folder / "checkpoint.pt")
        export_model(self.pipe, unet, self.average, ["text_encoder"], self.folder / "model")


def distil(model: Path, work: Path, settings: Distillation, save_every: int = 100) -> Path:
    """Collect trajectories, train the student in `work`, and return its diffusers folder."""
    pipe = StableDiffusionPipeline.from_pretrained(model)
    pipe.set_progress_bar_config(disable=True)
    schedule = pipe.scheduler
    shards = collect(pipe, work / "trajectories", settings)
    pipe.scheduler = schedule
    student, losses = Student(pipe, shards, work, settings), list[float]()
    while student.iteration < settings.iterations:
        losses.append(student.step())
        if student.iteration % save_every == 0 or student.iteration == settings.iterations:
            student.save()
            line = {
                "iteration": student.iteration,
                "loss": round(sum(losses[-save_every:]) / len(losses[-save_every:]), 5),
            }
            with open(work / "log.jsonl", "a") as log:
                log.write(json.dumps({**line, "settings": asdict(settings)}) + "\n")
    return work / "model"


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True, help="diffusers folder of the teacher")
    parser.add_argument(
        "--work", type=Path, required=True, help="folder for trajectories, checkpoints and the student"
    )
    for name, default in asdict(Distillation()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(default), default=default)
    given = vars(parser.parse_args())
    distil(given.pop("model"), given.pop("work"), Distillation(**given))


if __name__ == "__main__":
    main()
