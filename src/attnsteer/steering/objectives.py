"""What steering minimises: losses on the attention maps of two objects, and when a picture is good enough.

Every objective answers the same question, so one can be swapped for another: given the maps of subject and object,
how far are they from the wanted relation (loss), and how likely do they satisfy it (probability)?
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from attnsteer.steering.classifier import RelationClassifier
from attnsteer.steering.symmetry import Direction, direction_of

SIDES, HEIGHTS = ("to the left of", "to the right of"), ("above", "below")
DIAGONALS = tuple(f"{height} and {side}" for height in HEIGHTS for side in SIDES)


class Verdict(NamedTuple):
    """Judgement of a batch of map pairs.

    Attributes:
        loss: >= 0, lower is better, differentiable with respect to the maps.
        probability: In [0, 1]; of the wanted relation.
    """

    loss: Float[Tensor, " batch"]
    probability: Float[Tensor, " batch"]


class Objective(Protocol):
    """A loss for steering."""

    @property
    def relations(self) -> tuple[str, ...]:
        """Relations it can judge."""
        ...

    def __call__(
        self,
        maps: Float[Tensor, "batch 2 channels height width"],
        timestep: Float[Tensor, "..."] | float,
        relations: Sequence[str],
    ) -> Verdict:
        """Judge each row of `maps` by its own wanted relation.

        Args:
            maps: Maps of subject and object.
            timestep: Noise level, one or one per row, in the objective's own measure.
            relations: Wanted relation of each row, or a single one for all.

        Raises:
            ValueError: if a relation is unknown or their number does not fit.
        """
        ...


def relation_rows(relations: Sequence[str], known: Sequence[str], batch: int) -> list[int]:
    """Index into `known` of the relation wanted in each row.

    A relation that is not in `known` by name is found by its direction: "above and to the left of" is "above_left".

    Raises:
        ValueError: if a relation is unknown or there is neither one nor one per row.
    """
    if isinstance(relations, str):
        raise ValueError(f"relations must be a list of names, one per row, got the string {relations!r}")
    if len(relations) not in (1, batch):
        raise ValueError(f"need one relation or one per row ({batch}), got {len(relations)}")
    index: dict[str | Direction | None, int]
    index = {direction_of(name): number for number, name in enumerate(known) if any(direction_of(name) or ())}
    index |= {name: number for number, name in enumerate(known)}
    rows = [index.get(name, index.get(direction_of(name))) for name in relations]
    unknown = sorted({name for name, row in zip(relations, rows, strict=True) if row is None})
    if unknown:
        raise ValueError(f"cannot steer towards {unknown}; this objective knows {', '.join(known)}")
    return [row for row in rows if row is not None] * (batch if len(rows) == 1 else 1)


def composed_diagonals(known: Sequence[str]) -> dict[str, tuple[int, int]]:
    """Diagonals that a vocabulary lacks, as the indices of the two relations along the axes that make them up."""
    index = {direction_of(name): number for number, name in enumerate(known) if any(direction_of(name) or ())}
    diagonals = {}
    for name in DIAGONALS:
        x, y, _ = direction_of(name) or (0, 0, 0)
        first, second = index.get((x, 0, 0)), index.get((0, y, 0))
        if (x, y, 0) not in index and first is not None and second is not None:
            diagonals[name] = (first, second)
    return diagonals


@dataclass(frozen=True)
class ClassifierObjective:
    """Cross entropy of a relation classifier towards the wanted relation r.

    loss = -log p,   p = softmax(logits)_r

    A diagonal that the classifier was not trained on is asked for by the two relations a and b that make it up:

    loss = -log p_a - log p_b - log 4,   p = 4 p_a p_b

    which is 0 where the classifier is torn between exactly these two, as it is where the offset has 45 degrees.

    Attributes:
        classifier: In evaluation mode; moved to where the maps are. The noise level is measured as its settings
            say (index or log-SNR).

    Source: Learn-to-Steer, arXiv:2509.02295.
    """

    classifier: RelationClassifier

    @property
    def relations(self) -> tuple[str, ...]:
        """The classifier's vocabulary, and the diagonals that follow from it."""
        return (*self.classifier.relations, *composed_diagonals(self.classifier.relations))

    @property
    def conditioning(self) -> str:
        """How the noise level is measured: "index" or "log_snr"."""
        return self.classifier.settings.conditioning

    @property
    def num_steps(self) -> int | None:
        """Steps that an index counts in; None is any."""
        return self.classifier.settings.source.num_steps

    def __call__(
        self,
        maps: Float[Tensor, "batch 2 channels height width"],
        timestep: Float[Tensor, "..."] | float,
        relations: Sequence[str],
    ) -> Verdict:
        """Judge each row; see `Objective`."""
        self.classifier.to(maps.device)
        own, known = self.classifier.relations, self.relations
        composed = list(composed_diagonals(own).values())
        rows = relation_rows(relations, known, len(maps))
        pairs = [(row, row) if row < len(own) else composed[row - len(own)] for row in rows]
        targets = torch.tensor(pairs, device=maps.device).T
        logits = self.classifier(maps, timestep)
        first, second = (F.cross_entropy(logits, target, reduction="none") for target in targets)
        loss = torch.where(targets[0] == targets[1], first, (first + second - math.log(4)).clamp_min(0.0))
        return Verdict(loss, (-loss).exp())


@dataclass(frozen=True)
class CentroidObjective:
    """Hand-made baseline: the centroids of the two objects' maps stand a margin apart along the wanted axes.

    c(m) = sum_x x w(x),   w(x) = mean_h m_h(x)^p / sum_y m_h(y)^p   over channels h, x in [0, 1]^2 (right, down)
    s_a  = d_a (c_a(subject) - c_a(object))                          for each axis a with d_a = +-1
    loss = sum_a softplus((margin - s_a) / t) t,     probability = prod_a sigmoid(s_a / t)
    and for "near", with the centroids' distance D: loss = softplus((D - reach) / t) t, probability =
    sigmoid((reach - D) / t).

    d is the relation's direction, for example (-1, 0) for "to the left of". No noise level, no training. Two further
    terms look after the objects themselves, where their weights are not 0: with V the variance of the places in a map,

    loss += presence (V(subject) + V(object)) + balance |V(subject) - V(object)|

    Attributes:
        margin: Wanted separation as a fraction of the picture's side, > 0.
        reach: Distance that counts as near, as a fraction of the picture's side.
        temperature: t, softness of the margin, > 0, same unit.
        sharpness: p >= 1; above 1 the bright cells count more than the spread background.
        presence: Weight of the spread of both maps, >= 0: an object that is there is read in one place.
        balance: Weight of the difference of the spreads, >= 0: neither object is neglected for the other.

    Source: the terms are those of InfSplign (Rastegar et al. 2025, arXiv:2512.17851: a margin between centroids,
        presence and balance by variances), the centroids those of STORM (Han et al. 2025, arXiv:2503.22168) too. Both
        have other formulas (a GELU for the margin; optimal transport) and move the prediction or the latents by
        their own rules: what is compared here is the kind of loss, under one rule.
    """

    margin: float = 0.25
    reach: float = 0.3
    temperature: float = 0.05
    sharpness: float = 2.0
    presence: float = 0.0
    balance: float = 0.0
    conditioning: ClassVar[str] = "none"

    def __post_init__(self) -> None:
        if min(self.presence, self.balance) < 0:
            raise ValueError(f"presence and balance must be >= 0, got {self.presence} and {self.balance}")
        for name in ("margin", "reach", "temperature"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be > 0, got {getattr(self, name)}")
        if self.sharpness < 1:
            raise ValueError(f"sharpness must be >= 1, got {self.sharpness}; 2 is the default")

    @property
    def relations(self) -> tuple[str, ...]:
        """Relations in the picture plane."""
        return (*SIDES, *HEIGHTS, *DIAGONALS, "near")

    def __call__(
        self,
        maps: Float[Tensor, "batch 2 channels height width"],
        timestep: Float[Tensor, "..."] | float,
        relations: Sequence[str],
    ) -> Verdict:
        """Judge each row; see `Objective`. The noise level does not matter."""
        known = self.relations
        directions = [direction_of(known[row]) or (0, 0, 0) for row in relation_rows(relations, known, len(maps))]
        wanted = torch.tensor(directions, device=maps.device, dtype=torch.float32)[:, :2]
        centroids, spreads = self.moments(maps.float())
        offset = centroids[:, 0] - centroids[:, 1]
        near = (wanted == 0).all(dim=1)
        distance = (offset.square().sum(dim=1) + 1e-12).sqrt()
        separation = torch.where(near[:, None], (self.reach - distance)[:, None], wanted * offset)
        margin = torch.where(near, 0.0, self.margin)[:, None]
        # "near" has one condition, kept in the first column
        counts = torch.where(near[:, None], torch.tensor([True, False], device=maps.device), wanted != 0)
        loss = F.softplus((margin - separation) / self.temperature) * self.temperature
        log_probability = F.logsigmoid(separation / self.temperature)
        objects = self.presence * spreads.sum(dim=1) + self.balance * (spreads[:, 0] - spreads[:, 1]).abs()
        return Verdict((loss * counts).sum(dim=1) + objects, (log_probability * counts).sum(dim=1).exp())

    def moments(
        self, maps: Float[Tensor, "batch 2 channels height width"]
    ) -> tuple[Float[Tensor, "batch 2 xy"], Float[Tensor, "batch 2"]]:
        """Centroid of each object's maps, x to the right, y downwards, both in [0, 1]; and the variance about it."""
        height, width = maps.shape[-2:]
        weight = maps.clamp_min(0.0).pow(self.sharpness)
        weight = (weight / (weight.sum(dim=(-1, -2), keepdim=True) + 1e-12)).mean(dim=2)
        x = (torch.arange(width, device=maps.device) + 0.5) / width
        y = (torch.arange(height, device=maps.device) + 0.5) / height
        centre = torch.stack([(weight * x).sum(dim=(-1, -2)), (weight * y[:, None]).sum(dim=(-1, -2))], dim=-1)
        off_x = (x - centre[..., :1]).square()[..., None, :]
        off_y = (y - centre[..., 1:]).square()[..., None]
        return centre, (weight * (off_x + off_y)).sum(dim=(-1, -2))


def joint_loss(
    losses: Float[Tensor, "batch relations"],
    how: Literal["sum", "worst"] = "sum",
    wanted: Bool[Tensor, "batch relations"] | None = None,
) -> Float[Tensor, " batch"]:
    """One loss for all relations of a prompt: L = sum_k l_k ("sum") or L = max_k l_k ("worst").

    Args:
        losses: Loss of each relation of each prompt, >= 0.
        how: "worst" lets the gradient work on the relation that is furthest off.
        wanted: False where a prompt has fewer relations than others; all True if left out.

    Raises:
        ValueError: if `how` is unknown.
    """
    if wanted is not None:
        losses = torch.where(wanted, losses, torch.zeros_like(losses))
    if how == "sum":
        return losses.sum(dim=1)
    if how == "worst":
        return losses.amax(dim=1)
    raise ValueError(f"how must be 'sum' or 'worst', got {how!r}")
