"""The colours of every sheet, in one place, as (red, green, blue) in 0..255."""

from typing import Final

Colour = tuple[int, int, int]

PAPER: Final[Colour] = (255, 255, 255)
INK: Final[Colour] = (24, 28, 35)
MUTED: Final[Colour] = (104, 112, 125)
HAIRLINE: Final[Colour] = (222, 226, 232)

GOOD: Final[Colour] = (21, 122, 65)
BAD: Final[Colour] = (190, 38, 51)
NEUTRAL: Final[Colour] = (84, 92, 106)

RELATION: Final[Colour] = (93, 53, 177)
OBJECTS: Final[tuple[Colour, ...]] = (
    (24, 95, 216),
    (207, 92, 10),
    (14, 125, 120),
    (176, 40, 120),
    (120, 104, 12),
)


def object_colour(index: int) -> Colour:
    """Return the colour that stands for the object number `index` (0-based; the list repeats) on a sheet."""
    return OBJECTS[index % len(OBJECTS)]


def tint(colour: Colour, strength: float = 0.12) -> Colour:
    """Return `colour` thinned with white: `strength` 1 is the colour itself, 0 is white."""
    red, green, blue = (round(255 + (channel - 255) * strength) for channel in colour)
    return red, green, blue
