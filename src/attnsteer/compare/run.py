"""Generating one picture: with the plain pipeline, with negative guidance, with steering, or with both."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Final

from PIL import Image

from attnsteer.compare.clips import exposure, film_strip
from attnsteer.compare.models import KEYWORDS, OpenModel
from attnsteer.compare.request import Request, RequestError
from attnsteer.pictures import Heat
from attnsteer.steering.relations import Relation

if TYPE_CHECKING:
    from attnsteer import NAG
    from attnsteer.compare.maps import MapWatch


@dataclass(frozen=True)
class Variant:
    """Which methods are on.

    Attributes:
        name: Key in files and JSON.
        title: For people.
        nag: Negative guidance is on.
        steer: Learned steering is on.
    """

    name: str
    title: str
    nag: bool
    steer: bool


OFF: Final = Variant("off", "Off", nag=False, steer=False)
NEGATIVE: Final = Variant("nag", "NAG", nag=True, steer=False)
STEERED: Final = Variant("steered", "Steered", nag=False, steer=True)
BOTH: Final = Variant("both", "NAG + steered", nag=True, steer=True)


@dataclass(frozen=True)
class Plan:
    """What a request comes to on a model.

    Attributes:
        variant: The methods that will run.
        relations: The relations found in the prompt.
        notes: What the user should know, e.g. that a relation is not steered for want of a classifier.
    """

    variant: Variant
    relations: tuple[Relation, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def variants(self) -> tuple[Variant, ...]:
        """The columns of a comparison: off, each method that runs, and both together."""
        if self.variant == BOTH:
            return OFF, NEGATIVE, STEERED, BOTH
        return (OFF,) if self.variant == OFF else (OFF, self.variant)


@dataclass(frozen=True)
class Picture:
    """A finished picture.

    Attributes:
        image: The picture; of a video, its frames side by side.
        frames: The frames of a video, else empty.
        variant: The methods that ran.
        seed: Its seed.
        seconds: Wall time of the call, without the recording of maps.
        steering: What steering did, a `SteeringReport`; None if it did not run.
        heats: Attention maps, where asked for.
    """

    image: Image.Image
    variant: Variant
    seed: int
    seconds: float
    frames: tuple[Image.Image, ...] = ()
    steering: Any = field(default=None, compare=False)
    heats: tuple[Heat, ...] = field(default=(), compare=False)

    @property
    def still(self) -> Image.Image:
        """The picture, or all frames of a video over each other, as its attention maps are means over the frames."""
        return exposure(self.frames) if self.frames else self.image


def plan(request: Request, classifier: str | None) -> Plan:
    """Decide which methods run, before any model is loaded.

    Args:
        request: What is asked for.
        classifier: The relation classifier at hand, if any.

    Raises: RequestError if steering is insisted on but the prompt names no relation or there is no classifier.
    """
    relations = request.relations
    notes: list[str] = []
    if request.steer == "on" and not relations:
        raise RequestError(
            f"steering is insisted on, but no relation was found in {request.text!r};"
            " name one (a cat to the left of a dog), see `attnsteer parse`, or leave steering on auto"
        )
    if request.steer == "on" and classifier is None:
        raise RequestError(
            f"steering is insisted on, but {request.model!r} has no relation classifier; pass one with --classifier"
        )
    steer = request.steer != "off" and bool(relations) and classifier is not None
    if request.tries and not steer:
        raise RequestError(
            "seeds, best_of, verify and attempts let the relation classifier judge: they need a relation in the "
            "prompt, a classifier, and steering that is not switched off"
        )
    if request.steer == "auto" and relations and classifier is None:
        notes.append(f"the prompt names a relation, but {request.model!r} has no relation classifier: not steered")
    nag = request.guides
    if request.negative and not nag:
        notes.append("nag_scale 1 and nag_alpha 0 switch negative guidance off: the negative prompt has no effect")
    if request.nag and not request.negative:
        notes.append("settings of negative guidance without a negative prompt: nothing to guide away from")
    variant = next(v for v in (OFF, NEGATIVE, STEERED, BOTH) if (v.nag, v.steer) == (nag, steer))
    return Plan(variant, relations, tuple(notes))


def negative_guidance(request: Request) -> "NAG":
    """Return the request's settings of negative guidance; what is left open is None."""
    from attnsteer import NAG

    given: dict[str, Any] = dict(request.nag)
    return NAG(**given)


def learned_steering(request: Request, model: OpenModel) -> Any:
    """Return the steering method for a request, on the model's device.

    Relations that the classifier was not trained on are left alone, unless steering is insisted on (then the run
    ends with an error). Seeds are tried, and pictures verified and drawn anew, as the request says.
    """
    from attnsteer import LearnedSteering
    from attnsteer.steering.best_of import best_of_by_objective
    from attnsteer.steering.retry import Retries
    from attnsteer.steering.select import SeedSelection
    from attnsteer.steering.verify import Verification

    classifier = str(model.source.classifier)
    published = classifier.endswith(".pth")
    method = (LearnedSteering.from_published if published else LearnedSteering.from_pretrained)(classifier)
    network = getattr(method.objective, "classifier", None)
    if network is not None:
        network.to(model.device)
    method = replace(method, unknown="error" if request.steer == "on" else "skip")
    if request.best_of is not None:
        return best_of_by_objective(method, request.best_of)
    seeds = None if request.seeds is None else SeedSelection(request.seeds)
    retries = None if request.attempts is None else Retries(request.attempts)
    return replace(method, seeds=seeds, verify=Verification() if request.verify else None, retries=retries)


def generate(
    request: Request, model: OpenModel, variant: Variant, *, seed: int | None = None, watch: "MapWatch | None" = None
) -> Picture:
    """Generate one picture with the methods of `variant`.

    Args:
        request: A resolved request.
        model: The loaded pipeline; left as it was.
        variant: Which methods are on.
        seed: Instead of the request's.
        watch: Records attention maps on the way; see `attnsteer.compare.maps`.

    Raises: RequestError if the pipeline's output holds no pictures, or a watch should see more than one run.
    """
    steering = learned_steering(request, model) if variant.steer else None
    call = pipeline_call(request, model, request.seed if seed is None else seed)
    if watch is not None:
        if request.tries:
            raise RequestError(
                "maps show one run with the given seed: leave out --seeds, --best-of, --verify and --attempts, which "
                "make several"
            )
        watch.steering, steering = steering, watch
        call["callback_on_step_end"] = watch.on_step
    negative = negative_guidance(request) if variant.nag else None
    methods = [method for method in (negative, steering) if method is not None]
    pipe = model.pipe
    if methods:
        from attnsteer.pipeline.guided import guide

        pipe = guide(model.pipe, *methods)
    if variant.nag:
        call["nag_negative_prompt"] = request.negative
    if variant.steer:
        call["steer_relations"] = list(request.relations)
    model.pipe.set_progress_bar_config(disable=not model.progress, leave=False, desc=variant.title)
    start = time.perf_counter()
    image, frames = pictures_of(pipe(**call))
    seconds = time.perf_counter() - start - (watch.seconds if watch is not None else 0.0)
    report = getattr(pipe, "steering_report", None) if variant.steer else None
    return Picture(image, variant, request.seed if seed is None else seed, seconds, frames, report)


def pipeline_call(request: Request, model: OpenModel, seed: int) -> dict[str, Any]:
    """Return the keywords of the stock pipeline's call; a seed gives the same noise on every device."""
    import torch

    call: dict[str, Any] = {"prompt": request.text, "generator": torch.Generator("cpu").manual_seed(seed)}
    for name, keyword in KEYWORDS.items():
        if getattr(request, name) is not None:
            call[keyword] = getattr(request, name)
    if "output_type" in model.keywords:
        call["output_type"] = "pil"
    return {**call, **request.extra}


def pictures_of(output: Any) -> tuple[Image.Image, tuple[Image.Image, ...]]:
    """Take the picture out of a pipeline's output; of a video, a strip of its frames, and the frames.

    Raises: RequestError for an output without PIL pictures.
    """
    images: Sequence[Any] = getattr(output, "images", None) or []
    if images and isinstance(images[0], Image.Image):
        return images[0], ()
    videos: Sequence[Any] = getattr(output, "frames", None) or []
    if videos and all(isinstance(frame, Image.Image) for frame in videos[0]):
        frames = tuple(videos[0])
        return film_strip(frames), frames
    raise RequestError(f"{type(output).__name__} holds no pictures; attnsteer generates pictures and video")


def run_variants(request: Request, model: OpenModel, planned: Plan, *, compare: bool = True) -> list[Picture]:
    """Generate the pictures of a plan, all from the request's seed.

    Args:
        request: A resolved request.
        model: The loaded pipeline.
        planned: From `plan`.
        compare: Run every column of the comparison, with heat maps of the objects at a middle step; otherwise only
            the planned methods, without maps.

    Returns: One picture per variant, the one with all planned methods last.
    """
    if not compare:
        return [generate(request, model, planned.variant)]
    from attnsteer.compare.maps import object_heats

    # The first call pays for imports, kernels and caches; without this the first column would look slow.
    generate(replace(request, steps=min(2, request.steps or 2)), model, OFF)
    pictures = []
    for variant in planned.variants:
        picture, heats = object_heats(request, model, variant, planned.relations)
        pictures.append(replace(picture, heats=heats))
    return pictures
