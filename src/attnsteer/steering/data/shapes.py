"""Maps of the shapes world: rendered pictures under noise, and the model's own samples under its exact detector."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch

from attnsteer.families import family_of
from attnsteer.install import record_maps
from attnsteer.pipeline.conditioning import captured
from attnsteer.pipeline.guided import denoisers_of
from attnsteer.steering.data.collected import Collected, named
from attnsteer.steering.recording import Recording
from attnsteer.texts.inject import text_length


def shapes_maps(pipe: Any, item: Mapping[str, Any], recording: Recording, guidance_scale: float | None) -> Collected:
    """A batch of the shapes world.

    Args:
        pipe: Embedded model.
        item: "part" ("rendered" or "sampled"), "seed", and "size" in pictures.
        recording: Which maps.
        guidance_scale: Of sampling; None is the world's own.
    """
    from attnsteer.world.scene import RELATIONS
    from attnsteer.world.steering import Collection, rendered_batch, sampled_batch

    if item["part"] == "rendered":
        batch = rendered_batch(pipe, recording, item["seed"], item["size"])
    else:
        own = Collection(batch=item["size"])
        own = own if guidance_scale is None else replace(own, guidance_scale=guidance_scale)
        batch = sampled_batch(pipe, recording, item["seed"], own)
    channels, length = recorded_layers(pipe, recording)
    return Collected(batch, channels, length, relations=tuple(RELATIONS))


def recorded_layers(pipe: Any, recording: Recording) -> tuple[tuple[tuple[str, int, int], ...], int]:
    """What a manifest needs to know of the layers that give maps, and the text's length: from one call of a denoiser.

    Args:
        pipe: Embedded model.
        recording: Which maps.

    Returns: Name, number of channels and place of each layer, in the order of the maps' channels; text tokens.
    """
    from attnsteer.world.calls import call_keywords

    denoiser = getattr(pipe, denoisers_of(pipe)[0])
    arguments = captured(pipe, [denoiser], {"prompt": "a square", **call_keywords(pipe, 1, 2, 1.0)})
    size, layers = recording.size, recording.layers
    with torch.no_grad(), record_maps(denoiser, [[0]], layers=layers, size=size, stop_after=bool(layers)) as recorder:
        denoiser(**arguments)
    return named(denoiser, recorder.channels), text_length(family_of(denoiser), arguments)
