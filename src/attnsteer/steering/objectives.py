"""What steering minimises: losses on the attention maps of two objects, and when a picture is good enough.

Every objective answers the same question, so one can be swapped for another: given the maps of subject and object,
how far are they from the wanted relation (loss), and how likely do they satisfy it (probability)?
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float
from torch import Tensor

from attnsteer.steering.classifier import RelationClassifier
from attnsteer.steering.symmetry import Direction, direction_of


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


@dataclass(frozen=True)
class ClassifierObjective:
    """Cross entropy of a relation classifier towards the wanted relation r.

    loss = -log p,   p = softmax(logits)_r

    Attributes:
        classifier: In evaluation mode; moved to where the maps are. The noise level is measured as its settings
            say (index or log-SNR).

    Source: Learn-to-Steer, arXiv:2509.02295.
    """

    classifier: RelationClassifier

    @property
    def relations(self) -> tuple[str, ...]:
        """The classifier's vocabulary."""
        return self.classifier.relations

    def __call__(
        self,
        maps: Float[Tensor, "batch 2 channels height width"],
        timestep: Float[Tensor, "..."] | float,
        relations: Sequence[str],
    ) -> Verdict:
        """Judge each row; see `Objective`."""
        self.classifier.to(maps.device)
        target = torch.tensor(relation_rows(relations, self.relations, len(maps)), device=maps.device)
        loss = F.cross_entropy(self.classifier(maps, timestep), target, reduction="none")
        return Verdict(loss, (-loss).exp())


@dataclass(frozen=True)
class CentroidObjective:
    """Hand-made baseline: the centroids of the two objects' maps stand a margin apart along the wanted axes.

    c(m) = sum_x x w(x),   w(x) = mean_h m_h(x)^p / sum_y m_h(y)^p   over channels h, x in [0, 1]^2 (right, down)
    s_a  = d_a (c_a(subject) - c_a(object))                          for each axis a with d_a = +-1
    loss = sum_a softplus((margin - s_a) / t) t,     probability = prod_a sigmoid(s_a / t)
    and for "near", with the centroids' distance D: loss = softplus((D - reach) / t) t, probability =
    sigmoid((reach - D) / t).

    d is the relation's direction, for example (-1, 0) for "to the left of". No noise level, no training.

    Attributes:
        margin: Wanted separation as a fraction of the picture's side, > 0.
        reach: Distance that counts as near, as a fraction of the picture's side.
        temperature: t, softness of the margin, > 0, same unit.
        sharpness: p >= 1; above 1 the bright cells count more than the spread background.

    Source: the idea is that of InfSplign (arXiv:2512.17851) and STORM (CVPR 2025); the formula is ours.
    """

    margin: float = 0.25
    reach: float = 0.3
    temperature: float = 0.05
    sharpness: float = 2.0

    def __post_init__(self) -> None:
        for name in ("margin", "reach", "temperature"):
            if getattr(self, name) <= 0:
                raise ValueError(f"{name} must be > 0, got {getattr(self, name)}")
        if self.sharpness < 1:
            raise ValueError(f"sharpness must be >= 1, got {self.sharpness}; 2 is the default")

    @property
    def relations(self) -> tuple[str, ...]:
        """Relations in the picture plane."""
        sides, heights = ("to the left of", "to the right of"), ("above", "below")
        diagonals = tuple(f"{height} and {side}" for height in heights for side in sides)
        return (*sides, *heights, *diagonals, "near")

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
        centroids = self.centroids(maps.float())
        offset = centroids[:, 0] - centroids[:, 1]
        near = (wanted == 0).all(dim=1)
        distance = (offset.square().sum(dim=1) + 1e-12).sqrt()
        separation = torch.where(near[:, None], (self.reach - distance)[:, None], wanted * offset)
        margin = torch.where(near, 0.0, self.margin)[:, None]
        # "near" has one condition, kept in the first column
        counts = torch.where(near[:, None], torch.tensor([True, False], device=maps.device), wanted != 0)
        loss = F.softplus((margin - separation) / self.temperature) * self.temperature
        log_probability = F.logsigmoid(separation / self.temperature)
        return Verdict((loss * counts).sum(dim=1), (log_probability * counts).sum(dim=1).exp())

    def centroids(self, maps: Float[Tensor, "batch 2 channels height width"]) -> Float[Tensor, "batch 2 xy"]:
        """Centroid of each object's maps, x to the right and y downwards, both in [0, 1]."""
        height, width = maps.shape[-2:]
        weight = maps.clamp_min(0.0).pow(self.sharpness)
        weight = (weight / (weight.sum(dim=(-1, -2), keepdim=True) + 1e-12)).mean(dim=2)
        x = (torch.arange(width, device=maps.device) + 0.5) / width
        y = (torch.arange(height, device=maps.device) + 0.5) / height
        return torch.stack([(weight * x).sum(dim=(-1, -2)), (weight * y[:, None]).sum(dim=(-1, -2))], dim=-1)


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


@dataclass(frozen=True)
class Stop:
    """When a map pair is good enough to stop steering: every limit that is set must be met.

    Attributes:
        probability: Least probability of the wanted relation, in (0, 1); None for no such limit.
        loss: Greatest loss; None for no such limit. The published method stops on the loss alone.
    """

    probability: float | None = 0.9
    loss: float | None = None

    def __post_init__(self) -> None:
        if self.probability is None and self.loss is None:
            raise ValueError("set probability or loss; without a limit nothing would ever be good enough")
        if self.probability is not None and not 0.0 < self.probability < 1.0:
            raise ValueError(f"probability must be in (0, 1), got {self.probability}; 0.9 is the default")
        if self.loss is not None and self.loss < 0:
            raise ValueError(f"loss must be >= 0, got {self.loss}")

    def __call__(self, verdict: Verdict) -> Bool[Tensor, " batch"]:
        """True for the rows that need no further steering."""
        done = torch.ones_like(verdict.probability, dtype=torch.bool)
        if self.probability is not None:
            done = done & (verdict.probability >= self.probability)
        if self.loss is not None:
            done = done & (verdict.loss <= self.loss)
        return done
