"""Clips as people look at them: strips of frames, animations, and one picture for what belongs to all frames."""

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Final

import numpy as np
from PIL import Image, ImageSequence

from attnsteer.pictures.palette import PAPER

SHOWN: Final = 9
"""Most frames on a strip."""
GAP: Final = 1 / 24
"""Between the frames of a strip, as a fraction of their width."""
FRAME_MILLISECONDS: Final = 125
LEAST_SIDE: Final = 256
"""Smaller animations are enlarged by a whole factor, so that they can be seen."""


def frames_of(content: bytes) -> list[Image.Image]:
    """The frames of a picture file in RGB; a still has one."""
    with Image.open(io.BytesIO(content)) as image:
        return [frame.convert("RGB") for frame in ImageSequence.Iterator(image)]


def film_strip(frames: Sequence[Image.Image], shown: int = SHOWN) -> Image.Image:
    """Put frames side by side: all of them, or `shown` of a longer clip, evenly spread from first to last.

    Short clips must not be thinned out: every other frame of an object that flickers shows it always, or never.
    """
    count = min(shown, len(frames))
    chosen = [frames[round(number * (len(frames) - 1) / max(1, count - 1))] for number in range(count)]
    width, height = chosen[0].size
    step = width + round(GAP * width)
    strip = Image.new("RGB", ((count - 1) * step + width, height), PAPER)
    for number, frame in enumerate(chosen):
        strip.paste(frame, (number * step, 0))
    return strip


def exposure(frames: Sequence[Image.Image]) -> Image.Image:
    """The mean of the frames, as a camera with its shutter open: what moves leaves a trail, what flickers is pale."""
    values = np.stack([np.asarray(frame.convert("RGB"), dtype=np.float64) for frame in frames])
    return Image.fromarray(values.mean(0).round().astype(np.uint8))


def gif_path(picture: Path) -> Path:
    """The animation that goes with a picture file: out.png -> out.gif."""
    return picture.with_suffix(".gif")


def write_gif(frames: Sequence[Image.Image], path: Path) -> Path:
    """Write frames as an endless animation of 8 frames per second, each with the best 256 colours of its own.

    A file that exists is replaced.
    """
    factor = math.ceil(LEAST_SIDE / max(frames[0].size))
    size = frames[0].width * factor, frames[0].height * factor
    large = [frame.convert("RGB").resize(size, Image.Resampling.NEAREST) for frame in frames]
    first, *rest = (frame.quantize(256, dither=Image.Dither.NONE) for frame in large)
    first.save(path, save_all=True, append_images=rest, duration=FRAME_MILLISECONDS, loop=0)
    return path
