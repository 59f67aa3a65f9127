"""Settings of Normalized Attention Guidance as other tools spell them.

The same equation is written with two different scales (arXiv:2505.21179, Eq. 7, and the code that came with it):

    E = P + phi (P - N)          "phi": off at 0
    E = P s - N (s - 1)          "s = 1 + phi": off at 1; this is attnsteer's scale

The author of both: "scale 2 in the paper is equal to nag_scale 3 in the implementation".
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Convention:
    """How a tool spells the settings.

    Args:
        offset: What has to be added to its scale to get attnsteer's: 1 for phi, 0 for 1 + phi.
        scale: Its default, in its own spelling; None if it has none or one for each model.
        tau: Its default.
        alpha: Its default.
        norm: Order of the norm in its bound.
        off: Its scale that switches the method off, where that is not attnsteer's 1 in its own spelling.
    """

    offset: float
    scale: float | None = None
    tau: float | None = None
    alpha: float | None = None
    norm: int = 1
    off: float | None = None


CONVENTIONS: Mapping[str, Convention] = {
    "paper": Convention(1.0, 2.0, 2.5, 0.5),
    "official": Convention(0.0, 5.0, 2.5, 0.25),
    "official-flux": Convention(0.0, 5.0, 2.5, 0.25, norm=2),
    "diffusers": Convention(0.0, 5.0, 2.5, 0.25),
    "comfyui": Convention(0.0, 5.0, 2.5, 0.25),
    "comfyui-core": Convention(0.0, 5.0, 1.5, 0.5),
    "swarmui": Convention(0.0, None, 1.5, 0.5, off=0.0),
    "kijai": Convention(0.0, 11.0, 2.5, 0.25, off=0.0),
    "wan2gp": Convention(0.0, None, 3.5, 0.5),
    "sd-perturbed-attention": Convention(1.0, 2.0, 2.5, 0.5),
}
"""Tools by name. "official" is the package of the paper's authors, whose FLUX files take the second norm; "diffusers"
the guider proposed in pull request 13089; "comfyui" the node pack ComfyUI-NAG, "comfyui-core" the node in ComfyUI,
which SwarmUI shows; "kijai" KJNodes and WanVideoWrapper."""


def from_convention(tool: str, scale: float | None, tau: float | None, alpha: float | None) -> dict[str, Any]:
    """Settings here for those of another tool; see `NAG.from_convention`."""
    known = _convention(tool)
    given = known.scale if scale is None else scale
    here = None if given is None else 1.0 if given == known.off else given + known.offset
    if here is not None and here < 1.0:
        raise ValueError(
            f"scale must be >= {_off(known):g} in the spelling of {tool!r} ({_off(known):g} = off), got {given}"
        )
    return {
        "scale": here,
        "tau": known.tau if tau is None else tau,
        "alpha": known.alpha if alpha is None else alpha,
        "norm": known.norm,
    }


def to_convention(tool: str, scale: float, tau: float, alpha: float, norm: int) -> dict[str, float]:
    """Settings here in the spelling of another tool; see `NAG.to_convention`."""
    known = _convention(tool)
    if norm != known.norm:
        raise ValueError(f"{tool!r} bounds the norm of order {known.norm}, these settings that of order {norm}")
    there = known.off if known.off is not None and scale == 1.0 else scale - known.offset
    return {"scale": there, "tau": tau, "alpha": alpha}


def _convention(tool: str) -> Convention:
    if tool not in CONVENTIONS:
        raise ValueError(f"no convention {tool!r}; known are {', '.join(CONVENTIONS)}")
    return CONVENTIONS[tool]


def _off(known: Convention) -> float:
    return 1.0 - known.offset if known.off is None else known.off
