"""The clip detector: which objects a clip of the shapes world shows, how they move, and whether they flicker."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from attnsteer.world.blocks import without_blocks
from attnsteer.world.clip_captions import FLICKER_WORD, MOVING_WORD, STILL_WORD
from attnsteer.world.clips import DIRECTIONS
from attnsteer.world.detect import Detection, colour_regions, detect
from attnsteer.world.scene import COLOURS

LEAST_PRESENCE = 0.3
"""Objects that are there in a smaller share of the frames are flukes."""
LEAST_TRAVEL = 0.12
"""Objects that travel less than this share of the side over the clip stand still."""
LEAST_FLICKER = 0.4
"""Objects whose area changes by more than this share from frame to frame flicker."""
REACH = 0.3
"""Farthest that one object can be from where it was last seen, as a fraction of the side."""


@dataclass(frozen=True)
class Track:
    """One object over the frames of a clip.

    Attributes:
        shape, colour, attribute: What it looks like in most of the frames in which it is recognised.
        recognised: Whether it looks like one of the world's shapes in at least half of the frames where it is seen.
        presence: Share of the frames in which it is seen (0 to 1).
        travel: Way in x and y over the whole clip along the fitted straight line, as fractions of the side.
        flicker: Mean change of its colour's area from frame to frame over the largest area (0 to 1).
        uniformity: Share of the frames with it in which it looks as it does in most (0 to 1).
    """

    shape: str
    colour: str
    attribute: str | None
    recognised: bool
    presence: float
    travel: tuple[float, float]
    flicker: float
    uniformity: float

    @property
    def direction(self) -> str | None:
        """One of `DIRECTIONS`, the nearest to its way, or None if it stands still."""
        along = {name: x * self.travel[0] + y * self.travel[1] for name, (x, y) in DIRECTIONS.items()}
        best = max(along, key=lambda name: along[name])
        return best if along[best] >= LEAST_TRAVEL else None

    @property
    def flickering(self) -> bool:
        """Whether it comes and goes."""
        return self.flicker > LEAST_FLICKER

    @property
    def traits(self) -> set[str]:
        """What can be said of it, in the captions' words: "red", "outline", "flickering", "static", "moving left", ...

        The attribute of an unrecognised shape is a guess and is left out.
        """
        found = {self.colour}
        if self.recognised and self.attribute:
            found.add(self.attribute)
        if self.flickering:
            found.add(FLICKER_WORD)
        return found | ({MOVING_WORD, f"{MOVING_WORD} {self.direction}"} if self.direction else {STILL_WORD})


def detect_clips(clips: Float[Tensor, "clips frames 3 size size"]) -> list[list[Track]]:
    """The objects of each clip (values in [0, 1], `size` from 16 pixels on), the most present ones first.

    Videos as the video model's autoencoder decodes them are judged at the size of their blocks.

    Raises: ValueError if the clips have fewer than two frames or are not square RGB tensors.
    """
    if clips.ndim != 5 or clips.shape[1] < 2:
        raise ValueError(f"clips must have shape (clips, frames >= 2, 3, size, size), got {tuple(clips.shape)}")
    count, frames = clips.shape[:2]
    pictures = without_blocks(clips.flatten(0, 1))
    found = detect(pictures)
    areas = colour_regions(pictures.float())[0].mean((2, 3)).unflatten(0, (count, frames))
    return [_tracks(found[row * frames : (row + 1) * frames], areas[row]) for row in range(count)]


def shows(tracks: Sequence[Track], unwanted: str) -> bool:
    """Whether an object of a clip has a trait, such as "red", "blurry", "flickering", "moving" or "moving left"."""
    return any(unwanted in track.traits for track in tracks)


def consistency(tracks: Sequence[Track]) -> float:
    """How much a clip's objects stay what they are: the mean of presence x uniformity (0 to 1), 0 without objects."""
    return sum(track.presence * track.uniformity for track in tracks) / max(len(tracks), 1)


def _tracks(found: Sequence[Sequence[Detection]], areas: Float[Tensor, "frames colours"]) -> list[Track]:
    """Link the detections of one clip: each to the nearest object of its colour that this frame has not yet."""
    seen: list[list[tuple[int, Detection]]] = []
    for frame, detections in enumerate(found):
        for detection in detections:
            near = [
                (_distance(detection, sightings[-1][1]), index)
                for index, sightings in enumerate(seen)
                if sightings[-1][0] < frame and sightings[-1][1].shape.colour == detection.shape.colour
            ]
            distance, index = min(near, default=(REACH, -1))
            if distance < REACH:
                seen[index].append((frame, detection))
            else:
                seen.append([(frame, detection)])
    tracks = [_summary(sightings, areas) for sightings in seen if len(sightings) >= LEAST_PRESENCE * len(found)]
    return sorted(tracks, key=lambda track: -track.presence)


def _distance(first: Detection, second: Detection) -> float:
    return math.dist((first.shape.x, first.shape.y), (second.shape.x, second.shape.y))


def _summary(sightings: Sequence[tuple[int, Detection]], areas: Float[Tensor, "frames colours"]) -> Track:
    colour = sightings[0][1].shape.colour
    known = [(frame, detection) for frame, detection in sightings if detection.recognised] or sightings
    looks = Counter((d.shape.shape, d.shape.attribute) for _, d in known)
    shape = Counter(d.shape.shape for _, d in known).most_common(1)[0][0]
    attribute = Counter(d.shape.attribute for _, d in known).most_common(1)[0][0]
    area = areas[:, list(COLOURS).index(colour)]
    return Track(
        shape,
        colour,
        attribute,
        recognised=sum(d.recognised for _, d in sightings) >= len(sightings) / 2,
        presence=len(sightings) / len(areas),
        travel=_travel(sightings, len(areas)),
        flicker=(area.diff().abs().mean() / area.max().clamp(min=1e-6)).item(),
        uniformity=looks[shape, attribute] / len(sightings),
    )


def _travel(sightings: Sequence[tuple[int, Detection]], frames: int) -> tuple[float, float]:
    """Way over the whole clip along the least-squares line through the places; (0, 0) for a single sighting."""
    times = torch.tensor([float(frame) for frame, _ in sightings])
    places = torch.tensor([[d.shape.x, d.shape.y] for _, d in sightings])
    times = times - times.mean()
    spread = times.square().sum()
    if spread == 0:
        return 0.0, 0.0
    slope = (times[:, None] * (places - places.mean(0))).sum(0) / spread
    x, y = (slope * (frames - 1)).tolist()
    return x, y
