"""Train an embedded text-to-image model from scratch: `python -m attnsteer.world.train --output FOLDER`.

Everything is drawn on the fly from one seed. The run is resumable: FOLDER/checkpoint.pt holds weights, averages,
optimizer and iteration, and is replaced atomically; FOLDER/log.jsonl grows by one line a minute or so; FOLDER/model is
the stock diffusers folder, rewritten at every checkpoint from the averaged weights.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import Any

import torch
from diffusers.models.attention_processor import AttnProcessor
from jaxtyping import Float, Int
from torch import Tensor
from transformers import CLIPTokenizer

from attnsteer.world.captions import random_pair
from attnsteer.world.models import UNetSize, assemble_pipeline, build_unet
from attnsteer.world.render import render
from attnsteer.world.text import build_text_encoder, build_tokenizer, tokenize, train_text_encoder


@dataclass(frozen=True)
class Training:
    """Settings of one run; they are stored in the checkpoint and must not change when it is resumed."""

    seed: int = 0
    batch: int = 32
    iterations: int = 6000
    warmup: int = 300
    learning_rate: float = 8e-4
    final_learning_rate: float = 5e-5
    average: float = 0.999
    caption_dropout: float = 0.1
    high_noise: float = 0.35
    text_iterations: int = 400


def learning_rate_at(iteration: int, settings: Training) -> float:
    """Linear warm-up, then half a cosine down to the final rate; by iteration, so a starved run keeps its plan."""
    if iteration < settings.warmup:
        return settings.learning_rate * (iteration + 1) / settings.warmup
    done = min((iteration - settings.warmup) / max(settings.iterations - settings.warmup, 1), 1.0)
    half_cosine = 0.5 * (1 + math.cos(done * math.pi))
    return settings.final_learning_rate + (settings.learning_rate - settings.final_learning_rate) * half_cosine


def draw_timesteps(batch: int, high_noise: float, generator: torch.Generator) -> Int[Tensor, " batch"]:
    """Uniform over all 1,000 steps, except that a share of `high_noise` falls into the noisiest third."""
    timesteps = torch.randint(0, 1000, (batch,), generator=generator)
    noisy = torch.randint(667, 1000, (batch,), generator=generator)
    return torch.where(torch.rand(batch, generator=generator) < high_noise, noisy, timesteps)


def denoising_loss(
    predicted: Float[Tensor, "batch 3 size size"],
    picture: Float[Tensor, "batch 3 size size"],
    alphas_cumprod: Float[Tensor, " batch"],
) -> Float[Tensor, " batch"]:
    """Squared error of the predicted picture, weighted by min(SNR + 1, 5): v-prediction's weight, truncated.

    Source: Hang et al. 2023, Min-SNR weighting, arXiv:2303.09556.
    """
    weight = (1 / (1 - alphas_cumprod).clamp(min=1e-4)).clamp(max=5.0)
    return weight * (predicted.float() - picture).square().mean((1, 2, 3))


class Run:
    """One training run in a folder: state, one step, checkpoint."""

    def __init__(self, folder: Path, settings: Training, size: UNetSize) -> None:
        """Start in `folder`, or go on from the checkpoint that lies there."""
        torch.manual_seed(settings.seed)
        self.folder, self.settings = folder, settings
        saved = folder / "model" / "tokenizer"
        self.tokenizer = CLIPTokenizer.from_pretrained(saved) if saved.is_dir() else build_tokenizer()
        self.text_encoder = build_text_encoder(self.tokenizer)
        self.unet = build_unet(size, self.text_encoder.config.hidden_size)
        # On a CPU plain matrix products train 1.6 times as fast as the fused kernel, whose backward pass is slow.
        self.unet.set_attn_processor(AttnProcessor())
        self.average = {name: value.detach().clone() for name, value in self.unet.state_dict().items()}
        self.optimizer = torch.optim.AdamW(self.unet.parameters(), lr=settings.learning_rate, weight_decay=0.01)
        self.iteration = 0
        self.pipeline = assemble_pipeline(self.unet, self.tokenizer, self.text_encoder)
        self.alphas_cumprod = self.pipeline.scheduler.alphas_cumprod
        if (folder / "checkpoint.pt").is_file():
            self._resume(torch.load(folder / "checkpoint.pt", weights_only=True))
        else:
            accuracy = train_text_encoder(self.tokenizer, self.text_encoder, settings.text_iterations, settings.seed)
            self._log(
                {"text_encoder_accuracy": round(accuracy, 4), "settings": asdict(settings), "size": asdict(size)}
            )
        # The weights are shipped in float16; training must see what users will run.
        self.text_encoder.half().float().requires_grad_(False).eval()

    def step(self) -> float:
        """One optimizer step on a fresh batch; returns the loss."""
        settings = self.settings
        random = Random(f"{settings.seed}-{self.iteration}")
        generator = torch.Generator().manual_seed(settings.seed * 1_000_003 + self.iteration)
        pairs = [random_pair(random) for _ in range(settings.batch)]
        texts = ["" if random.random() < settings.caption_dropout else text for _, text in pairs]
        picture = 2 * render([scene for scene, _ in pairs], self.unet.config.sample_size) - 1
        timesteps = draw_timesteps(settings.batch, settings.high_noise, generator)
        alphas = self.alphas_cumprod[timesteps]
        noise = torch.randn(picture.shape, generator=generator)
        noisy = alphas.sqrt()[:, None, None, None] * picture + (1 - alphas).sqrt()[:, None, None, None] * noise
        with torch.no_grad():
            states = self.text_encoder(tokenize(self.tokenizer, texts)).last_hidden_state
        with torch.autocast("cpu", torch.bfloat16):
            predicted = self.unet(noisy, timesteps, states).sample
        loss = denoising_loss(predicted, picture, alphas).mean()
        for group in self.optimizer.param_groups:
            group["lr"] = learning_rate_at(self.iteration, settings)
        self.optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.unet.parameters(), 1.0)
        self.optimizer.step()
        self.iteration += 1
        decay = min(settings.average, (1 + self.iteration) / (10 + self.iteration))
        with torch.no_grad():
            for name, value in self.unet.state_dict().items():
                self.average[name].lerp_(value, 1 - decay)
        return float(loss.item())

    def save(self) -> None:
        """Write checkpoint and diffusers folder, each to a temporary name first."""
        state = {
            "unet": self.unet.state_dict(), "average": self.average, "optimizer": self.optimizer.state_dict(),
            "text_encoder": self.text_encoder.state_dict(), "iteration": self.iteration,
            "settings": asdict(self.settings),
        }  # fmt: skip
        torch.save(state, self.folder / "checkpoint.tmp")
        os.replace(self.folder / "checkpoint.tmp", self.folder / "checkpoint.pt")
        self._export()

    def _export(self) -> None:
        fast = {name: value.clone() for name, value in self.unet.state_dict().items()}
        self.unet.load_state_dict(self.average)
        fresh, final = self.folder / "model.tmp", self.folder / "model"
        shutil.rmtree(fresh, ignore_errors=True)
        self.pipeline.to(torch.float16).save_pretrained(fresh)
        self.pipeline.to(torch.float32)
        _load_as_float32(fresh / "text_encoder" / "config.json")
        self.unet.load_state_dict(fast)
        shutil.rmtree(final, ignore_errors=True)
        os.replace(fresh, final)

    def _resume(self, state: dict[str, Any]) -> None:
        if state["settings"] != asdict(self.settings):
            raise ValueError(
                f"the run in {self.folder} was started with other settings ({state['settings']}); "
                "give the same ones or another output folder"
            )
        self.unet.load_state_dict(state["unet"])
        self.average = state["average"]
        self.optimizer.load_state_dict(state["optimizer"])
        self.text_encoder.load_state_dict(state["text_encoder"])
        self.iteration = state["iteration"]

    def _log(self, line: dict[str, Any]) -> None:
        with open(self.folder / "log.jsonl", "a") as log:
            log.write(json.dumps(line) + "\n")


def _load_as_float32(configuration: Path) -> None:
    """The weights are stored in half the space; on a CPU `from_pretrained` must still give a float32 model."""
    settings = json.loads(configuration.read_text())
    configuration.write_text(json.dumps({**settings, "dtype": "float32"}, indent=2) + "\n")


def train(folder: Path, settings: Training, size: UNetSize, save_every: int = 250) -> None:
    """Run to the last iteration of `settings`, resuming if the folder holds a checkpoint."""
    folder.mkdir(parents=True, exist_ok=True)
    run = Run(folder, settings, size)
    started, losses = time.monotonic(), list[float]()
    while run.iteration < settings.iterations:
        losses.append(run.step())
        if run.iteration % save_every == 0 or run.iteration == settings.iterations:
            run.save()
            seconds = (time.monotonic() - started) / len(losses)
            loss = sum(losses[-save_every:]) / len(losses[-save_every:])
            run._log({"iteration": run.iteration, "loss": round(loss, 5), "seconds_per_iteration": round(seconds, 3)})


def main() -> None:
    """Command line of the training."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, required=True)
    for name, default in asdict(Training()).items():
        parser.add_argument(f"--{name.replace('_', '-')}", type=type(default), default=default)
    parser.add_argument("--picture", type=int, default=UNetSize.picture, help="side of the pictures in pixels")
    parser.add_argument("--channels", type=int, nargs=3, default=UNetSize.channels)
    arguments = vars(parser.parse_args())
    size = UNetSize(picture=arguments.pop("picture"), channels=tuple(arguments.pop("channels")))
    train(arguments.pop("output"), Training(**arguments), size)


if __name__ == "__main__":
    main()
