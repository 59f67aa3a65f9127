"""How the published Learn-to-Steer method steers each model: steps, step sizes, loss targets, trained steps.

Source: Yiflach, Atzmon, Chechik, arXiv:2509.02295, and the checkpoint files released with it.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import MappingProxyType


@dataclass(frozen=True)
class PublishedSchedule:
    """How the published method steers one model.

    Ahead of denoising step i in [start_step, stop_step), up to `max_iterations` times: one forward of the denoiser,
    CE of the classifier for relation k mod n (k counts the iterations, n the prompt's relations); stop once
    CE <= `loss_target(i)`, else latents <- latents - step_size * gradient.

    Attributes:
        model_id: Base model on the Hub.
        channels: Its map channels, layers x heads.
        num_inference_steps: Denoising steps the indices count in.
        guidance_scale: Of the stock pipeline call.
        start_step, stop_step: Steered steps, half-open.
        step_size: Factor of the raw gradient, in latent units.
        dtype: Name of the torch dtype the base model runs in.
        image_size: Side of the picture in pixels, where the checkpoint does not say.
        pixels_per_cell: Pixels per cell of the unresized maps where the picture's side follows from the checkpoint's
            `orig_map_size`; None where the picture's side is fixed.
        normalise: Whether maps are resized to the classifier's map size and divided by their sum. FLUX.1-schnell's are
            of that size already and keep their magnitude.
        text_length: Text tokens the maps' softmax runs over, padding included.
        max_iterations: Forward passes per steered step at most.
        loss_targets: Cross entropy that ends a step's iterations, for steered step 0, 1, 2 and all later ones.
    """

    model_id: str
    channels: int
    num_inference_steps: int
    guidance_scale: float
    stop_step: int
    step_size: float
    dtype: str
    image_size: int
    pixels_per_cell: int | None
    normalise: bool
    text_length: int
    start_step: int = 0
    max_iterations: int = 16
    loss_targets: tuple[float, ...] = (1e-5, 3e-5, 5e-5, 7e-5)

    @property
    def window(self) -> tuple[float, float]:
        """The steered steps as fractions: the first half or, of few steps, the first one."""
        return self.start_step / self.num_inference_steps, self.stop_step / self.num_inference_steps

    def loss_target(self, step_index: int) -> float:
        """Cross entropy at which the iterations of a denoising step end."""
        if step_index < 0:
            raise ValueError(f"step_index must be >= 0, got {step_index}")
        return self.loss_targets[min(step_index, len(self.loss_targets) - 1)]

    def relation_at(self, iteration: int, num_relations: int) -> int:
        """Which of the prompt's relations an iteration works on: they take turns."""
        if num_relations < 1:
            raise ValueError("num_relations must be >= 1; a prompt without a relation is not steered")
        return iteration % num_relations

    def image_size_for(self, orig_map_size: int | None) -> int:
        """Side of the picture in pixels for a checkpoint's `orig_map_size`."""
        if self.pixels_per_cell is None or orig_map_size is None:
            return self.image_size
        return self.pixels_per_cell * orig_map_size


_SCHNELL = PublishedSchedule(
    model_id="black-forest-labs/FLUX.1-schnell",
    channels=57 * 24,
    num_inference_steps=4,
    guidance_scale=0.0,
    stop_step=1,
    step_size=5.0,
    dtype="bfloat16",
    image_size=256,
    pixels_per_cell=16,
    normalise=False,
    text_length=512,
)
_DEV = PublishedSchedule(
    model_id="black-forest-labs/FLUX.1-dev",
    channels=57 * 24,
    num_inference_steps=50,
    guidance_scale=3.5,
    stop_step=25,
    step_size=5.0,
    dtype="bfloat16",
    image_size=512,
    pixels_per_cell=16,
    normalise=True,
    text_length=512,
)
_SD2 = PublishedSchedule(
    model_id="stabilityai/stable-diffusion-2-1-base",
    channels=195,
    num_inference_steps=50,
    guidance_scale=7.5,
    stop_step=25,
    step_size=5.0,
    dtype="float32",
    image_size=512,
    pixels_per_cell=None,
    normalise=True,
    text_length=77,
)
_SD14 = replace(_SD2, model_id="CompVis/stable-diffusion-v1-4", channels=128, step_size=7.5)

PUBLISHED_SCHEDULES: Mapping[str, PublishedSchedule] = MappingProxyType(
    {
        "flux_schnell": _SCHNELL,
        "flux_schnell_diagonals": _SCHNELL,
        "flux_dev": _DEV,
        "sd2": _SD2,
        "sd14": _SD14,
    }
)
"""By the stem of the published checkpoint's file name."""


def published_schedule(name: str | Path) -> PublishedSchedule:
    """The schedule that belongs to a published checkpoint, by its file name or the stem of it.

    Raises:
        ValueError: if the name is none of the published ones; a renamed file needs the schedule named explicitly.
    """
    stem = Path(name).name.removesuffix(".pth")
    if stem not in PUBLISHED_SCHEDULES:
        known = ", ".join(PUBLISHED_SCHEDULES)
        raise ValueError(f"no published schedule is called {stem!r}; name the one to use with schedule=...: {known}")
    return PUBLISHED_SCHEDULES[stem]


def assign_by_intervals(num_steps: int, trained: Sequence[int]) -> list[int]:
    """Classifier timestep of every denoising step: the first trained index that is not before the step.

    Steps behind the last trained index use the last. With 4 steps and (1, 3): [1, 1, 3, 3].

    Args:
        num_steps: Denoising steps, counted as the trained indices are.
        trained: Step indices the classifier was trained on, in any order.

    Raises:
        ValueError: if there is no step or no trained index.
    """
    if num_steps < 1 or not trained:
        raise ValueError(f"need at least one step and one trained index, got {num_steps} steps and {list(trained)}")
    ordered = sorted(trained)
    return [next((index for index in ordered if index >= step), ordered[-1]) for step in range(num_steps)]
