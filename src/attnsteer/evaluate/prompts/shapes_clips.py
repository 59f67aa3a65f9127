"""Prompts for the embedded video model, each with something that must not be seen in the clip."""

from random import Random
from typing import Final

from attnsteer.evaluate.prompts.task import Task
from attnsteer.world.scene import ATTRIBUTES, COLOURS

KINDS: Final = ("colour", "look", "flickering", "moving")
"""What is unwanted: one of the colours, an attribute, or a behaviour."""


def shapes_clip_negatives(per_kind: int = 12, seed: int = 0) -> list[Task]:
    """Prompts such as "a red circle moving left", which leave open what is unwanted and name everything else.

    Where a colour is unwanted the prompt names none, and where motion is, none either; captions leave them out, too.
    """
    from attnsteer.world.clip_captions import FLICKER_WORD, MOVING_WORD, STILL_WORD, clip_phrase
    from attnsteer.world.clips import random_clip

    random, tasks = Random(f"shapes-clip-negatives-{seed}"), []
    traits = dict(zip(KINDS, (tuple(COLOURS), ATTRIBUTES, (FLICKER_WORD,), (MOVING_WORD,)), strict=True))
    for kind, words in traits.items():
        for number in range(per_kind):
            (actor,), unwanted = random_clip(random, 1), words[number % len(words)]
            named = {"colour": kind != "colour", "motion": kind != "moving"}
            motion = f"{MOVING_WORD} {actor.direction}" if actor.direction else STILL_WORD
            asked = {
                "subject": actor.shape.shape,
                "unwanted": unwanted,
                "colour": actor.shape.colour if named["colour"] else None,
                "motion": motion if named["motion"] else None,
            }
            prompt = clip_phrase(actor, **named, attribute=False, flicker=False)
            tasks.append(Task(prompt, asked, (actor.shape.shape, unwanted), kind, unwanted))
    return tasks
