"""What claims on video models compare clips with: rendered ones of what was asked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from random import Random
from typing import Final

from attnsteer.world.clip_captions import FLICKER_WORD, MOVING_WORD, STILL_WORD
from attnsteer.world.clips import Actor, Clip, random_clip

CLIP_SUITE: Final = "shapes-clip-negatives"


def wanted_clips(records: Sequence[Mapping[str, object]], each: int = 4) -> list[Clip]:
    """Clips such as the training clips, of what each prompt asks for, without what is unwanted in it."""
    random = Random("claims-wanted-clips")
    return [_clip(random, record["item"]["asked"]) for record in records for _ in range(each)]  # type: ignore[index]


def _clip(random: Random, asked: Mapping[str, object]) -> Clip:
    named = {asked["subject"], *(asked[name] for name in ("colour", "motion") if asked[name] is not None)}
    while True:
        clip = random_clip(random, 1)
        words = _words(clip[0])
        if named <= words and asked["unwanted"] not in words:
            return clip


def _words(actor: Actor) -> set[str | None]:
    """All that can be said of an actor."""
    motion = {STILL_WORD} if actor.direction is None else {MOVING_WORD, f"{MOVING_WORD} {actor.direction}"}
    flicker = {FLICKER_WORD} if actor.flickering else set()
    return {actor.shape.shape, actor.shape.colour, actor.shape.attribute, *motion, *flicker}
