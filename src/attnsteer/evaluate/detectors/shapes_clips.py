"""The exact clip detector of the shapes world as an examiner of whole clips."""

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image

from attnsteer.evaluate.detectors.protocol import Answers
from attnsteer.world.clip_detect import consistency, detect_clips, shows


class ShapesClipExaminer:
    """Follows the objects of a clip: what they look like, how they move, whether they flicker."""

    name: ClassVar[str] = "shapes in clips (exact)"
    quality_name: ClassVar[str] = "object consistency"

    def examine_clip(self, frames: Sequence[Image.Image], prompt: str, asked: Mapping[str, Any]) -> Answers:
        """Judge a clip by what was asked for; see `attnsteer.evaluate.detectors.protocol.ClipExaminer`.

        Args:
            frames: Two or more, square and of one size.
            prompt: Not read: `asked` says it all.
            asked: "subject" (a shape), "unwanted" (a trait of the world), and what else the subject must be: "colour"
                and "motion" ("static" or e.g. "moving left"), None or left out where the prompt leaves it open.

        Returns: Certainties of 0 or 1; the quality is `attnsteer.world.clip_detect.consistency`.

        Raises: ValueError for a single frame, or frames that are not square and of one size.
        """
        if len({frame.size for frame in frames}) != 1:
            raise ValueError("the clip detector needs frames of one size")
        values = np.stack([np.asarray(frame.convert("RGB"), dtype=np.float32) / 255 for frame in frames])
        (tracks,) = detect_clips(torch.from_numpy(values).permute(0, 3, 1, 2).contiguous()[None])
        wanted = {asked[name] for name in ("colour", "motion") if asked.get(name) is not None}
        kept = any(t.recognised and t.shape == asked["subject"] and wanted <= t.traits for t in tracks)
        return Answers(float(kept), float(not shows(tracks, asked["unwanted"])), consistency(tracks))
