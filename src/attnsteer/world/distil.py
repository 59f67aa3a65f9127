"""Distil an embedded model to few steps: `python -m attnsteer.world.distil --model FOLDER --work DIR`.

The teacher draws trajectories of its probability-flow ODE with classifier-free guidance and many steps. The student,
which starts as a copy, learns to land on the same states with one step where the teacher took several, and without
guidance (`landing.py`). Source: Salimans & Ho 2022, Progressive distillation, arXiv:2202.00512, here with all
halvings in one and the states kept on disk, as in Luhman & Luhman 2021, arXiv:2101.02388. With `--consistent` it
learns the end of the trajectory from all of these states, as in Song et al. 2023, Consistency models,
arXiv:2303.01469, and is sampled as in Luo et al. 2023, Latent consistency models, arXiv:2310.04378.

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
from safetensors.torch import load_file, save_file

from attnsteer.world.calls import call_keywords
from attnsteer.world.captions import random_pair
from attnsteer.world.export import export_model
from attnsteer.world.landing import Landing, landing_of
from attnsteer.world.measure import load_pipeline


@dataclass(frozen=True)
class Distillation:
    """Settings of one run.

    Attributes:
        steps: Of the student.
        substeps: Teacher steps for one of the student's.
        guidance_scale: Of the teacher; the student needs none.
        shards, batch: Trajectories on disk: `shards` files of `batch`.
        consistent: Whether each step aims at the end of the trajectory; such a student serves fewer steps too.
        start: Folder of the model whose weights the student starts from, such as a student of more steps; the
            teacher's if empty.
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
    consistent: bool = False
    start: str = ""


def collect(pipe: Any, folder: Path, settings: Distillation) -> list[Path]:
    """Write the shards of teacher trajectories that are not there yet: states (batch, steps + 1, *latents), texts."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{shard:04d}.safetensors" for shard in range(settings.shards)]
    landing = landing_of(pipe)
    landing.prepare_teacher()
    call = call_keywords(pipe, settings.batch, settings.steps * settings.substeps, settings.guidance_scale)
    for shard, path in enumerate(paths):
        if path.is_file():
            continue
        random = Random(f"distil-{settings.seed}-{shard}")
        captions = [random_pair(random)[1] for _ in range(settings.batch)]
        generator = torch.Generator().manual_seed(settings.seed * 1_000_003 + shard)
        noise = landing.noise(settings.batch, generator)
        states = [noise]

        def keep(_pipe: Any, step: int, _timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            if (step + 1) % settings.substeps == 0:
                states.append(tensors["latents"].clone())  # noqa: B023 - called before the loop goes on
            return {}

        pipe(captions, latents=noise.clone(), output_type="latent", callback_on_step_end=keep, **call)
        save_file({"states": torch.stack(states, 1).half(), **landing.ids(captions)}, path.with_suffix(".tmp"))
        os.replace(path.with_suffix(".tmp"), path)
    return paths


class Student:
    """The student in training: one step, checkpoint, export."""

    def __init__(self, pipe: Any, shards: list[Path], folder: Path, settings: Distillation) -> None:
        """Start from the weights in `pipe`, or from the checkpoint in `folder`."""
        self.pipe, self.folder, self.settings = pipe, folder, settings
        self.landing: Landing = landing_of(pipe)
        self.landing.prepare_student(settings.steps)
        if settings.consistent:
            self.landing.prepare_consistent()
        files = [load_file(path) for path in shards]
        self.states = torch.cat([file["states"] for file in files])
        self.ids = {name: torch.cat([file[name] for file in files]) for name in self.landing.text_encoders}
        denoiser = self.landing.denoiser.requires_grad_(True)
        self.average = {name: value.clone() for name, value in denoiser.state_dict().items()}
        self.optimizer = torch.optim.AdamW(denoiser.parameters(), lr=settings.learning_rate, weight_decay=0.0)
        self.iteration = 0
        if (folder / "checkpoint.pt").is_file():
            state = torch.load(folder / "checkpoint.pt", weights_only=True)
            if state["settings"] != asdict(settings):
                raise ValueError(f"the run in {folder} has other settings ({state['settings']}); use another folder")
            denoiser.load_state_dict(state["denoiser"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.average, self.iteration = state["average"], state["iteration"]

    def step(self) -> float:
        """One optimizer step on random states of random trajectories; returns the loss."""
        settings, denoiser = self.settings, self.landing.denoiser
        generator = torch.Generator().manual_seed(settings.seed * 7_000_003 + self.iteration)
        rows = torch.randint(len(self.states), (32,), generator=generator)
        steps = torch.randint(settings.steps, (32,), generator=generator)
        ends = torch.full_like(steps, settings.steps) if settings.consistent else steps + 1
        states, targets = self.states[rows, steps].float(), self.states[rows, ends].float()
        loss = self.landing.loss(states, targets, steps, ends, {name: ids[rows] for name, ids in self.ids.items()})
        rate = settings.learning_rate * (1 - self.iteration / settings.iterations)
        for group in self.optimizer.param_groups:
            group["lr"] = max(rate, 1e-5)
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(denoiser.parameters(), 1.0)
        self.optimizer.step()
        self.iteration += 1
        with torch.no_grad():
            for name, value in denoiser.state_dict().items():
                self.average[name].lerp_(value, 1 - settings.average)
        return float(loss.item())

    def save(self) -> None:
        """Write checkpoint and diffusers folder, each to a temporary name first."""
        denoiser = self.landing.denoiser
        state = {
            "denoiser": denoiser.state_dict(), "average": self.average, "optimizer": self.optimizer.state_dict(),
            "iteration": self.iteration, "settings": asdict(self.settings),
        }  # fmt: skip
        torch.save(state, self.folder / "checkpoint.tmp")
        os.replace(self.folder / "checkpoint.tmp", self.folder / "checkpoint.pt")
        export_model(self.pipe, denoiser, self.average, self.landing.text_encoders, self.folder / "model")


def distil(model: Path, work: Path, settings: Distillation, save_every: int = 100) -> Path:
    """Collect trajectories, train the student in `work`, and return its diffusers folder."""
    shards = collect(load_pipeline(model), work / "trajectories", settings)
    student = Student(load_pipeline(settings.start or model), shards, work, settings)
    losses: list[float] = []
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
    parser.add_argument("--model", type=Path, required=True, help="the teacher: embedded model or diffusers folder")
    parser.add_argument(
        "--work", type=Path, required=True, help="folder for trajectories, checkpoints and the student"
    )
    for name, default in asdict(Distillation()).items():
        option = f"--{name.replace('_', '-')}"
        if isinstance(default, bool):
            parser.add_argument(option, action=argparse.BooleanOptionalAction, default=default)
        else:
            parser.add_argument(option, type=type(default), default=default)
    given = vars(parser.parse_args())
    distil(given.pop("model"), given.pop("work"), Distillation(**given))


if __name__ == "__main__":
    main()
