"""Windows of the denoising schedule: step index <-> fraction of the steps."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Window:
    """A half-open range of steps, given as fractions: step i of n lies inside if start <= i / n < end.

    Args:
        start: First step as a fraction, [0, 1).
        end: Fraction at which the window closes, (start, 1].
    """

    start: float = 0.0
    end: float = 1.0

    @property
    def whole(self) -> bool:
        """Whether the window holds every step."""
        return self.start <= 0.0 and self.end >= 1.0

    def contains(self, step_index: int, num_inference_steps: int) -> bool:
        """Whether a step lies in the window; steps count from 0.

        Raises: ValueError if there are no steps.
        """
        if num_inference_steps < 1:
            raise ValueError(f"num_inference_steps must be >= 1, got {num_inference_steps}")
        return self.start <= step_index / num_inference_steps < self.end

    def steps(self, num_inference_steps: int) -> list[int]:
        """Indices of the steps in the window."""
        return [i for i in range(num_inference_steps) if self.contains(i, num_inference_steps)]
