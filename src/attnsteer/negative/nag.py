"""Normalized Attention Guidance: a negative prompt that works in attention space, with or without CFG.

Source: Chen et al. 2025, "Normalized Attention Guidance: Universal Negative Guidance for Diffusion Models",
arXiv:2505.21179 (NeurIPS 2025).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from jaxtyping import Float
from torch import Tensor


def nag_combine(
    positive: Float[Tensor, "*batch tokens channels"],
    negative: Float[Tensor, "*batch tokens channels"],
    scale: float,
    tau: float,
    alpha: float,
    norm: Literal[1, 2] = 1,
) -> Float[Tensor, "*batch tokens channels"]:
    """Push attention features away from the negative text, bounded in norm.

    E = P + (scale - 1)(P - N);   G = E min(1, tau |P| / |E|);   result = P + alpha (G - P)

    Args:
        positive: P, attention output for the prompt, heads flattened, before the output projection.
        negative: N, attention output of the same image queries for the negative prompt.
        scale: Dimensionless, >= 1. At 1 the result is exactly P. Equals 1 + phi of the paper.
        tau: Dimensionless, >= 1. Largest allowed |G| / |P| of a token; the paper's value is 2.5.
        alpha: Blend between P (0, exact) and G (1).
        norm: Order of the norm over the channels: 1 as in the paper, 2 as in the released FLUX code.

    Returns: Same shape, dtype and device as `positive`. Norms are taken in float32 or wider, so float16 features
        of any width are safe, and tokens that are all zero stay finite. With N equal to P the result is exactly P.

    Raises: ValueError if the shapes differ or a setting is out of range.

    Source: Chen et al. 2025, arXiv:2505.21179, Eq. 7-10.
    """
    if positive.shape != negative.shape:
        raise ValueError(
            f"positive and negative differ in shape, {tuple(positive.shape)} and {tuple(negative.shape)}; "
            "pass the attention outputs of the same image queries for the two texts"
        )
    _check_range(scale, tau, alpha, norm)
    wide = torch.promote_types(positive.dtype, torch.float32)
    p, n = positive.to(wide), negative.to(wide)
    extrapolated = p + (scale - 1.0) * (p - n)
    limit = tau * torch.linalg.vector_norm(p, ord=norm, dim=-1, keepdim=True)
    length = torch.linalg.vector_norm(extrapolated, ord=norm, dim=-1, keepdim=True)
    shrink = torch.where(length > limit, limit / length.clamp_min(torch.finfo(wide).tiny), 1.0)
    bounded = extrapolated * shrink
    return (p + alpha * (bounded - p)).to(positive.dtype)


def _check_range(scale: float | None, tau: float | None, alpha: float | None, norm: int) -> None:
    if scale is not None and not 1.0 <= scale < float("inf"):
        raise ValueError(
            f"scale must be >= 1 (1 = off), got {scale}; it equals 1 + phi of the paper, so the paper's 4 is 5 here"
        )
    if tau is not None and not tau >= 1.0:
        raise ValueError(f"tau must be >= 1, got {tau}; the paper's value is 2.5")
    if alpha is not None and not 0.0 <= alpha <= 1.0:
        raise ValueError(f"alpha must lie in [0, 1] (0 = off), got {alpha}; the paper uses 0.125 to 0.5")
    if norm not in (1, 2):
        raise ValueError(f"norm must be 1 (the paper) or 2 (the released FLUX code), got {norm!r}")


@dataclass(frozen=True)
class NAG:
    """Settings of Normalized Attention Guidance; `None` takes the preset of the model's family.

    Args:
        scale: Strength, >= 1, off at 1. Equals 1 + phi of the paper. None: the preset (3 to 5).
        tau: Bound on the growth of a token's norm, >= 1. None: the preset (2.5).
        alpha: Share of the guided features, 0 (off) to 1. None: the preset (0.125 to 0.5).
        norm: Order of the norm: 1 as in the paper, 2 as in the released FLUX code.
        start: First guided step as a fraction of the steps, [0, 1).
        end: Fraction of the steps at which guidance ends, exclusive, (start, 1]. 0.25 guides the first quarter.
        layers: Names or indices (in execution order) of the attention layers to guide; None guides all of them.

    Raises: ValueError if a setting is out of range.

    Source: Chen et al. 2025, arXiv:2505.21179, Eq. 7-10 and Table 5.
    """

    kind: ClassVar[str] = "negative"

    scale: float | None = None
    tau: float | None = None
    alpha: float | None = None
    norm: Literal[1, 2] = 1
    start: float = 0.0
    end: float = 1.0
    layers: Sequence[str | int] | None = None

    def __post_init__(self) -> None:
        _check_range(self.scale, self.tau, self.alpha, self.norm)
        if not 0.0 <= self.start < self.end <= 1.0:
            raise ValueError(
                f"start and end must be fractions of the steps with 0 <= start < end <= 1, got {self.start} and "
                f"{self.end}; start=0, end=1 guides every step"
            )
        if isinstance(self.layers, str | int):
            raise ValueError(
                f"layers must be a list of names or indices, got {self.layers!r}; write [{self.layers!r}]"
            )
        if self.layers is not None:
            object.__setattr__(self, "layers", tuple(self.layers))

    @property
    def identity(self) -> bool:
        """Whether these settings change nothing (scale 1 or alpha 0), so that all work can be skipped."""
        return self.scale == 1.0 or self.alpha == 0.0

    def combine(
        self,
        positive: Float[Tensor, "*batch tokens channels"],
        negative: Float[Tensor, "*batch tokens channels"],
    ) -> Float[Tensor, "*batch tokens channels"]:
        """Apply `nag_combine` with these settings.

        Raises: ValueError if scale, tau or alpha is still None.
        """
        if self.scale is None or self.tau is None or self.alpha is None:
            raise ValueError(
                f"{self} has no values for scale, tau and alpha; give them, or let guide() take the model's preset"
            )
        return nag_combine(positive, negative, self.scale, self.tau, self.alpha, self.norm)
