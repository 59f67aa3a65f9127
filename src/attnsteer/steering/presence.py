"""Attend-and-Excite's objective: every named object is read somewhere in the picture. A baseline without training."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from attnsteer.steering.descent import PublishedRule
from attnsteer.steering.objectives import Verdict, relation_rows
from attnsteer.steering.relations import RELATIONS


@dataclass(frozen=True)
class PresenceObjective:
    """Both objects of a relation are attended to, wherever: it knows nothing of places.

    a_s = max_x (G * mean_h m_{s,h})(x) / unit,   loss = max_s (1 - a_s),   probability = min_s a_s

    over the two objects s, with G a Gaussian over 3 x 3 cells, and a_s at most 1. Every relation is judged alike, so
    this baseline shows what presence alone brings.

    Attributes:
        sigma: Width of the Gaussian in cells, > 0.
        unit: Attention that counts as whole. 1 suits maps of probabilities, as published; maps that are divided by
            their sum (`Recording(normalise=True)`) need about their sum over the few cells of an object.

    Source: Chefer et al. 2023, Attend-and-Excite, arXiv:2301.13826, Sec. 3. The published maps leave out the start
        token and are a softmax over the others; ours are as recorded, a softmax over the whole text.
    """

    sigma: float = 0.5
    unit: float = 1.0
    conditioning: ClassVar[str] = "none"

    def __post_init__(self) -> None:
        if self.sigma <= 0 or self.unit <= 0:
            raise ValueError(f"sigma and unit must be > 0, got {self.sigma} and {self.unit}")

    @property
    def relations(self) -> tuple[str, ...]:
        """All that the parser knows."""
        return RELATIONS

    def __call__(
        self,
        maps: Float[Tensor, "batch 2 channels height width"],
        timestep: Float[Tensor, "..."] | float,
        relations: Sequence[str],
    ) -> Verdict:
        """Judge each row; see `Objective`. Neither the noise level nor the relation matters."""
        relation_rows(relations, self.relations, len(maps))
        smooth = F.conv2d(
            self._padded(maps.float().mean(dim=2)).flatten(0, 1)[:, None], self._kernel().to(maps.device)
        )
        strongest = (smooth.flatten(1).amax(dim=1) / self.unit).clamp_max(1.0).unflatten(0, (-1, 2))
        least = strongest.amin(dim=1)
        return Verdict(1 - least, least.clamp(0.0, 1.0))

    def _padded(self, maps: Tensor) -> Tensor:
        return F.pad(maps, (1, 1, 1, 1), mode="reflect")

    def _kernel(self) -> Float[Tensor, "1 1 3 3"]:
        line = torch.exp(-torch.tensor([1.0, 0.0, 1.0]) / (2 * self.sigma**2))
        line = line / line.sum()
        return (line[:, None] * line)[None, None]


def seen(maps: Float[Tensor, "batch 2 channels height width"]) -> Float[Tensor, " batch"]:
    """How clearly the fainter of two objects is seen in its maps, in [0, 1]: no gradient.

    min_s max_x m_s(x),   m_s = mean_h m_{s,h}, of sum 1

    An object that is not in the picture is read everywhere a little, 1 / (height width) at least.
    """
    mean = maps.detach().float().mean(dim=2).flatten(2)
    return (mean.amax(dim=2) / mean.sum(dim=2).clamp_min(1e-12)).amin(dim=1)


def attend_and_excite_rule() -> PublishedRule:
    """Attend-and-Excite's schedule for 50 steps, of which the first 25 are steered, as closely as a rule here can.

    One step of length 20 |gradient| while the strongest attention is below 0.05 at first, 0.5 from step 10, and 0.8
    from step 20 on, up to 20 times. The published code takes the further iterations at steps 0, 10 and 20 alone, and
    lets the length decay.

    Source: arXiv:2301.13826, Sec. 4.
    """
    targets = (0.95,) * 10 + (0.5,) * 10 + (0.2,)
    return PublishedRule(step_size=20.0, loss_targets=targets, iterations=20)
