"""What a picture of the shapes world shows: coloured shapes at places, some of them outlined or blurred."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

SHAPES = ("circle", "square", "triangle")
COLOURS: dict[str, tuple[float, float, float]] = {
    "red": (0.88, 0.13, 0.13),
    "green": (0.08, 0.60, 0.22),
    "blue": (0.13, 0.27, 0.90),
    "yellow": (0.97, 0.78, 0.05),
}
ATTRIBUTES = ("outline", "blurry")
ATTRIBUTE_SHARES = (0.4, 0.6)
"""How often an object with an attribute has which: samplers prefer sharp objects, so blurred ones are drawn more."""
BACKGROUND = (0.94, 0.94, 0.92)
RELATIONS = ("to the left of", "to the right of", "above", "below")

RADIUS_RANGE = (0.122, 0.155)
DIRECTION_COSINE = 0.5
"""A relation holds when its axis carries more than this share of the offset (GenEval's rule)."""


@dataclass(frozen=True)
class Shape:
    """One object. Places and sizes are fractions of the picture's side; x grows to the right, y downwards."""

    shape: str
    colour: str
    x: float
    y: float
    radius: float
    attribute: str | None = None

    def __post_init__(self) -> None:
        if self.shape not in SHAPES:
            raise ValueError(f"shape must be one of {', '.join(SHAPES)}, got {self.shape!r}")
        if self.colour not in COLOURS:
            raise ValueError(f"colour must be one of {', '.join(COLOURS)}, got {self.colour!r}")
        if self.attribute is not None and self.attribute not in ATTRIBUTES:
            raise ValueError(f"attribute must be None or one of {', '.join(ATTRIBUTES)}, got {self.attribute!r}")


Scene = tuple[Shape, ...]


def relations_between(subject: Shape, reference: Shape) -> set[str]:
    """Which of `RELATIONS` hold for subject and reference; two of them on a diagonal, none when they coincide.

    With d the offset of the centres and |d| its length, "to the left of" holds when -d_x / |d| > 1/2, and so on.
    Source: Ghosh et al. 2023, GenEval, arXiv:2310.11513 (its dead zone is unnecessary: our objects do not overlap).
    """
    dx, dy = subject.x - reference.x, subject.y - reference.y
    length = (dx * dx + dy * dy) ** 0.5
    if length < 1e-6:
        return set()
    directions = zip(RELATIONS, (-dx, dx, -dy, dy), strict=True)
    return {name for name, along in directions if along / length > DIRECTION_COSINE}


def random_scene(random: Random, objects: int, attribute_probability: float = 0.0) -> Scene:
    """Draw a scene of `objects` shapes (1 to 4) with different colours that do not touch each other.

    `attribute_probability` is the chance, for each object, to be outlined or blurred (0 to 1).
    """
    if not 1 <= objects <= len(COLOURS):
        raise ValueError(f"a scene holds 1 to {len(COLOURS)} objects, got {objects}")
    colours = random.sample(list(COLOURS), objects)
    while True:
        scene: list[Shape] = []
        for colour in colours:
            attribute = None
            if random.random() < attribute_probability:
                attribute = random.choices(ATTRIBUTES, ATTRIBUTE_SHARES)[0]
            radius = random.uniform(*RADIUS_RANGE)
            low, high = radius + 0.02, 0.98 - radius
            shape = random.choice(SHAPES)
            for _ in range(30):
                place = Shape(shape, colour, random.uniform(low, high), random.uniform(low, high), radius, attribute)
                if all(_apart(place, other) for other in scene):
                    scene.append(place)
                    break
        if len(scene) == objects:
            return tuple(scene)


def _apart(first: Shape, second: Shape, gap: float = 0.06) -> bool:
    reach = first.radius + second.radius + gap
    return (first.x - second.x) ** 2 + (first.y - second.y) ** 2 > reach * reach
