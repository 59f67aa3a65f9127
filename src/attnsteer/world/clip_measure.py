"""What the embedded video model can do, with and without guidance: `python -m attnsteer.world.clip_measure`.

Prompts and seeds are drawn from ranges of their own, never used for training. Every share comes with its Wilson 95 %
interval, every mean with its bootstrap interval. Whole clips are judged by the exact clip detector. Settings that are
not given are those of the model's card.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from random import Random
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from attnsteer.compare.models import find_model, loading_bars
from attnsteer.evaluate.statistics import Estimate, Share, mean_of
from attnsteer.world.blocks import SCALE
from attnsteer.world.calls import call_keywords
from attnsteer.world.cards import CARDS
from attnsteer.world.clip_captions import FLICKER_WORD, MOVING_WORD, STILL_WORD, clip_phrase
from attnsteer.world.clip_detect import Track, consistency, detect_clips, shows
from attnsteer.world.clips import FRAMES, SIDE, Actor, random_clip
from attnsteer.world.models import VIDEO_MODEL
from attnsteer.world.scene import ATTRIBUTES, COLOURS, SHAPES
from attnsteer.world.video_autoencoder import unpack_frames

FIRST_SEED = 9_000_000
BATCH = 32
UNWANTED = (*COLOURS, *ATTRIBUTES, FLICKER_WORD, MOVING_WORD, STILL_WORD)
"""Negative prompts that the figures are taken for."""


@dataclass(frozen=True)
class Sampling:
    """How clips are drawn.

    Attributes:
        steps: Denoising steps, >= 1.
        guidance_scale: Of classifier-free guidance; 1 turns it off.
        size: Side of the clips in latent pixels.
        frames: Of each clip, 1 + 4 k.
    """

    steps: int = 12
    guidance_scale: float = 1.0
    size: int = SIDE
    frames: int = FRAMES


@dataclass(frozen=True)
class Mean:
    """A mean over clips.

    Attributes:
        name: What is averaged.
        values: One for each clip.
    """

    name: str
    values: Sequence[float]

    @property
    def estimate(self) -> Estimate:
        """The mean with its bootstrap interval at 95 %."""
        return mean_of(self.values)

    def __str__(self) -> str:
        found = self.estimate
        return f"{self.name:58s} {found.value:6.3f}  [{found.low:.3f}, {found.high:.3f}]  {found.of}"


def load_video_pipeline(model: str | Path) -> Any:
    """A stock WanPipeline from an embedded model's name or from a folder, without progress bars."""
    from diffusers import WanPipeline

    with loading_bars(False):
        pipe = WanPipeline.from_pretrained(find_model(str(model)).location)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def draw_clips(
    generate: Callable[..., Any],
    prompts: Sequence[str],
    sampling: Sampling,
    negative_prompt: str | None = None,
    **keywords: Any,
) -> Float[Tensor, "prompts frames 3 size size"]:
    """One clip per prompt, values in [0, 1], one pixel for each block of the video; clip i has seed FIRST_SEED + i.

    `negative_prompt` is CFG's, the same for all; `generate` is a WanPipeline or a guided one.
    """
    made, side = [], SCALE * sampling.size
    for first in range(0, len(prompts), BATCH):
        chunk = list(prompts[first : first + BATCH])
        call = call_keywords(generate, len(chunk), sampling.steps, sampling.guidance_scale, negative_prompt)
        call |= {"height": side, "width": side, "num_frames": sampling.frames, **keywords}
        generators = [torch.Generator().manual_seed(FIRST_SEED + first + i) for i in range(len(chunk))]
        latents = generate(chunk, generator=generators, output_type="latent", **call).frames
        made.append((unpack_frames(latents) / 2 + 0.5).clamp(0, 1))
    return torch.cat(made)


def matches(track: Track, actor: Actor) -> bool:
    """Whether a track has the colour and shape of an actor."""
    return track.recognised and (track.colour, track.shape) == (actor.shape.colour, actor.shape.shape)


def base_clip_figures(pipe: Any, count: int, sampling: Sampling) -> list[Share]:
    """What the model does by itself: single objects with every trait named, and pairs."""
    random = Random("held-out-clips-1")
    actors = [random_clip(random, 1)[0] for _ in range(count)]
    found = detect_clips(draw_clips(pipe, [clip_phrase(actor) for actor in actors], sampling))
    hits = [
        next((track for track in tracks if matches(track, actor)), None)
        for actor, tracks in zip(actors, found, strict=True)
    ]
    rows = [(actor, track) for actor, track in zip(actors, hits, strict=True) if track is not None]
    pairs = [random_clip(random, 2) for _ in range(count)]
    texts = [f"{clip_phrase(a)} and {clip_phrase(b)}" for a, b in pairs]
    both = [
        all(any(matches(track, actor) for track in tracks) for actor in clip)
        for clip, tracks in zip(pairs, detect_clips(draw_clips(pipe, texts, sampling)), strict=True)
    ]
    there = len(rows)
    return [
        Share("single object: colour and shape right", there, count),
        Share(
            "single object: motion right where it is there", sum(a.direction == t.direction for a, t in rows), there
        ),
        Share(
            "single object: flicker right where it is there", sum(a.flickering == t.flickering for a, t in rows), there
        ),
        Share(
            "single object: attribute right where there", sum(a.shape.attribute == t.attribute for a, t in rows), there
        ),
        Share("two objects: both right", sum(both), count),
    ]


def negative_clip_figures(
    pipe: Any, count: int, sampling: Sampling, nag: Any, cfg_scale: float, unwanted: Sequence[str] = UNWANTED
) -> list[Share | Mean]:
    """How often an unwanted trait shows in a clip without guidance, with CFG's negative prompt, and with NAG's.

    NAG runs without CFG; `cfg_scale` is that of the CFG runs. At the end stands each method's consistency, the mean
    over all its clips.
    """
    from attnsteer.pipeline.guided import guide

    guided = guide(pipe, nag)
    prompts = [f"a {SHAPES[i % len(SHAPES)]}" for i in range(count)]
    alone, with_cfg = replace(sampling, guidance_scale=1.0), replace(sampling, guidance_scale=cfg_scale)
    plain = detect_clips(draw_clips(pipe, prompts, alone))
    lines: list[Share | Mean] = []
    cfg = f"CFG {cfg_scale:g}"
    steady: dict[str, list[float]] = {"unguided": [consistency(tracks) for tracks in plain], cfg: [], "NAG": []}
    for trait in unwanted:
        runs = {
            "unguided": plain,
            cfg: detect_clips(draw_clips(pipe, prompts, with_cfg, negative_prompt=trait)),
            "NAG": detect_clips(draw_clips(guided, prompts, alone, nag_negative_prompt=trait)),
        }
        for name, found in runs.items():
            kept = [any(t.recognised and t.shape in p for t in ts) for p, ts in zip(prompts, found, strict=True)]
            lines += [
                Share(f"{name}: {trait} shows", sum(shows(tracks, trait) for tracks in found), count),
                Share(f"{name}: object kept ({trait})", sum(kept), count),
            ]
            if found is not plain:
                steady[name] += [consistency(tracks) for tracks in found]
    return [*lines, *(Mean(f"{name}: consistency", values) for name, values in steady.items())]


def row_of(line: Share | Mean) -> dict[str, Any]:
    """A figure as `attnsteer.world.publish` takes it, plain JSON types."""
    if isinstance(line, Share):
        return {**asdict(line), "interval": line.interval}
    found = line.estimate
    return {"name": line.name, "value": found.value, "of": found.of, "interval": [found.low, found.high]}


def advice(model: str) -> Mapping[str, Any]:
    """The settings of a model's card, or those of the embedded video model where the folder has none yet."""
    return find_model(model).defaults or CARDS[VIDEO_MODEL].defaults


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    from attnsteer.negative.nag import NAG

    given = _parser().parse_args(arguments)
    advised = advice(given.model)
    scale, nag_scale = advised["guidance_scale"], advised["nag_scale"]
    sampling = Sampling(
        given.steps or int(advised["steps"]), scale if given.guidance_scale is None else given.guidance_scale,
        given.size, given.frames,
    )  # fmt: skip
    pipe = load_video_pipeline(given.model)
    lines: list[Share | Mean] = []
    if "base" in given.parts:
        lines += base_clip_figures(pipe, given.count, sampling)
    if "negative" in given.parts:
        nag = NAG(scale=nag_scale if given.nag_scale is None else given.nag_scale)
        cfg_scale = scale if given.cfg_scale is None else given.cfg_scale
        lines += negative_clip_figures(pipe, given.count, sampling, nag, cfg_scale, given.unwanted)
    sys.stdout.write("".join(f"{line}\n" for line in lines))
    if given.output:
        given.output.write_text(json.dumps([row_of(line) for line in lines], indent=2) + "\n")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=VIDEO_MODEL, help="embedded model or diffusers folder")
    parser.add_argument("--count", type=int, default=48, help="clips per figure")
    parser.add_argument("--steps", type=int, help="default: as the model's card advises")
    parser.add_argument("--guidance-scale", type=float, help="of the base figures; likewise")
    parser.add_argument("--cfg-scale", type=float, help="of CFG's negative prompt; likewise")
    parser.add_argument("--nag-scale", type=float, help="likewise")
    parser.add_argument("--size", type=int, default=Sampling.size, help="side of the clips in latent pixels")
    parser.add_argument("--frames", type=int, default=Sampling.frames, help="of each clip, 1 + 4 k")
    parser.add_argument("--unwanted", nargs="+", default=list(UNWANTED), help="negative prompts")
    parser.add_argument("--parts", nargs="+", choices=("base", "negative"), default=["base", "negative"])
    parser.add_argument("--output", type=Path, help="also write the figures as JSON")
    return parser


if __name__ == "__main__":
    main()
