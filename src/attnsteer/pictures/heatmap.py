"""Attention maps as colours over a picture."""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from PIL import Image

# Anchors of a dark-to-light ramp: every step is lighter than the one before, so it also reads in grey.
_ANCHORS = np.array(
    [(8, 8, 32), (56, 16, 104), (134, 28, 118), (208, 52, 84), (244, 112, 44), (252, 186, 62), (254, 248, 190)],
    dtype=np.float64,
)


def colour_ramp(values: ArrayLike) -> NDArray[np.uint8]:
    """Colour values in 0..1 (clipped; NaN counts as 0) on the ramp dark violet, red, orange, light yellow.

    Returns: Array of the shape of `values` plus a last axis of 3, red, green and blue in 0..255.
    """
    position = np.clip(np.nan_to_num(np.asarray(values, dtype=np.float64)), 0.0, 1.0) * (len(_ANCHORS) - 1)
    places = np.arange(len(_ANCHORS))
    channels = [np.interp(position, places, _ANCHORS[:, channel]) for channel in range(3)]
    return np.stack(channels, axis=-1).round().astype(np.uint8)


def overlay(
    image: Image.Image, attention: ArrayLike, *, limits: tuple[float, float] | None = None, strength: float = 0.85
) -> Image.Image:
    """Lay an attention map over a picture: the picture in grey, the map in colour, stronger where attention is higher.

    opacity = strength (0.7 + 0.3 v);   result = opacity ramp(v) + (1 - opacity) grey,
    v = the map scaled to 0..1 and enlarged bicubically to the picture's size.

    Args:
        image: The picture the map belongs to.
        attention: (height, width) map of any resolution and unit, e.g. mean attention probabilities of a word.
        limits: Values shown as 0 and 1. By default the map's own minimum and maximum, so that its shape is seen
            whatever its strength; give common limits to compare several maps.
        strength: Opacity at the highest value, 0 (no map) to 1 (no picture).

    Returns: RGB picture of the size of `image`.

    Raises: ValueError if the map is not two-dimensional, is empty or not finite, or `strength` is out of range.
    """
    values = scaled(attention, limits)
    if not 0.0 <= strength <= 1.0:
        raise ValueError(f"strength must lie in 0..1, got {strength}; 0.85 is the default")
    grey = np.asarray(image.convert("L").convert("RGB"), dtype=np.float64)
    soft = Image.fromarray(values.astype(np.float32)).resize(image.size, Image.Resampling.BICUBIC)
    level = np.clip(np.asarray(soft, dtype=np.float64), 0.0, 1.0)
    opacity = (strength * (0.7 + 0.3 * level))[..., None]
    blended: NDArray[Any] = opacity * colour_ramp(level) + (1.0 - opacity) * grey
    return Image.fromarray(blended.round().astype(np.uint8))


def scaled(attention: ArrayLike, limits: tuple[float, float] | None = None) -> NDArray[np.float64]:
    """Scale a map to 0..1 between `limits` (its own extremes by default); a constant map becomes all zeros.

    Raises: ValueError if the map is not a non-empty two-dimensional array of finite numbers.
    """
    values = np.asarray(attention, dtype=np.float64)
    if values.ndim != 2 or values.size == 0:
        raise ValueError(f"an attention map must have shape (height, width), got {values.shape}")
    if not np.isfinite(values).all():
        raise ValueError("the attention map has entries that are not finite; record it in float32")
    low, high = limits if limits is not None else (float(values.min()), float(values.max()))
    if high <= low:
        return np.zeros_like(values)
    return np.clip((values - low) / (high - low), 0.0, 1.0)
