"""Patches of pictures, for patch distances. There are two definitions in use; a figure must name the one it used."""

from dataclasses import dataclass
from random import Random
from typing import Literal

from PIL import Image


@dataclass(frozen=True)
class PatchSource:
    """Cuts patches out of pictures.

    Attributes:
        size: Side of a patch in pixels.
        mode: "center": one crop from the middle of each picture, not resized (Lin et al. 2024, SDXL-Lightning,
            arXiv:2402.13929, uses 299). "tiled": side by side from the top left corner, without remainders. "shifted":
            tiled, and a second grid, one patch narrower and lower, that begins half a patch
            further in (Mentzer et al. 2020, HiFiC, arXiv:2006.09965, with patches of 256).
        limit: Patches per picture at most, chosen at random; None takes all.
        seed: Of that choice.

    Raises: ValueError for an unknown mode or a size or limit below 1.
    """

    size: int = 299
    mode: Literal["center", "tiled", "shifted"] = "center"
    limit: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.mode not in ("center", "tiled", "shifted"):
            raise ValueError(f"mode must be center, tiled or shifted, got {self.mode!r}")
        if self.size < 1 or (self.limit is not None and self.limit < 1):
            raise ValueError(f"size and limit must be >= 1, got {self.size} and {self.limit}")

    @property
    def name(self) -> str:
        """Names the definition, e.g. "center299"."""
        return f"{self.mode}{self.size}" + (f"x{self.limit}" if self.limit else "")

    def corners(self, width: int, height: int) -> list[tuple[int, int]]:
        """Left and top of all patches of a picture of that size.

        Raises: ValueError if no patch fits.
        """
        if min(width, height) < self.size:
            raise ValueError(
                f"a patch of {self.size} does not fit into a picture of {width} x {height}; choose a smaller size"
            )
        if self.mode == "center":
            return [((width - self.size) // 2, (height - self.size) // 2)]
        columns, rows, half = width // self.size, height // self.size, self.size // 2
        tiled = [(self.size * x, self.size * y) for y in range(rows) for x in range(columns)]
        if self.mode == "tiled":
            return tiled
        inner = [(half + self.size * x, half + self.size * y) for y in range(rows - 1) for x in range(columns - 1)]
        return tiled + inner

    def patches(self, picture: Image.Image, number: int = 0) -> list[Image.Image]:
        """Cut the patches of a picture; `number` tells pictures apart in the random choice.

        Raises: ValueError if no patch fits.
        """
        corners = self.corners(*picture.size)
        if self.limit is not None and len(corners) > self.limit:
            corners = sorted(Random(f"{self.seed}-{number}").sample(corners, self.limit))
        return [picture.crop((left, top, left + self.size, top + self.size)) for left, top in corners]
