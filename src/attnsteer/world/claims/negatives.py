"""What the claims about negative guidance share: how their runs are made, and how rows are called."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

from attnsteer.evaluate.methods import Method
from attnsteer.evaluate.prompts.shapes_clips import KINDS
from attnsteer.evaluate.settings import Evaluation
from attnsteer.evaluate.sweep import Swept, swept_methods
from attnsteer.world.claims.clips import CLIP_SUITE
from attnsteer.world.claims.roster import ARCHITECTURES, CFG, Kind, WorldModel
from attnsteer.world.claims.runs import Drawn
from attnsteer.world.claims.scope import SEED, Scope
from attnsteer.world.claims.task import EvaluationTask
from attnsteer.world.scene import ATTRIBUTES, COLOURS

ROW_SECONDS: Final = MappingProxyType({"U-Net": 0.019, "MMDiT": 0.032, "video": 0.025})
"""What one row of one step takes a core while the other one works too, by architecture."""
PICTURE_SECONDS: Final = 0.015
"""What a picture takes beside its steps: detecting and keeping it."""
START_SECONDS: Final = 4.0


@dataclass(frozen=True)
class Trial:
    """How negative prompts are tried.

    Attributes:
        suite: Of `attnsteer evaluate`.
        kinds: Kinds of prompts in it.
        picture_seconds: See `PICTURE_SECONDS`.
    """

    suite: str
    kinds: int
    picture_seconds: float


PICTURES: Final = Trial("shapes-negatives", len(COLOURS) + len(ATTRIBUTES), PICTURE_SECONDS)
CLIPS: Final = Trial(CLIP_SUITE, len(KINDS), 0.2)


def negative_task(
    scope: Scope, model: WorldModel, name: str, methods: str, sweep: Sequence[str] = (), **settings: Any
) -> EvaluationTask:
    """A run over prompts with unwanted things, without classifier-free guidance unless a sweep sets it.

    Args:
        scope: What is drawn.
        model: With it.
        name: The claim's, and what sets the run apart.
        methods: As for `Evaluation`.
        sweep: Likewise.
        settings: Further settings of `Evaluation`.
    """
    steps = int(settings.get("steps") or model.steps)
    trial = CLIPS if Kind("video").fits(model) else PICTURES
    per_thing = scope.size.few if steps <= 8 else scope.size.many
    if trial is CLIPS:
        per_thing = scope.size.clips
    given: dict[str, Any] = {"guidance_scale": 1.0, "nag_scale": model.nag_scale, **settings, "steps": steps}
    keyword = CFG[model.architecture]
    if keyword != "guidance_scale":  # the model's card may switch it on
        given["extra"] = {keyword: 1.0, "negative_prompt": "", **given.get("extra", {})}
    evaluation = Evaluation(
        trial.suite, model.name, methods, tuple(sweep), count=per_thing, seed=SEED,
        batch=min(scope.size.batch, per_thing * trial.kinds), **given,
    )  # fmt: skip
    rows = sum(_rows(method, given) for method in evaluation.columns)
    each = steps * ROW_SECONDS[model.architecture] * rows + trial.picture_seconds * len(evaluation.columns)
    seconds = START_SECONDS + per_thing * trial.kinds * each
    return EvaluationTask(f"{name}/{model.plain_folder}-in-{steps}", seconds, (), evaluation)


def read_negatives(scope: Scope, task: EvaluationTask, block: str) -> Drawn:
    """The finished run of a task."""
    return Drawn.read(scope.work / task.name, block)


def block_of(model: WorldModel, steps: int | None = None) -> str:
    """E.g. "shapes-unet-few, 4 steps"."""
    count = steps or model.steps
    return f"{model.label}, {count} step{'s' if count > 1 else ''}"


def of_base(drawn: Drawn, base: str) -> list[str]:
    """Names of the variants of a method."""
    return [m.method.name for m in drawn.run.methods if getattr(m.method, "base", m.method.name) == base]


def best_of(drawn: Drawn, base: str) -> str:
    """The variant of a method that is right most often; the first of equals."""
    return max(of_base(drawn, base), key=lambda name: sum(drawn.values(name)))


def settings_of(drawn: Drawn, name: str) -> Mapping[str, float]:
    """The swept settings of a variant."""
    method = drawn.figures_of(name).method
    return method.settings if isinstance(method, Swept) else {}


def variant(methods: str, sweep: Sequence[str], base: str, **settings: float) -> str:
    """Name of the variant of a method with these settings.

    Raises: LookupError if the sweep does not hold it.
    """
    for method in swept_methods(methods, sweep):
        if isinstance(method, Swept) and method.base == base and dict(method.settings) == settings:
            return method.name
    raise LookupError(f"the sweep {', '.join(sweep)} holds no {base} with {settings}")


def _rows(method: Method, given: Mapping[str, Any]) -> float:
    swept = dict(method.settings) if isinstance(method, Swept) else {}
    guided = method.cfg or max(swept.get(name, 1.0) for name in CFG.values()) > 1
    return (2.0 if guided else 1.0) + (1.0 if "pag_scale" in given.get("extra", {}) else 0.0)


def published_settings(model: WorldModel) -> Mapping[str, float]:
    """Scale, tau and alpha of NAG that were published for models of this architecture."""
    from attnsteer.presets import PRESETS

    denoiser = next(name for name, architecture in ARCHITECTURES.items() if architecture == model.architecture)
    return next(p.settings for p in PRESETS if (p.denoiser, p.method) == (denoiser, "NAG") and not p.where)
