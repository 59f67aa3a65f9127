"""The user's verb: `guide(pipe, *methods)` gives a stock diffusers pipeline negative prompts and learned steering."""

import inspect
from collections import OrderedDict
from collections.abc import Hashable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

from torch import Tensor, nn

from attnsteer.attention import select_layers, text_layers
from attnsteer.batch import batch_guidance, check_batch, likely_denoisers, seen_family
from attnsteer.conditioning import Conditioning, cache_key, captured, prompt_count, text_inputs, with_prompt
from attnsteer.families import FAMILIES, family_of
from attnsteer.install import (
    Arguments,
    Decision,
    Guidance,
    Installation,
    installation,
    negative_guidance,
    uncompiled,
    wrap_scheduler_step,
)
from attnsteer.presets import resolved
from attnsteer.schedule import Window
from attnsteer.selfcheck import self_check

_CONTRAST = ("", "contrast")  # two prompts; whichever differs from the user's shows which rows are conditional


def guide(
    pipe: Any, *methods: Any, validate: bool = False, engine: Literal["rows", "batch"] = "rows"
) -> "GuidedPipeline":
    """Give a pipeline guidance methods that are active during its calls and leave no trace after them.

    Args:
        pipe: A stock diffusers pipeline, as loaded; LoRA, ControlNet, offloading and the like stay as they are.
        methods: At most one negative method (e.g. `NAG(...)`) and one steering method, in any order.
        validate: Whether to run the same-text and the leak check (three more denoiser calls) on the first guided call.
        engine: "rows" needs a row for the denoiser's class; "batch" works without one, for negative methods alone, at
            twice the cost, and needs all settings of the method.

    Returns: A pipeline with the same attributes; see `GuidedPipeline.__call__` for the extra keywords.

    Raises: UnsupportedModelError if a denoiser's class has no family row; TypeError or ValueError if the methods are
        not methods, clash, or name a layer that does not exist.
    """
    if engine not in ("rows", "batch"):
        raise ValueError(f"engine must be 'rows' or 'batch', got {engine!r}")
    return GuidedPipeline(pipe, methods, validate, engine)


@dataclass(frozen=True)
class Explanation:
    """What a guided call would do; `str()` gives it as text."""

    prompt: str | Sequence[str]
    lines: tuple[str, ...]

    def __str__(self) -> str:
        return "\n".join((f"prompt: {self.prompt}", *self.lines))


class GuidedPipeline:
    """A stock pipeline with guidance methods; made by `guide`. Attributes fall through to the pipeline.

    Attributes:
        steering_report: What the steering method did in the latest call; None if it had nothing to do.
    """

    steering_report: Any

    def __init__(self, pipe: Any, methods: Sequence[Any], validate: bool, engine: str = "rows") -> None:
        own = vars(self)
        if isinstance(pipe, GuidedPipeline) or not hasattr(pipe, "components"):
            raise TypeError(f"guide() needs a stock diffusers pipeline, got {type(pipe).__name__}")
        by_kind = {"negative": None, "steering": None}
        for method in methods:
            kind = getattr(method, "kind", None)
            if kind not in by_kind or isinstance(method, type):
                raise TypeError(f"{method!r} is no guidance method; pass e.g. NAG() or a LearnedSteering object")
            if by_kind[kind] is not None:
                raise ValueError(
                    f"two {kind} methods: {by_kind[kind]!r} and {method!r}; pass at most one of each kind"
                )
            by_kind[kind] = method
        own.update(_pipe=pipe, _negative=by_kind["negative"], _steering=by_kind["steering"], _engine=engine)
        if engine == "batch":
            check_batch(pipe, by_kind["negative"], by_kind["steering"], validate)
            own.update(_to_check=set(), _encoded=OrderedDict(), _installations={}, steering_report=None)
            return
        own.update(_to_check=set(denoisers_of(pipe)) if validate else set(), _encoded=OrderedDict(), _installations={})
        own.update(steering_report=None)
        for name in denoisers_of(pipe):
            denoiser = uncompiled(getattr(pipe, name))
            layers = text_layers(denoiser, family_of(denoiser))
            if by_kind["negative"] is not None:
                select_layers(layers, resolved(by_kind["negative"], denoiser).layers)

    def __call__(
        self,
        *args: Any,
        nag_negative_prompt: str | Sequence[str] | None = None,
        nag_scale: float | None = None,
        nag_tau: float | None = None,
        nag_alpha: float | None = None,
        nag_start: float | None = None,
        nag_end: float | None = None,
        steer_relations: Sequence[Any] | None = None,
        **kwargs: Any,
    ) -> Any:
        """Call the pipeline with the methods active.

        Args:
            args: Passed on to the pipeline.
            nag_negative_prompt: What the picture shall not show: one text, or one per prompt. Defaults to the call's
                `negative_prompt`, which thereby works without CFG too.
            nag_scale: Overrides the method's `scale` for this call; likewise the following.
            nag_tau: See `NAG.tau`.
            nag_alpha: See `NAG.alpha`.
            nag_start: See `NAG.start`.
            nag_end: See `NAG.end`.
            steer_relations: Overrides the relations that steering finds in the prompt: (subject, relation, object)
                triples, or one list of them per prompt; an empty list switches steering off for this call.
            kwargs: Passed on to the pipeline.

        Returns: What the pipeline returns.

        Raises: ValueError if a negative method has no negative prompt to work with, or the other way round.
        """
        call = dict(inspect.signature(self._pipe.__call__).bind_partial(*args).arguments) | kwargs
        overrides = {"scale": nag_scale, "tau": nag_tau, "alpha": nag_alpha, "start": nag_start, "end": nag_end}
        call, steering = self._prepared(call, steer_relations)
        method = self._overridden({k: v for k, v in overrides.items() if v is not None}, nag_negative_prompt)
        negative = call.get("negative_prompt") if nag_negative_prompt is None else nag_negative_prompt
        with ExitStack() as stack:
            rules = self._rules(method)
            if rules and negative is None:
                raise ValueError(
                    f"{type(method).__name__} needs a negative prompt: pass nag_negative_prompt=... (or "
                    "negative_prompt=...), or nag_scale=1 to switch it off for this call"
                )
            plain = {name: value for name, value in call.items() if name != "steer_relations"}
            if rules or steering is not None:
                conditioning = self._conditioning(plain, negative if rules else None)
                if steering is not None:
                    denoiser = getattr(self._pipe, denoisers_of(self._pipe)[0])
                    report = stack.enter_context(steering.session(self._pipe, denoiser, conditioning, call))
                    vars(self)["steering_report"] = report
                self._install(rules, conditioning, stack)
            return self._pipe(**plain)

    def explain(self, prompt: str | Sequence[str], num_inference_steps: int = 50) -> Explanation:
        """What a call with this prompt would do, without running the pipeline."""
        lines = []
        if self._engine == "batch":
            names = ", ".join(likely_denoisers(self._pipe))
            return Explanation(prompt, (f"{names}: batch-doubled, without a row; {self._negative}",))
        for name in denoisers_of(self._pipe):
            denoiser = uncompiled(getattr(self._pipe, name))
            layers = len(text_layers(denoiser, family_of(denoiser)))
            lines.append(f"{name}: {type(denoiser).__name__}, {layers} attention layers read the text")
            rule = self._rules(self._negative).get(name)
            if rule is not None:
                steps = len(Window(rule.start, rule.end).steps(num_inference_steps))
                chosen = layers if rule.layers is None else len(rule.layers)
                lines.append(f"  {rule}: {steps} of {num_inference_steps} steps, {chosen} layers, same denoiser calls")
        if self._negative is None:
            lines.append("no negative method: negative prompts work through CFG only")
        if self._steering is not None:
            describe = getattr(self._steering, "explain", None)
            lines.append(str(describe(self._pipe, prompt)) if describe else f"steering: {self._steering}")
        return Explanation(prompt, tuple(lines))

    def to(self, *args: Any, **kwargs: Any) -> "GuidedPipeline":
        """Move the pipeline, as `DiffusionPipeline.to` does; returns the guided pipeline."""
        self._pipe.to(*args, **kwargs)
        return self

    def __getattr__(self, name: str) -> Any:
        return getattr(vars(self)["_pipe"], name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self._pipe, name, value)

    def __repr__(self) -> str:
        methods = [repr(method) for method in (self._negative, self._steering) if method is not None]
        return f"guide({type(self._pipe).__name__}, {', '.join(methods)})"

    def _prepared(self, call: Arguments, relations: Sequence[Any] | None) -> tuple[Arguments, Any]:
        """The call as steering wants it, and the steering method if it has anything to do in this call."""
        vars(self)["steering_report"] = None
        if self._steering is None:
            if relations is not None:
                raise ValueError("steer_relations needs a steering method: use guide(pipe, LearnedSteering(...), ...)")
            return call, None
        if relations is not None:
            call = {**call, "steer_relations": relations}
        if not hasattr(self._steering, "prepare"):
            return call, self._steering
        call = self._steering.prepare(call)
        return call, self._steering if self._steering.applies(call) else None

    def _overridden(self, overrides: dict[str, float], negative_prompt: object) -> Any:
        method = self._negative
        if method is None:
            if overrides or negative_prompt is not None:
                raise ValueError("nag_... keywords need a negative method: use guide(pipe, NAG(), ...)")
            return None
        unknown = set(overrides) - {field.name for field in fields(method)}
        if unknown:
            raise ValueError(f"{type(method).__name__} has no setting {sorted(unknown)}; leave out nag_{min(unknown)}")
        return replace(method, **overrides)

    def _rules(self, method: Any) -> dict[str, Any]:
        """The negative method with all its settings, for each denoiser in which it changes anything."""
        if method is None:
            return {}
        if self._engine == "batch":
            return {} if method.identity else dict.fromkeys(likely_denoisers(self._pipe), method)
        names = denoisers_of(self._pipe)
        rules = {name: resolved(method, uncompiled(getattr(self._pipe, name))) for name in names}
        return {name: rule for name, rule in rules.items() if not rule.identity}

    def _conditioning(self, call: Arguments, negative: str | Sequence[str] | None) -> Conditioning:
        pipe, batch = self._pipe, self._engine == "batch"
        names = likely_denoisers(pipe) if batch else denoisers_of(pipe)
        denoisers = [getattr(pipe, name) for name in names]
        if batch:
            calls = [captured(pipe, denoisers, each) for each in (call, with_prompt(call, negative or ""))]
            family = seen_family(uncompiled(denoisers[0]), *calls)
            return Conditioning(family, text_inputs(family, calls[1]), lambda: calls[0])
        family = family_of(uncompiled(denoisers[0]))
        prompts = [call.get("prompt")] if isinstance(call.get("prompt"), str) else call.get("prompt") or []
        prompt_count(call)
        other = next(text for text in _CONTRAST if text not in prompts) if negative is None else negative
        contrast_call = with_prompt(call, other)
        key: Hashable | None = cache_key(pipe, contrast_call)
        contrast: dict[str, Tensor] | None = None if key is None else self._encoded.get(key)
        if contrast is None:
            contrast = text_inputs(family, captured(pipe, denoisers, contrast_call))
        if key is None:
            self._encoded.clear()
        else:
            self._encoded[key] = contrast
            while len(self._encoded) > 4:
                self._encoded.popitem(last=False)
        return Conditioning(family, contrast, lambda: captured(pipe, denoisers, call))

    def _install(self, rules: dict[str, Any], conditioning: Conditioning, stack: ExitStack) -> None:
        steps = _StepCounter(self._pipe)
        if any(not Window(rule.start, rule.end).whole for rule in rules.values()):
            stack.enter_context(wrap_scheduler_step(steps.scheduler, steps.step))
        for name, rule in rules.items():
            denoiser, window = getattr(self._pipe, name), Window(rule.start, rule.end)
            if self._engine == "batch":

                def decide_batch(arguments: Arguments, window: Window = window) -> Any:
                    active = window.whole or window.contains(steps.index, steps.total)
                    return conditioning.decide(arguments) if active else None

                stack.enter_context(batch_guidance(denoiser, conditioning.family, rule.combine, decide_batch))
                continue
            kept = self._installations.get(name)
            if kept is None or not kept.fits(denoiser):
                kept = Installation(denoiser)
            self._installations[name] = here = stack.enter_context(installation(denoiser, kept))

            def decide(arguments: Arguments, name: str = name, here: Any = here, window: Window = window) -> Any:
                decision = conditioning.decide(arguments)
                if decision is None or not (window.whole or window.contains(steps.index, steps.total)):
                    return None
                self._check_once(name, here, arguments, decision)
                return decision

            stack.enter_context(negative_guidance(denoiser, Guidance(rule.combine, decide, rule.layers)))

    def _check_once(self, name: str, here: Any, arguments: Arguments, decision: Decision) -> None:
        if name in self._to_check:
            self_check(lambda trial: here.output(arguments, trial), here.family, arguments, here.guidance, decision)
            self._to_check.discard(name)


class _StepCounter:
    """Counts the scheduler's steps of one pipeline run."""

    def __init__(self, pipe: Any) -> None:
        self._pipe = pipe
        self.index = 0

    @property
    def scheduler(self) -> Any:
        """The pipeline's scheduler.

        Raises: ValueError if it has none.
        """
        scheduler = getattr(self._pipe, "scheduler", None)
        if not hasattr(scheduler, "step"):
            raise ValueError("this pipeline has no scheduler.step to count steps with: leave start and end at 0 and 1")
        return scheduler

    @property
    def total(self) -> int:
        """Number of steps of the run."""
        return int(vars(self._pipe).get("_num_timesteps") or len(self.scheduler.timesteps))

    def step(self, step: Any, *args: Any, **kwargs: Any) -> Any:
        """Take one step of the scheduler."""
        result = step(*args, **kwargs)
        self.index += 1
        return result


def denoisers_of(pipe: Any) -> list[str]:
    """Names of the pipeline's components that are denoisers, in the order in which they are used.

    Raises: UnsupportedModelError if no component has a family row.
    """
    modules = {name: module for name, module in pipe.components.items() if isinstance(module, nn.Module)}
    known = [n for n, m in modules.items() if any(c.__name__ in FAMILIES for c in type(uncompiled(m)).__mro__)]
    if not known:
        likely = [name for name in ("transformer", "unet", *modules) if name in modules]
        if not likely:
            raise ValueError(f"{type(pipe).__name__} has no denoiser among its components")
        family_of(uncompiled(modules[likely[0]]))
    return sorted(known)
