"""A finished picture or clip with what it cost."""

from dataclasses import dataclass
from typing import Any, Final

from PIL import Image

from attnsteer.pictures import encoded

LARGE: Final = 256
"""Pictures with a longer side are kept as JPEG instead of PNG, clips with loss."""
FRAME_MILLISECONDS: Final = 125


@dataclass(frozen=True)
class Painted:
    """A picture or clip with its cost.

    Attributes:
        frames: The frames of a clip; a picture has one.
        seed: Its seed.
        seconds: Wall time; of a batch, its share.
        calls: Forward passes of the denoiser, of whole batches.
        evaluations: See `attnsteer.evaluate.cost`; of a batch, its share.
        flops: Floating-point operations; of a batch, its share.
        iterations: Steps that steering took, of the whole batch.
    """

    frames: tuple[Image.Image, ...]
    seed: int
    seconds: float
    calls: int
    evaluations: float
    flops: int
    iterations: int = 0

    @property
    def picture(self) -> Image.Image:
        """The picture, or the middle frame of a clip."""
        return self.frames[len(self.frames) // 2]

    def result(self) -> dict[str, Any]:
        """What a record keeps of it, plain JSON types."""
        return {
            "seed": self.seed, "seconds": round(self.seconds, 4), "calls": self.calls,
            "evaluations": round(self.evaluations, 4), "flops": self.flops, "iterations": self.iterations,
        }  # fmt: skip

    def file(self, name: str) -> tuple[str, bytes]:
        """File name and content: PNG, or JPEG if it is large; of a clip, an animated WebP."""
        large = max(self.picture.size) > LARGE
        if len(self.frames) > 1:
            first, *rest = self.frames
            return f"{name}.webp", encoded(
                first, "WEBP", save_all=True, append_images=rest, duration=FRAME_MILLISECONDS, loop=0,
                lossless=not large, quality=85,
            )  # fmt: skip
        if large:
            return f"{name}.jpg", encoded(self.picture, "JPEG", quality=92)
        return f"{name}.png", encoded(self.picture, "PNG")
