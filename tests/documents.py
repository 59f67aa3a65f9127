"""Fenced blocks of Markdown documents, and an offline stand-in for everything that they load.

Real checkpoint ids give tiny random pipelines of the same class (`tiny.build`), which make small
pictures whatever the document asks for. Classifiers and the embedded model, where it is not installed, are
random too.
"""

import functools
import inspect
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiffusionPipeline

import attnsteer.world.models
import benchmarks
from attnsteer.steering import published_schedules
from attnsteer.steering.classifier import RelationClassifier
from attnsteer.steering.classifier_settings import ClassifierSettings
from attnsteer.steering.relations import RELATIONS
from published_network import random_checkpoint
from tiny import CALLS, build

CHECKPOINTS = {
    "black-forest-labs/FLUX.1-schnell": "flux",
    "stabilityai/stable-diffusion-3.5-large-turbo": "sd3",
    "stabilityai/stable-diffusion-xl-base-1.0": "sdxl",
    "stable-diffusion-v1-5/stable-diffusion-v1-5": "sd",
    "stabilityai/stable-diffusion-2-1-base": "sd",
    "Wan-AI/Wan2.1-T2V-1.3B-Diffusers": "wan",
}


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its text, and the line of the document where the text begins."""

    document: Path
    language: str
    text: str
    line: int

    def __str__(self) -> str:
        return f"{self.document.name}:{self.line}"

    def commands(self) -> list[tuple[str, list[str]]]:
        """Commands with the output that the block shows for them (`console`), or with none (`bash`)."""
        if self.language == "bash":
            return [(line, []) for line in self.text.splitlines() if line.strip()]
        found: list[tuple[str, list[str]]] = []
        for line in self.text.splitlines():
            if line.startswith("$ "):
                found.append((line[2:], []))
            elif line.strip():
                found[-1][1].append(line)
        return found


def blocks(document: Path) -> list[Block]:
    """All fenced blocks of a document, in order."""
    text = document.read_text("utf-8")
    fences = re.finditer(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [Block(document, f[1], f[2], text.count("\n", 0, f.start(2)) + 1) for f in fences]


def prose(document: Path) -> str:
    """The document without its fenced blocks."""
    return re.sub(r"^```.*?^```$", "", document.read_text("utf-8"), flags=re.MULTILINE | re.DOTALL)


@contextmanager
def offline(folder: Path, most_steps: int | None = None) -> Iterator[None]:
    """Within the block, documents can be followed to the letter, in `folder`, without network and GPU.

    With `most_steps`, stand-ins take no more than that, whatever is asked for.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr(DiffusionPipeline, "from_pretrained", classmethod(_from_pretrained))
        patch.setattr(DiffusionPipeline, "to", lambda pipe, *args, **kwargs: pipe)
        for name in set(CHECKPOINTS.values()):
            _shrink(type(build(name)), CALLS[name], most_steps, patch)
        short = {
            key: replace(schedule, text_length=12) for key, schedule in published_schedules.PUBLISHED_SCHEDULES.items()
        }
        patch.setattr(published_schedules, "PUBLISHED_SCHEDULES", short)
        _classifier(channels=64).save_pretrained(folder / "my-classifier")
        torch.save(random_checkpoint(table=6, orig_map_size=4), folder / "flux_schnell.pth")  # of the tiny FLUX
        benchmarks.provide(folder, patch)
        if not attnsteer.world.models.embedded_models():
            weights = folder / "weights"
            build("sd").save_pretrained(weights / "shapes-unet")
            (weights / "shapes-unet" / "attnsteer.json").write_text('{"defaults": {"steps": 4}}')
            _classifier(channels=64).save_pretrained(weights / "shapes-unet" / "steering")
            patch.setattr(attnsteer.world.models, "WEIGHTS", weights)
        yield


_stock_from_pretrained = DiffusionPipeline.from_pretrained.__func__


def _from_pretrained(cls: type, name: Any, **options: Any) -> Any:
    if Path(name).is_dir():
        pipe = _stock_from_pretrained(cls, name, **options)
        pipe.set_progress_bar_config(disable=True)
        pipe.is_stand_in = Path(name).is_relative_to(Path.cwd())
        return pipe
    if name not in CHECKPOINTS:
        raise AssertionError(f"no stand-in for {name!r}: add it to CHECKPOINTS in {Path(__file__).name}")
    pipe = build(CHECKPOINTS[name])
    assert isinstance(pipe, cls), f"{name} is loaded as {cls.__name__}, its stand-in is a {type(pipe).__name__}"
    pipe.is_stand_in = True
    return pipe


def _shrink(cls: type, sizes: dict[str, Any], most_steps: int | None, patch: pytest.MonkeyPatch) -> None:
    """Make pictures of stand-ins small, whatever is asked for; those of the embedded model stay as they are."""
    stock = cls.__call__
    small = {name: value for name, value in sizes.items() if name not in ("output_type", "num_inference_steps")}

    @functools.wraps(stock)
    def call(pipe: Any, *args: Any, **kwargs: Any) -> Any:
        bound = inspect.signature(stock).bind(pipe, *args, **kwargs)
        steps = bound.arguments.get("num_inference_steps")
        fewer = {"num_inference_steps": min(steps, most_steps)} if steps and most_steps else {}
        bound.arguments.update({**small, **fewer} if pipe.is_stand_in else {})
        return stock(*bound.args, **bound.kwargs)

    patch.setattr(cls, "__call__", call)


def _classifier(channels: int) -> RelationClassifier:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        settings = ClassifierSettings(RELATIONS, channels, map_size=8, fewer_channels=True)
        return RelationClassifier(settings)
