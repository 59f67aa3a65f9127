"""How a clip holds together in time: flicker between frames, and whether its content stays itself."""

from collections.abc import Sequence

import numpy as np
from PIL import Image
from torch import Tensor


def steadiness(frames: Sequence[Image.Image]) -> float:
    """One minus the mean absolute difference of successive frames, 0 to 1; 1 for a clip in which nothing changes.

    1 - mean_t |x_{t+1} - x_t| / 255

    Motion lowers it too, so compare it between methods on the same seeds, not between prompts.

    Args:
        frames: Two or more, of one size.

    Raises: ValueError for fewer, or different sizes.
    Source: the temporal flickering of VBench, Huang et al. 2023, arXiv:2311.17982.
    """
    if len(frames) < 2 or len({frame.size for frame in frames}) > 1:
        raise ValueError(f"steadiness needs two or more frames of one size, got {len(frames)}")
    values = np.stack([np.asarray(frame.convert("RGB"), dtype=np.float64) for frame in frames])
    return float(1 - np.abs(np.diff(values, axis=0)).mean() / 255)


def consistency(features: Tensor) -> float:
    """How far every frame resembles the first one and the one before it, -1 to 1.

    mean_{t >= 2} (cos(f_1, f_t) + cos(f_{t-1}, f_t)) / 2

    Args:
        features: (frames, width), of any length, two frames or more.

    Raises: ValueError for fewer frames.
    Source: the subject consistency of VBench, arXiv:2311.17982 (which takes DINO's features).
    """
    if features.ndim != 2 or len(features) < 2:
        raise ValueError(f"consistency needs the features of two or more frames, got shape {tuple(features.shape)}")
    unit = features / features.norm(dim=1, keepdim=True).clamp(min=1e-12)
    first, previous = unit[1:] @ unit[0], (unit[1:] * unit[:-1]).sum(1)
    return float(((first + previous) / 2).mean())
