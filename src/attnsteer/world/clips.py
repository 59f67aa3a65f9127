"""Clips of the shapes world: one or two objects that stand still, move in a straight line, or flicker."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from random import Random

from jaxtyping import Float
from torch import Tensor

from attnsteer.world.render import render
from attnsteer.world.scene import ATTRIBUTE_SHARES, ATTRIBUTES, COLOURS, RADIUS_RANGE, SHAPES, Scene, Shape

FRAMES = 9
"""Length of the training clips."""
SIDE = 24
"""Their width and height in pixels."""
DIRECTIONS: dict[str, tuple[int, int]] = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
"""Unit vectors of the motions; x grows to the right, y downwards."""
SPEED_RANGE = (0.03, 0.05)
"""Of a moving object: fractions of the side per frame."""
STILL = 0.3
"""Share of objects that stand still; the others move in the four directions equally often."""
FLICKERING = 0.25
"""Share of objects that are there in every other frame only."""
ATTRIBUTED = 0.35
"""Share of objects that are outlined or blurred."""
TWO_OBJECTS = 0.25
"""Share of training clips with two objects; the others hold one."""
GAP = 0.06
"""Least distance between the edges of two objects, as a fraction of the side."""


@dataclass(frozen=True)
class Actor:
    """An object of a clip.

    Attributes:
        shape: What it looks like, and its place in the first frame.
        direction: One of `DIRECTIONS`, or None if it stands still.
        speed: Fractions of the side per frame.
        hidden: None, or for a flickering object the parity of the frames in which it is not there (0 or 1).
    """

    shape: Shape
    direction: str | None = None
    speed: float = 0.0
    hidden: int | None = None

    def __post_init__(self) -> None:
        if self.direction is not None and self.direction not in DIRECTIONS:
            raise ValueError(f"direction must be None or one of {', '.join(DIRECTIONS)}, got {self.direction!r}")
        if self.hidden not in (None, 0, 1):
            raise ValueError(f"hidden must be None, 0 or 1, got {self.hidden!r}")

    @property
    def flickering(self) -> bool:
        """Whether it is there in every other frame only."""
        return self.hidden is not None

    def at(self, frame: int) -> Shape:
        """The object at its place in a frame, counted from 0."""
        x, y = DIRECTIONS[self.direction] if self.direction else (0, 0)
        way = self.speed * frame
        return replace(self.shape, x=self.shape.x + way * x, y=self.shape.y + way * y)


Clip = tuple[Actor, ...]


def scenes(clip: Clip, frames: int) -> list[Scene]:
    """What each frame shows."""
    return [tuple(a.at(frame) for a in clip if a.hidden != frame % 2) for frame in range(frames)]


def render_clips(clips: Sequence[Clip], frames: int, size: int) -> Float[Tensor, "clips frames 3 size size"]:
    """Clips in [0, 1], `size` pixels wide and high."""
    return render([scene for clip in clips for scene in scenes(clip, frames)], size).unflatten(0, (-1, frames))


def random_clip(random: Random, objects: int, frames: int = FRAMES) -> Clip:
    """Draw a clip of one or two objects of different colours that stay inside the picture and never touch.

    Raises: ValueError for another number of objects.
    """
    if objects not in (1, 2):
        raise ValueError(f"a clip holds 1 or 2 objects, got {objects}")
    colours = random.sample(list(COLOURS), objects)
    while True:
        clip = tuple(_random_actor(random, colour, frames) for colour in colours)
        if objects == 1 or all(_apart(clip[0].at(frame), clip[1].at(frame)) for frame in range(frames)):
            return clip


def training_clip(random: Random, frames: int = FRAMES) -> Clip:
    """One draw of the training distribution."""
    return random_clip(random, 2 if random.random() < TWO_OBJECTS else 1, frames)


def _random_actor(random: Random, colour: str, frames: int) -> Actor:
    attribute = random.choices(ATTRIBUTES, ATTRIBUTE_SHARES)[0] if random.random() < ATTRIBUTED else None
    radius = random.uniform(*RADIUS_RANGE)
    low, high = radius + 0.02, 0.98 - radius
    direction = None if random.random() < STILL else random.choice(list(DIRECTIONS))
    speed = random.uniform(*SPEED_RANGE) if direction else 0.0
    start = []
    for along in DIRECTIONS[direction] if direction else (0, 0):
        way = speed * (frames - 1) * along
        start.append(random.uniform(low - min(way, 0.0), high - max(way, 0.0)))
    hidden = random.choice((0, 1)) if random.random() < FLICKERING else None
    shape = Shape(random.choice(SHAPES), colour, start[0], start[1], radius, attribute)
    return Actor(shape, direction, speed, hidden)


def _apart(first: Shape, second: Shape) -> bool:
    reach = first.radius + second.radius + GAP
    return (first.x - second.x) ** 2 + (first.y - second.y) ** 2 > reach * reach
