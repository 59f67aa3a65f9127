"""What an embedded model can do, with and without guidance: `python -m attnsteer.world.measure --model shapes-unet`.

Prompts and seeds are drawn from ranges of their own, never used for training. Every share comes with its
Wilson 95 % interval. Pictures are judged by the exact detector.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from random import Random
from typing import Any

import torch
from torch import Tensor

from attnsteer.compare.models import find_model, loading_bars
from attnsteer.evaluate.statistics import Share
from attnsteer.world.calls import call_keywords, draws_clips
from attnsteer.world.captions import phrase
from attnsteer.world.detect import Detection, detect
from attnsteer.world.models import embedded_models, model_folder
from attnsteer.world.scene import ATTRIBUTES, COLOURS, RELATIONS, SHAPES, Scene, Shape, random_scene, relations_between

FIRST_SEED = 8_000_000
BATCH = 48
Generate = Callable[..., Any]


@dataclass(frozen=True)
class Pairs:
    """Prompts that relate two objects, with the scenes that they describe."""

    prompts: list[str]
    scenes: list[Scene]
    words: list[str]


@dataclass(frozen=True)
class Generation:
    """A model with the settings that its card advises.

    Attributes:
        pipe: The stock pipeline, without progress bars.
        steps: Denoising steps.
        guidance_scale: Of classifier-free guidance, under whatever name the pipeline has it; 1 is none.
        classifier: Folder of the model's relation classifier, if it has one.
        step_counts: All numbers of steps that the model serves.
    """

    pipe: Any
    steps: int
    guidance_scale: float
    classifier: str | None
    step_counts: tuple[int, ...] = ()

    @classmethod
    def of(cls, model: str | Path) -> Generation:
        """Load an embedded model by its name, or any diffusers folder; 20 steps where there is no card."""
        source = find_model(str(model))
        own = source.defaults
        scale = own.get("extra", {}).get("true_cfg_scale", own.get("guidance_scale", 1.0))
        steps = int(own.get("steps", 20))
        counts = sorted(source.card.get("step_counts", [steps]), reverse=True)
        return cls(load_pipeline(model), steps, float(scale), source.classifier, tuple(counts))

    def pictures(self, prompts: Sequence[str], first_seed: int, generate: Generate | None = None) -> Tensor:
        """One picture per prompt with the advised settings, by the pipeline or by a guided one of it."""
        return pictures(generate or self.pipe, prompts, self.steps, self.guidance_scale, first_seed=first_seed)


def load_pipeline(model: str | Path) -> Any:
    """The stock pipeline of an embedded model of pictures, by its name or folder, without progress bars.

    Raises: ValueError if it draws clips, which nothing here can judge.
    """
    from diffusers import DiffusionPipeline

    folder = model_folder(str(model)) if str(model) in embedded_models() else Path(model)
    with loading_bars(False):
        pipe = DiffusionPipeline.from_pretrained(folder)
    if draws_clips(pipe):
        raise ValueError(f"{model} draws clips, this is for pictures; clips: python -m attnsteer.world.clip_measure")
    pipe.set_progress_bar_config(disable=True)
    return pipe


def find(wanted: Shape, found: Sequence[Detection]) -> Shape | None:
    """The largest recognised object of the wanted colour and shape."""
    matches = (
        d.shape for d in found if d.recognised and (d.shape.colour, d.shape.shape) == (wanted.colour, wanted.shape)
    )
    return next(matches, None)


def find_pair(scene: Scene, found: Sequence[Detection]) -> tuple[Shape, Shape] | None:
    """Both objects of a scene as the detector sees them; None if one is missing."""
    first, second = find(scene[0], found), find(scene[1], found)
    return None if first is None or second is None else (first, second)


def pairs(count: int, seed: int = 78) -> Pairs:
    """Held-out prompts such as "a red circle above a blue square", relations in equal numbers."""
    random = Random(f"held-out-{seed}")
    scenes = [random_scene(random, 2) for _ in range(count)]
    words = [RELATIONS[i % len(RELATIONS)] for i in range(count)]
    return Pairs([f"{phrase(a)} {w} {phrase(b)}" for (a, b), w in zip(scenes, words, strict=True)], scenes, words)


def pictures(
    generate: Generate,
    prompts: Sequence[str],
    steps: int,
    guidance_scale: float,
    negative_prompt: str | None = None,
    first_seed: int = FIRST_SEED,
    **keywords: Any,
) -> Tensor:
    """One picture per prompt, (prompts, 3, size, size) in [0, 1]; prompt i has seed first_seed + i.

    `guidance_scale` and `negative_prompt` are those of classifier-free guidance, the same for all.
    """
    made = []
    for first in range(0, len(prompts), BATCH):
        chunk = list(prompts[first : first + BATCH])
        call = call_keywords(generate, len(chunk), steps, guidance_scale, negative_prompt)
        seeds = [first_seed + first + i for i in range(len(chunk))]
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        made.append(generate(chunk, generator=generators, output_type="pt", **call, **keywords).images)
    return torch.cat(made)


def base_figures(pipe: Any, count: int, steps: int, guidance_scale: float, where: str = "") -> list[Share]:
    """What the model does by itself: single objects, pairs, relations; `where` stands before the names."""
    random = Random("held-out-singles-2")
    singles = [random_scene(random, 1)[0] for _ in range(count)]
    found = detect(pictures(pipe, [phrase(s) for s in singles], steps, guidance_scale))
    right = sum(find(s, f) is not None for s, f in zip(singles, found, strict=True))
    alone = sum(find(s, f) is not None and len(f) == 1 for s, f in zip(singles, found, strict=True))
    shares = [
        Share("single object: colour and shape right", right, count),
        Share("single object: right, and nothing else in the picture", alone, count),
    ]
    asked = pairs(count)
    shares += relation_figures(asked, detect(pictures(pipe, asked.prompts, steps, guidance_scale)), "unsteered")
    return [replace(share, name=f"{where}{share.name}") for share in shares]


def relation_figures(asked: Pairs, found: Sequence[Sequence[Detection]], name: str) -> list[Share]:
    """Presence of both objects, and the relation, of all pictures and of those with both objects."""
    both = [find_pair(scene, seen) for scene, seen in zip(asked.scenes, found, strict=True)]
    present = [pair is not None for pair in both]
    right = [
        pair is not None and word in relations_between(*pair) for pair, word in zip(both, asked.words, strict=True)
    ]
    return [
        Share(f"two objects, {name}: both right", sum(present), len(present)),
        Share(f"two objects, {name}: relation right (of all)", sum(right), len(right)),
        Share(f"two objects, {name}: relation right where both are present", sum(right), sum(present)),
    ]


def steering_figures(pipe: Any, method: Any, name: str, count: int, steps: int, guidance_scale: float) -> list[Any]:
    """Relations with steering on the same prompts and seeds as without, and what it costs."""
    from attnsteer.pipeline.guided import guide

    asked = pairs(count)
    start = time.perf_counter()
    pictures(pipe, asked.prompts[:BATCH], steps, guidance_scale)
    plain = time.perf_counter() - start
    guided = guide(pipe, method)
    start = time.perf_counter()
    made = pictures(guided, asked.prompts[:BATCH], steps, guidance_scale)
    steered = time.perf_counter() - start
    if count > BATCH:
        made = pictures(guided, asked.prompts, steps, guidance_scale)
    return [
        *relation_figures(asked, detect(made), name),
        f"{name}: {steered / plain:.2f} times the time of a plain batch",
    ]


def negative_figures(
    pipe: Any,
    count: int,
    steps: int,
    guidance_scale: float,
    nag: Any,
    attributes: Sequence[str] = (*COLOURS, *ATTRIBUTES),
) -> list[Share]:
    """How often an unwanted attribute shows without any guidance, with CFG's negative prompt, and with NAG's.

    NAG runs without CFG, as it does in few-step models; `guidance_scale` is that of the CFG runs.
    """
    from attnsteer.pipeline.guided import guide

    guided = guide(pipe, nag)
    prompts = [f"a {SHAPES[i % len(SHAPES)]}" for i in range(count)]
    plain = detect(pictures(pipe, prompts, steps, 1.0))
    shares = []
    for unwanted in attributes:
        with_cfg = pictures(pipe, prompts, steps, guidance_scale, negative_prompt=unwanted)
        runs = {
            "unguided": plain,
            f"CFG {guidance_scale:g}": detect(with_cfg),
            "NAG": detect(pictures(guided, prompts, steps, 1.0, nag_negative_prompt=unwanted)),
        }
        for name, found in runs.items():
            shows = sum(any(shows_unwanted(d, unwanted) for d in seen) for seen in found)
            kept = sum(_shows(prompt, seen) for prompt, seen in zip(prompts, found, strict=True))
            shares += [
                Share(f"{_in_words(steps)}, {name}: {unwanted} shows", shows, count),
                Share(f"{_in_words(steps)}, {name}: object kept ({unwanted})", kept, count),
            ]
    return shares


def shows_unwanted(detection: Detection, unwanted: str) -> bool:
    """Whether an object has a colour or an attribute; that of an unrecognised shape is a guess and does not count."""
    return unwanted == detection.shape.colour or (detection.recognised and unwanted == detection.shape.attribute)


def _in_words(steps: int) -> str:
    return f"{steps} step{'s' if steps > 1 else ''}"


def _shows(prompt: str, found: Sequence[Detection]) -> bool:
    """Whether a recognised object of the prompt's shape is there."""
    return any(d.recognised and d.shape.shape in prompt for d in found)


def main() -> None:
    """Command line."""
    from attnsteer.negative.nag import NAG
    from attnsteer.steering.descent import PublishedRule
    from attnsteer.steering.learned import LearnedSteering

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="shapes-unet", help="embedded model or diffusers folder")
    parser.add_argument("--count", type=int, default=192, help="pictures per figure")
    parser.add_argument("--steps", type=int, help="default: all that the model's card names")
    parser.add_argument("--guidance-scale", type=float, help="likewise")
    parser.add_argument("--cfg-scale", type=float, default=1.5, help="of CFG's negative prompt")
    parser.add_argument("--nag-scale", type=float, help="likewise")
    parser.add_argument(
        "--negative-steps", type=int, nargs="+", help="steps of the negative figures (default: as --steps)"
    )
    parser.add_argument("--attributes", nargs="+", default=[*COLOURS, *ATTRIBUTES], help="of the negative figures")
    parser.add_argument("--parts", nargs="+", default=["base", "steering", "negative"])
    parser.add_argument("--output", type=Path, help="also write the figures as JSON")
    given = parser.parse_args()
    try:
        model = Generation.of(given.model)
    except ValueError as error:
        parser.error(str(error))
    pipe, steps = model.pipe, given.steps or model.steps
    counts = [given.steps] if given.steps else list(model.step_counts)
    scale = model.guidance_scale if given.guidance_scale is None else given.guidance_scale
    lines: list[Any] = []
    if "base" in given.parts:
        for number in counts:
            where = f"{_in_words(number)}, " if len(counts) > 1 else ""
            lines += _shown(base_figures(pipe, given.count, number, scale, where))
    if "steering" in given.parts:
        if model.classifier is None:
            parser.error(f"{given.model} has no relation classifier: leave the part 'steering' out")
        for name, settings, count in (
            ("lean", {}, given.count),
            ("published rule", {"rule": PublishedRule(step_size=5.0)}, min(given.count, BATCH)),
        ):
            method = LearnedSteering.from_pretrained(str(model.classifier), **settings)
            lines += _shown(steering_figures(pipe, method, name, count, steps, scale))
    if "negative" in given.parts:
        advised = find_model(given.model).defaults.get("nag_scale")
        nag = NAG(scale=advised if given.nag_scale is None else given.nag_scale)
        for number in given.negative_steps or counts:
            lines += _shown(negative_figures(pipe, given.count, number, given.cfg_scale, nag, given.attributes))
    if given.output:
        rows = [line if isinstance(line, str) else {**asdict(line), "interval": line.interval} for line in lines]
        given.output.write_text(json.dumps(rows, indent=2) + "\n")


def _shown(lines: list[Any]) -> list[Any]:
    for line in lines:
        sys.stdout.write(f"{line}\n")
    sys.stdout.flush()
    return lines


if __name__ == "__main__":
    main()
