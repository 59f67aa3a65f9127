"""Generates the pictures of items with a method, from the items' own seeds, and measures what they cost."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import fields, replace
from typing import TYPE_CHECKING, Any

from PIL import Image

from attnsteer.compare.settings import PictureSettings
from attnsteer.evaluate.methods import Method
from attnsteer.evaluate.painted import Painted
from attnsteer.evaluate.sweep import OF_THE_CALL, Swept, base_of, swept_methods, with_settings
from attnsteer.jobs.engines import rank_device

if TYPE_CHECKING:
    from attnsteer.evaluate.settings import Evaluation


class Studio:
    """A loaded model with everything that the methods need.

    Args:
        evaluation: What is evaluated.

    Raises: ValueError if a method steers but there is no relation classifier, a sweep names no setting of a method, or
        nobody has published settings of a method for this model.
    """

    def __init__(self, evaluation: "Evaluation") -> None:
        from attnsteer.compare import Request, find_model, open_model, resolve
        from attnsteer.compare.run import learned_steering
        from attnsteer.evaluate.cost import Meter
        from attnsteer.pipeline.denoisers import denoisers_of

        self.evaluation, self.methods = evaluation, swept_methods(evaluation.methods, evaluation.sweep)
        source = find_model(evaluation.model, evaluation.classifier)
        if source.classifier is None and any(method.steer for method in self.methods):
            raise ValueError(
                f"{evaluation.model!r} has no relation classifier to steer by; pass"
                " --classifier, or --methods that do not steer"
            )
        self.model = open_model(source, device=rank_device(evaluation.device), dtype=evaluation.dtype, progress=False)
        self.model.pipe.set_progress_bar_config(disable=True)
        given: dict[str, Any] = {item.name: getattr(evaluation, item.name) for item in fields(PictureSettings)}
        # With a negative prompt, the model's own settings of NAG are filled in, too.
        given["negative"] = "anything" if any(method.nag for method in self.methods) else None
        self.request = resolve(Request("anything", model=evaluation.model, **given), self.model)
        self.cfg_keyword = "true_cfg_scale" if "true_cfg_scale" in self.model.keywords else "guidance_scale"
        self.steering: Any = learned_steering(self.request, self.model) if source.classifier else None
        for method in self.methods:
            if method.cfg:
                self._check_cfg(method)
            self._guides(method)
        # The first call pays for kernels and caches. It also says what an evaluation is: a row of the plain denoiser.
        self.meter = Meter(*(getattr(self.model.pipe, name) for name in denoisers_of(self.model.pipe)))
        with self.meter.counted("first call"):
            pipe, call = self.call([{"prompt": "anything", "seed": 0, "negative": None}], Method("none"))
            pipe(**call | {"num_inference_steps": 2})

    @property
    def resolved(self) -> dict[str, Any]:
        """The settings of the pipeline's call, with what the model's card and the pipeline filled in."""
        names = [item.name for item in fields(PictureSettings)]
        found = {name: getattr(self.request, name) for name in names}
        return {name: value for name, value in found.items() if value not in (None, {})}

    @property
    def candidate_cost(self) -> float:
        """What one seed that the classifier judges costs, in plain pictures: the steps up to there, and one pass."""
        from attnsteer.steering.trials import after_steering

        steps = self.request.steps or 1
        return math.ceil(after_steering(self.steering) * steps) / steps + 1 / steps

    def paint(self, items: Sequence[Mapping[str, Any]], method: Method) -> list[Painted]:
        """Generate one picture or clip of each item, all in one batch."""
        if not self.meter.knows(method.name):
            with self.meter.counted(method.name):
                self._run(items[:1], method)
        with self.meter.measured(method.name, len(items)) as cost:
            pipe, clips = self._run(items, method)
        report = getattr(pipe, "steering_report", None) if method.steer else None
        share = len(items)
        return [
            Painted(
                tuple(frames), item["seed"], cost.seconds / share, cost.calls, cost.evaluations / share,
                cost.flops // share, report.iterations if report is not None else 0,
            )
            for item, frames in zip(items, clips, strict=True)
        ]  # fmt: skip

    def _run(self, items: Sequence[Mapping[str, Any]], method: Method) -> tuple[Any, list[list[Image.Image]]]:
        pipe, call = self.call(items, method)
        return pipe, _clips(pipe(**call))

    def call(
        self, items: Sequence[Mapping[str, Any]], method: Method, watch: Any = None
    ) -> tuple[Any, dict[str, Any]]:
        """The pipeline, guided or not, and the keywords of its call.

        Args:
            items: The items of a batch.
            method: What guides them.
            watch: A `MapWatch` that records attention maps on the way.
        """
        import torch

        from attnsteer import guide
        from attnsteer.compare.run import pipeline_call

        call = pipeline_call(self.request, self.model, 0)
        settings = self._settings(method)
        call |= {OF_THE_CALL[name]: value for name, value in settings.items() if name in OF_THE_CALL}
        if "num_inference_steps" in call:
            call["num_inference_steps"] = int(call["num_inference_steps"])
        call["prompt"] = [item["prompt"] for item in items]
        call["generator"] = [torch.Generator("cpu").manual_seed(item["seed"]) for item in items]
        negative = [item["negative"] or self.evaluation.unwanted for item in items]
        if method.cfg:
            call["negative_prompt"] = negative
        elif isinstance(call.get("negative_prompt"), str):  # pipelines want a list beside a list
            call["negative_prompt"] = [call["negative_prompt"]] * len(items)
        guides = self._guides(method)
        for one in guides:
            if one.kind == "negative":
                call[f"{one.prefix}_negative_prompt"] = negative
        if watch is not None:
            watch.steering = next((one for one in guides if one.kind == "steering"), None)
            guides = [*(one for one in guides if one.kind != "steering"), watch]
            call["callback_on_step_end"] = watch.on_step
        return (guide(self.model.pipe, *guides) if guides else self.model.pipe), call

    def _guides(self, method: Method) -> list[Any]:
        """The guidance of a method, with its swept settings."""
        from attnsteer import NAG
        from attnsteer.compare.run import negative_guidance
        from attnsteer.negative import METHODS
        from attnsteer.presets import resolved

        left = {name: value for name, value in self._settings(method).items() if name not in OF_THE_CALL}
        guides: list[Any] = []
        if method.nag:
            rule = next((each for each in METHODS if each.prefix == base_of(method)), NAG)
            guides.append(negative_guidance(self.request) if rule is NAG else rule())
        if method.steer and self.steering is not None:
            steering = self.steering
            guides.append(_by_classifier(steering, method) if method.picks else _retried(steering, method))
        guides = [with_settings(one, left) for one in guides]
        if left:
            raise ValueError(f"{method.name}: there is no setting {', '.join(left)}; see the sweep of `evaluate`")
        return [resolved(one, self.model.denoiser) if one.kind == "negative" else one for one in guides]

    def _settings(self, method: Method) -> dict[str, float]:
        """The swept settings; the scale of classifier-free guidance is the pipeline's."""
        own = dict(method.settings) if isinstance(method, Swept) else {}
        if method.cfg and "scale" in own:
            own[self.cfg_keyword] = own.pop("scale")
        return own

    def _check_cfg(self, method: Method) -> None:
        if "negative_prompt" not in self.model.keywords:
            raise ValueError(
                "the method cfg needs a pipeline that takes a negative_prompt; leave it out for this model"
            )
        name = self.cfg_keyword
        given = self.request.extra.get(name) if name != "guidance_scale" else self.request.guidance_scale
        default = self.model.keywords[name].default if name in self.model.keywords else None
        scale = self._settings(method).get(name, default if given is None else given)
        if isinstance(scale, int | float) and scale <= 1:
            raise ValueError(
                f"the method cfg does nothing at {name} {scale:g}: set a scale above 1 (--sweep cfg.scale=4),"
                " or leave it out"
            )


def _by_classifier(steering: Any, method: Method) -> Any:
    """Best-of-N with the classifier as judge; the number of "as many as the budget pays for" is still to come."""
    from attnsteer.steering.best_of import best_of_by_objective

    return best_of_by_objective(steering, method.candidates or 2)


def _retried(steering: Any, method: Method) -> Any:
    """Steering of as many seeds in turn as the method allows."""
    from attnsteer.steering.retry import Retries

    return steering if method.attempts == 1 else replace(steering, retries=Retries(method.attempts))


def _clips(output: Any) -> list[list[Image.Image]]:
    """The frames of each picture or clip of a pipeline's output, in RGB; a picture has one."""
    images = getattr(output, "images", None)
    clips = [[image] for image in images] if images is not None else output.frames
    return [[frame.convert("RGB") for frame in frames] for frames in clips]
