"""Generates the pictures of items with a method, from the items' own seeds, and measures what they cost."""

import io
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

from PIL import Image

from attnsteer.evaluate.methods import Method, parse_methods

if TYPE_CHECKING:
    from attnsteer.evaluate.runner import Evaluation

LARGE: Final = 256
"""Pictures with a longer side are kept as JPEG instead of PNG."""


@dataclass(frozen=True)
class Painted:
    """A picture with its cost.

    Attributes:
        picture: The picture.
        seed: Its seed.
        seconds: Wall time; of a batch, its share.
        calls: Forward passes of the denoiser, of whole batches.
        evaluations: Rows that the denoiser evaluated for this picture; see `attnsteer.evaluate.cost`.
        iterations: Steps that steering took.
        flops: Floating-point operations, counted for a run's first item only, in a call of its own.
    """

    picture: Image.Image
    seed: int
    seconds: float
    calls: int
    evaluations: float
    iterations: int = 0
    flops: int | None = None

    def result(self) -> dict[str, Any]:
        """What a record keeps of it, plain JSON types."""
        return {
            "seed": self.seed, "seconds": round(self.seconds, 4), "calls": self.calls,
            "evaluations": round(self.evaluations, 4), "iterations": self.iterations, "flops": self.flops,
        }  # fmt: skip

    def file(self, name: str) -> tuple[str, bytes]:
        """File name and content: PNG, or JPEG if it is large."""
        large, buffer = max(self.picture.size) > LARGE, io.BytesIO()
        if large:
            self.picture.save(buffer, "JPEG", quality=92)
        else:
            self.picture.save(buffer, "PNG")
        return f"{name}.{'jpg' if large else 'png'}", buffer.getvalue()


class Studio:
    """A loaded model with everything that the methods need.

    Args:
        evaluation: What is evaluated.

    Raises: ValueError if a method steers but there is no relation classifier.
    """

    def __init__(self, evaluation: "Evaluation") -> None:
        from attnsteer.compare import Request, find_model, open_model, resolve
        from attnsteer.compare.run import learned_steering

        self.evaluation, self.methods = evaluation, parse_methods(evaluation.methods)
        source = find_model(evaluation.model, evaluation.classifier)
        if source.classifier is None and any(method.steer for method in self.methods):
            raise ValueError(f"{evaluation.model!r} has no relation classifier to steer by; pass --classifier")
        self.model = open_model(source, device=_device(evaluation.device), dtype=evaluation.dtype, progress=False)
        self.model.pipe.set_progress_bar_config(disable=True)
        names = ("model", "steps", "guidance_scale", "width", "height", "extra", "dtype")
        given: dict[str, Any] = {name: getattr(evaluation, name) for name in names}
        self.request = resolve(Request("anything", **given), self.model)
        if any(method.cfg for method in self.methods):
            _check_cfg(self.request.guidance_scale, "negative_prompt" in self.model.keywords)
        self.steering = learned_steering(self.request, self.model) if source.classifier else None
        # The first call pays for kernels and caches; without this the first method would look slow.
        self.paint([{"prompt": "anything", "seed": 0, "negative": None}], Method("none"), steps=2)

    def paint(self, items: Sequence[Mapping[str, Any]], method: Method, steps: int | None = None) -> list[Painted]:
        """Generate one picture of each item, all in one batch."""
        from attnsteer.evaluate.cost import measured

        pipe, call = self._call(items, method)
        if steps is not None:
            call["num_inference_steps"] = steps
        with measured(self.model.denoiser) as cost:
            pictures = [picture.convert("RGB") for picture in pipe(**call).images]
        report = getattr(pipe, "steering_report", None) if method.steer else None
        iterations = report.iterations if report is not None else 0
        share = len(items)
        return [
            Painted(
                picture, item["seed"], cost.seconds / share, cost.calls, cost.evaluations / share, iterations,
                self._flops(item, method) if item.get("number") == 0 else None,
            )
            for item, picture in zip(items, pictures, strict=True)
        ]  # fmt: skip

    def _flops(self, item: Mapping[str, Any], method: Method) -> int:
        from attnsteer.evaluate.cost import operations

        pipe, call = self._call([item], method)
        return operations(lambda: pipe(**call))

    def _call(self, items: Sequence[Mapping[str, Any]], method: Method) -> tuple[Any, dict[str, Any]]:
        """The pipeline, guided or not, and the keywords of its call."""
        import torch

        from attnsteer import NAG, guide
        from attnsteer.compare.run import pipeline_call

        call = pipeline_call(self.request, self.model, 0)
        call["prompt"] = [item["prompt"] for item in items]
        call["generator"] = [torch.Generator("cpu").manual_seed(item["seed"]) for item in items]
        negative = [item["negative"] or self.evaluation.negative for item in items]
        if method.cfg:
            call["negative_prompt"] = negative
        guides: list[Any] = []
        if method.nag:
            own = self.evaluation
            guides.append(NAG(scale=own.nag_scale, tau=own.nag_tau, alpha=own.nag_alpha))
            call["nag_negative_prompt"] = negative
        if method.steer:
            guides.append(self.steering)
        return (guide(self.model.pipe, *guides) if guides else self.model.pipe), call


def _check_cfg(guidance_scale: float | None, taken: bool) -> None:
    if not taken:
        raise ValueError("the method cfg needs a pipeline that takes a negative_prompt; leave it out for this model")
    if guidance_scale is not None and guidance_scale <= 1:
        raise ValueError(
            f"the method cfg does nothing at guidance_scale {guidance_scale:g}: set a scale above 1, or leave it out"
        )


def _device(device: str) -> str:
    """Under torchrun each process takes the GPU of its local rank."""
    import torch

    if device == "auto" and torch.cuda.is_available() and "LOCAL_RANK" in os.environ:
        return f"cuda:{int(os.environ['LOCAL_RANK']) % torch.cuda.device_count()}"
    return device
