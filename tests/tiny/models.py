"""Tiny configurations and calls of denoiser classes: one entry, or more, for each row of `attnsteer.families`."""

from tiny.cross import CROSS
from tiny.joint import JOINT
from tiny.model import Tiny
from tiny.packed import PACKED
from tiny.sequence import SEQUENCE
from tiny.unets import UNETS

__all__ = ["TINY", "Tiny"]

TINY: dict[str, Tiny] = {**UNETS, **CROSS, **JOINT, **PACKED, **SEQUENCE}
