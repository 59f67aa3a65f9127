"""Pictures from tensors of pixels, and as the bytes of a file."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

from PIL import Image

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor


def as_image(picture: Float[Tensor, "3 height width"]) -> Image.Image:
    """A picture in [0, 1] as an RGB image."""
    values = (picture.detach().float().clamp(0, 1) * 255).round().byte().permute(1, 2, 0).cpu().numpy()
    return Image.fromarray(values, "RGB")


def encoded(picture: Image.Image, format: str, **options: Any) -> bytes:
    """The content of a picture file.

    Args:
        picture: Any mode that the format holds.
        format: Pillow's name of it, such as "PNG", "JPEG" or "WEBP".
        options: Pillow's for that format.
    """
    buffer = io.BytesIO()
    picture.save(buffer, format, **options)
    return buffer.getvalue()
