"""Moving latents downhill on a steering loss: the published rule and a leaner one.

Both work on a batch; every row has its own loss. Rows that are satisfied stay where they are and are not judged again.
"""

from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

import torch
from jaxtyping import Bool, Float, Int64
from torch import Tensor

from attnsteer.steering.objectives import joint_loss

_FLOOR = 1e-18  # of norms; below it the squares of float32 vanish


class Judgement(NamedTuple):
    """How far each relation of each row is from being satisfied.

    Attributes:
        losses: Differentiable with respect to the latents; 0 where a row has fewer relations than others.
        probabilities: In [0, 1]; 1 where a row has fewer relations.
        wanted: False where a row has fewer relations.
        peaks: How clearly the fainter object of each relation is seen, in [0, 1]; see `seen`. 1 where a row has fewer
            relations; None where the judge does not tell.
    """

    losses: Float[Tensor, "rows relations"]
    probabilities: Float[Tensor, "rows relations"]
    wanted: Bool[Tensor, "rows relations"]
    peaks: Float[Tensor, "rows relations"] | None = None


class Judge(Protocol):
    """Judges latents, differentiably."""

    def __call__(self, latents: Float[Tensor, "some *shape"], rows: Int64[Tensor, " some"] | None = None) -> Judgement:
        """Judge latents of all rows, or of `rows` alone."""
        ...


class Descent(NamedTuple):
    """Where a descent ended.

    Attributes:
        latents: The moved latents, detached, same dtype as given.
        iterations: Forward passes used; the last one has no backward pass if every row was satisfied.
        before: Smallest probability over each row's relations when the descent began.
        after: The same at the last evaluation; where the iterations ran out, one move ahead of `latents`.
    """

    latents: Float[Tensor, "rows *shape"]
    iterations: int
    before: Float[Tensor, " rows"]
    after: Float[Tensor, " rows"]


@dataclass(frozen=True)
class LeanRule:
    """Few normalised steps of fixed length, halved where the loss rose, until the relations are probable enough.

    x <- |x_0| y / |y|,   y = x - step_size |x_0| g / |g|,   g = dL/dx

    The norm of the latents stays what it was, so they stay on the shell where the model expects its noise.

    Attributes:
        iterations: Most forward and backward passes per denoising step, >= 1.
        step_size: Length of a step relative to the latents' norm, in (0, 1); without `normalised` g's factor, > 0.
        probability: Rows stop when each of their relations has at least this probability, in (0, 1); None goes on to
            the last iteration.
        joint: What g is the gradient of, where a prompt has several relations: the "sum" of their losses, the "worst"
            alone, or one after the other ("alternate", as published).
        backtracking: Whether a step that raised the loss is taken back and retried at half the length.
        keep_norm: Whether the latents are rescaled to their norm.
        normalised: Whether steps have a length of their own, rather than that of the gradient.
    """

    iterations: int = 3
    step_size: float = 0.08
    probability: float | None = 0.9
    joint: Literal["sum", "worst", "alternate"] = "sum"
    backtracking: bool = True
    keep_norm: bool = True
    normalised: bool = True

    def __post_init__(self) -> None:
        if self.iterations < 1:
            raise ValueError(f"iterations must be >= 1, got {self.iterations}; leave steering out to switch it off")
        if self.normalised and not 0.0 < self.step_size < 1.0:
            raise ValueError(f"step_size is a fraction of the latents' norm in (0, 1), got {self.step_size}")
        if self.step_size <= 0.0:
            raise ValueError(f"step_size must be > 0, got {self.step_size}")
        if self.probability is not None and not 0.0 < self.probability < 1.0:
            raise ValueError(f"probability must be in (0, 1) or None, got {self.probability}; 0.9 is the default")
        if self.joint not in ("sum", "worst", "alternate"):
            raise ValueError(f"joint must be 'sum', 'worst' or 'alternate', got {self.joint!r}")

    def __call__(self, judge: Judge, latents: Float[Tensor, "rows *shape"], step_index: int) -> Descent:
        """Descend from `latents`; `step_index` does not matter to this rule.

        Steps are taken in float32 or wider, and judged in the latents' own type.

        Raises: ValueError if a loss or gradient is not finite.
        """
        start = latents.detach().to(torch.promote_types(latents.dtype, torch.float32))
        norm, best, current, direction = _norm(start), start.clone(), start.clone(), torch.zeros_like(start)
        best_loss = torch.full((len(start),), torch.inf, dtype=start.dtype, device=start.device)
        length, before, least = torch.full_like(norm, self.step_size), best_loss.clone(), best_loss.clone()
        done = torch.zeros(len(start), dtype=torch.bool, device=start.device)
        for used in range(1, self.iterations + 1):
            rows = (~done).nonzero().flatten()
            point = current[rows].requires_grad_(True)
            judged = judge(point.to(latents.dtype), None if len(rows) == len(start) else rows)
            loss, compared = self._losses(judged, used - 1)
            least[rows] = judged.probabilities.detach().amin(dim=1).to(least)
            before = least.clone() if used == 1 else before
            good = least[rows] >= (torch.inf if self.probability is None else self.probability)
            better = good | (compared <= best_loss[rows]) | (not self.backtracking)
            best[rows[better]] = point.detach()[better]
            best_loss[rows[better]] = compared[better].to(best_loss)
            done[rows[good]] = True
            if bool(done.all()):
                break
            gradient = _gradient(loss, ~good, point)
            pace = norm[rows] / _norm(gradient).clamp_min(_FLOOR) if self.normalised else torch.ones_like(norm[rows])
            direction[rows[better]] = (pace * gradient)[better]
            length[rows[~better]] /= 2
            onward = rows[~good]
            current[onward] = self._moved(best[onward], (length * direction)[onward], norm[onward])
        current[done] = best[done]
        return Descent(current.to(latents.dtype), used, before, least)

    def _losses(self, judged: Judgement, turn: int) -> tuple[Tensor, Tensor]:
        """The loss that is differentiated, and the one by which points are compared."""
        if self.joint != "alternate":
            loss = joint_loss(judged.losses, self.joint, judged.wanted)
            return loss, loss.detach()
        return _turn(judged, turn), joint_loss(judged.losses, "sum", judged.wanted).detach()

    def _moved(self, latents: Tensor, step: Tensor, norm: Tensor) -> Tensor:
        moved = latents - step
        return moved * (norm / _norm(moved).clamp_min(_FLOOR)) if self.keep_norm else moved


@dataclass(frozen=True)
class PublishedRule:
    """Plain gradient descent on one relation after the other, as Learn-to-Steer was published.

    Iteration k works on relation k mod n:  if CE > target: x <- x - step_size dCE/dx.

    A row ends when all its relations in turn have met the target. The released code ends as soon as one of them has,
    so that the others are never worked on; `stop_at_first` repeats that.

    Attributes:
        step_size: Factor of the raw gradient, > 0.
        loss_targets: Cross entropy that is good enough at steered step 0, 1, ... (the last one for all later).
        iterations: Most forward and backward passes per denoising step, >= 1.
        stop_at_first: Reproduce the released code's early end with several relations.

    Source: arXiv:2509.02295; the numbers of each model are in `attnsteer.steering.published`.
    """

    step_size: float = 5.0
    loss_targets: tuple[float, ...] = (1e-5, 3e-5, 5e-5, 7e-5)
    iterations: int = 16
    stop_at_first: bool = False

    def __post_init__(self) -> None:
        if self.step_size <= 0 or self.iterations < 1 or not self.loss_targets:
            raise ValueError(
                f"need step_size > 0, iterations >= 1 and a loss target, got {self.step_size}, {self.iterations}, "
                f"{self.loss_targets}"
            )

    def __call__(self, judge: Judge, latents: Float[Tensor, "rows *shape"], step_index: int) -> Descent:
        """Descend from `latents`, in their own type; `step_index` counts denoising steps from 0.

        Raises: ValueError if a loss or gradient is not finite.
        """
        target = self.loss_targets[min(step_index, len(self.loss_targets) - 1)]
        current = latents.detach().clone()
        met = torch.zeros(len(latents), dtype=torch.int64, device=latents.device)
        done = met > 0
        before = least = latents.new_zeros(len(latents))
        for used in range(1, self.iterations + 1):
            rows = (~done).nonzero().flatten()
            point = current[rows].requires_grad_(True)
            judged = judge(point, None if len(rows) == len(latents) else rows)
            least = least.clone()
            least[rows] = judged.probabilities.detach().amin(dim=1).to(least)
            before = least if used == 1 else before
            turn = _turn(judged, used - 1)
            good = turn.detach() <= target
            met[rows] = torch.where(good, met[rows] + 1, 0)
            needed = 1 if self.stop_at_first else judged.wanted.sum(dim=1).clamp_min(1)
            done[rows] = met[rows] >= needed
            if bool(done.all()):
                break
            move = ~(good | done[rows])
            if bool(move.any()):
                gradient = _gradient(turn, move, point)
                current[rows[move]] = (current[rows] - self.step_size * gradient)[move]
        return Descent(current, used, before, least)


def _turn(judged: Judgement, turn: int) -> Float[Tensor, " rows"]:
    """Loss of the relation whose turn it is in each row: number `turn` modulo the row's count."""
    count = judged.wanted.sum(dim=1).clamp_min(1)
    return judged.losses.gather(1, (turn % count)[:, None])[:, 0]


def _gradient(loss: Tensor, rows: Tensor, point: Tensor) -> Tensor:
    """Gradient of the losses of some rows; 0 elsewhere, as rows do not depend on each other.

    Raises: ValueError if a loss or gradient is not finite.
    """
    (gradient,) = torch.autograd.grad(loss[rows].sum(), point)
    if not bool(loss.detach()[rows].isfinite().all()) or not bool(gradient.isfinite().all()):
        raise ValueError(
            "the steering loss or its gradient is not finite: run the denoiser in bfloat16 or float32 (float16 "
            "overflows easily), or check the classifier's weights"
        )
    return gradient


def _norm(latents: Tensor) -> Tensor:
    """Euclidean norm of each row, in float32 or wider, shaped for broadcasting."""
    wide = latents.detach().to(torch.promote_types(latents.dtype, torch.float32))
    return wide.flatten(1).norm(dim=1).view(-1, *[1] * (latents.ndim - 1))
