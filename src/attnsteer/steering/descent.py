"""Moving latents downhill on a steering loss: the published rule and a leaner one.

Both work on a batch; every row has its own loss, and rows that are satisfied stay where they are.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from attnsteer.steering.objectives import joint_loss


class Judgement(NamedTuple):
    """How far each relation of each row is from being satisfied.

    Attributes:
        losses: Differentiable with respect to the latents; 0 where a row has fewer relations than others.
        probabilities: In [0, 1]; 1 where a row has fewer relations.
        wanted: False where a row has fewer relations.
    """

    losses: Float[Tensor, "rows relations"]
    probabilities: Float[Tensor, "rows relations"]
    wanted: Bool[Tensor, "rows relations"]


Judge = Callable[[Float[Tensor, "rows *shape"]], Judgement]


class Descent(NamedTuple):
    """Where a descent ended.

    Attributes:
        latents: The moved latents, detached, same dtype as given.
        iterations: Forward and backward passes used.
        before: Smallest probability over each row's relations when the descent began.
        after: The same at the last evaluation, which may precede the last move.
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
        step_size: Length of a step relative to the latents' norm, in (0, 1).
        probability: Rows stop when each of their relations has at least this probability, in (0, 1).
        joint: How the relations of a prompt add up: their "sum", or the "worst" alone.
        backtracking: Whether a step that raised the loss is taken back and retried at half the length.
        keep_norm: Whether the latents are rescaled to their norm.
    """

    iterations: int = 3
    step_size: float = 0.08
    probability: float = 0.9
    joint: Literal["sum", "worst"] = "sum"
    backtracking: bool = True
    keep_norm: bool = True

    def __post_init__(self) -> None:
        if self.iterations < 1:
            raise ValueError(f"iterations must be >= 1, got {self.iterations}; leave steering out to switch it off")
        if not 0.0 < self.step_size < 1.0:
            raise ValueError(f"step_size is a fraction of the latents' norm in (0, 1), got {self.step_size}")
        if not 0.0 < self.probability < 1.0:
            raise ValueError(f"probability must be in (0, 1), got {self.probability}; 0.9 is the default")
        if self.joint not in ("sum", "worst"):
            raise ValueError(f"joint must be 'sum' or 'worst', got {self.joint!r}")

    def __call__(self, judge: Judge, latents: Float[Tensor, "rows *shape"], step_index: int) -> Descent:
        """Descend from `latents`; `step_index` does not matter to this rule."""
        norm = _norm(latents)
        best, best_loss, direction = (
            latents.detach(),
            torch.full((len(latents),), torch.inf),
            torch.zeros_like(latents),
        )
        length = torch.full_like(norm, self.step_size)
        current, before, used = best, None, 0
        for _ in range(self.iterations):
            current = current.detach().requires_grad_(True)
            losses, probabilities, wanted = judge(current)
            used += 1
            loss = joint_loss(losses, self.joint, wanted)
            (gradient,) = torch.autograd.grad(loss.sum(), current)
            least = probabilities.detach().amin(dim=1)
            before = least if before is None else before
            loss = loss.detach().to(best_loss)
            better = loss <= best_loss if self.backtracking else torch.ones_like(loss, dtype=torch.bool)
            row = better.to(latents.device).view(-1, *[1] * (latents.ndim - 1))
            best = torch.where(row, current.detach(), best)
            direction = torch.where(row, gradient / _norm(gradient).clamp_min(1e-12), direction)
            length = torch.where(row, length, length / 2)
            best_loss = torch.where(better, loss, best_loss)
            done = (least >= self.probability).view_as(row)
            if bool(done.all()):
                current = best
                break
            moved = best - length * norm * direction
            moved = moved * (norm / _norm(moved).clamp_min(1e-12)) if self.keep_norm else moved
            current = torch.where(done, best, moved)
        if before is None:
            raise RuntimeError("a descent needs at least one iteration")
        return Descent(current.detach().to(latents.dtype), used, before, least)


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
        """Descend from `latents`; `step_index` counts denoising steps from 0."""
        target = self.loss_targets[min(step_index, len(self.loss_targets) - 1)]
        current = latents.detach()
        met = torch.zeros(len(latents), dtype=torch.int64)
        before, used = None, 0
        for iteration in range(self.iterations):
            current = current.detach().requires_grad_(True)
            losses, probabilities, wanted = judge(current)
            used += 1
            least = probabilities.detach().amin(dim=1)
            before = least if before is None else before
            count = wanted.sum(dim=1)
            turn = losses.gather(1, (iteration % count)[:, None])[:, 0]
            (gradient,) = torch.autograd.grad(turn.sum(), current)
            good = turn.detach() <= target
            met = torch.where(good.cpu(), met + 1, torch.zeros_like(met))
            done = met >= (1 if self.stop_at_first else count.cpu())
            # A row that is done keeps its count, and so stays done.
            met = torch.where(done, torch.full_like(met, self.iterations * losses.shape[1]), met)
            move = ~(good | done.to(good.device))
            current = current.detach() - self.step_size * gradient * move.view(-1, *[1] * (latents.ndim - 1))
            if bool(done.all()):
                break
        if before is None:
            raise RuntimeError("a descent needs at least one iteration")
        return Descent(current.detach().to(latents.dtype), used, before, least)


def _norm(latents: Tensor) -> Tensor:
    """Euclidean norm of each row, in float32, shaped for broadcasting."""
    return latents.detach().float().flatten(1).norm(dim=1).view(-1, *[1] * (latents.ndim - 1))
