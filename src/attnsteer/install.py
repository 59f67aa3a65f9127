"""Installing attnsteer in a denoiser or scheduler for the time of a `with` block.

All context managers here can be nested in any order on one denoiser; they share one root hook and one attention seam.
"""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from attnsteer.attention import Layout, Seam, select_layers
from attnsteer.changes import Attribute, Change, Entry, Hook, applied
from attnsteer.families import family_of
from attnsteer.inject import (
    batch_size,
    fresh,
    named_arguments,
    negative_arguments,
    split_changes,
    text_length,
    with_negative,
)
from attnsteer.presets import resolved
from attnsteer.segments import Combine, Rows
from attnsteer.sidecar import SideCar
from attnsteer.steering.maps import MapRecorder, StopForward

Arguments = dict[str, Any]
Decision = tuple[Rows, Mapping[str, Tensor]]
BeforeCall = Callable[[nn.Module, tuple[Any, ...], Arguments], tuple[tuple[Any, ...], Arguments] | None]


@dataclass(frozen=True)
class Guidance:
    """Negative guidance of a denoiser.

    Args:
        combine: (Z+, Z-) -> output.
        decide: Given the call's arguments, the rows to guide and the negative text inputs; None for a plain call.
        layers: Names or indices of the layers to guide; None is all.
    """

    combine: Combine
    decide: Callable[[Arguments], Decision | None]
    layers: Sequence[str | int] | None = None


class Installation:
    """What is installed in one denoiser; shared by all open context managers of this file.

    It may be installed again as long as it `fits`; what `torch.compile` made of the denoiser then stays valid.

    Args:
        denoiser: As the pipeline calls it, compiled or not.
    """

    def __init__(self, denoiser: nn.Module) -> None:
        self.denoiser, self.inner = denoiser, uncompiled(denoiser)
        self.family = family_of(self.inner)
        self.seam = Seam(self.inner, self.family)
        self.guidance: Guidance | None = None
        self.recorders: list[MapRecorder] = []
        self.callbacks: list[BeforeCall] = []
        self.suspensions = 0
        self._in_callback = False
        self._seam_users = 0
        self.root: list[Change] = [Hook(denoiser, "before", self.before), Hook(denoiser, "after", self.after)]
        self.sidecar = SideCar(self.inner, self.family, self.seam)
        splits = split_changes(self.inner, self.family, self.seam)
        self._changes = [*self.seam.changes(), *splits, *self.sidecar.changes()]
        self._attached = self._attachments()

    def fits(self, denoiser: nn.Module) -> bool:
        """Whether this is for that denoiser, and its processors and forwards are those it was made for."""
        found = self._attachments() if denoiser is self.denoiser else []
        return len(found) == len(self._attached) and all(a is b for a, b in zip(found, self._attached, strict=True))

    def _attachments(self) -> list[object]:
        owned = [vars(module) for module in self.inner.modules()]
        found = [own.get(name) for own in owned for name in ("forward", "processor")]
        return found + [getattr(entry, "_attention_backend", None) for entry in found]

    def before(self, module: nn.Module, args: tuple[Any, ...], kwargs: Arguments) -> tuple[tuple[Any, ...], Arguments]:
        """Root hook: callbacks, then the negative text, then the layout for the attention seam."""
        arguments = named_arguments(self.inner, args, kwargs)
        if self.callbacks and not self._in_callback:
            arguments = self._run_callbacks(module, arguments)
        guidance = None if self.suspensions else self.guidance
        decision = guidance.decide(arguments) if guidance is not None else None
        layout = None
        self.sidecar.negative = None
        if guidance is not None and decision is not None:
            if self.family.blocks:
                self.sidecar.negative, layout = negative_arguments(self.family, arguments, decision[1], decision[0])
            else:
                arguments, layout = with_negative(self.family, arguments, decision[1], decision[0])
            self.seam.combine = guidance.combine
            self.seam.guided_layers = select_layers(self.seam.layers, guidance.layers)
        elif self.recorders:
            length, batch = text_length(self.family, arguments), batch_size(self.family, arguments)
            layout = Layout(length, 0, batch, None, arguments)
        self.seam.begin(layout)
        if layout is not None:
            for recorder in self.recorders:
                recorder.begin(layout)
        return (), arguments

    def after(self, module: nn.Module, args: tuple[Any, ...], kwargs: Arguments, output: Any) -> None:
        """Root hook: the maps are complete; an attention layer that was not seen is an error."""
        self.sidecar.clear()
        for recorder in self.recorders:
            recorder.end()
        if output is not None and self.seam.layout is not None:
            self.seam.check_hits()

    def output(self, arguments: Arguments, guidance: Guidance | None) -> Tensor:
        """The denoiser's output for these arguments under another guidance (None: plain), without callbacks."""
        with applied([Attribute(self, "guidance", guidance), Attribute(self, "_in_callback", True)]):
            output = self.denoiser(**fresh(arguments))
        first = output if isinstance(output, Tensor) else output[0]
        return first if isinstance(first, Tensor) else torch.cat([row.flatten() for row in first])

    def _run_callbacks(self, module: nn.Module, arguments: Arguments) -> Arguments:
        self._in_callback = True
        try:
            for callback in tuple(self.callbacks):
                replaced = callback(module, (), arguments)
                if replaced is not None:
                    arguments = named_arguments(self.inner, *replaced)
        finally:
            self._in_callback = False
        return arguments

    @contextmanager
    def seam_installed(self) -> Iterator[None]:
        """Route the denoiser's attention through the seam; nested uses share one installation."""
        with applied(self._changes if self._seam_users == 0 else []):
            self._seam_users += 1
            try:
                yield
            finally:
                self._seam_users -= 1


_installed: WeakKeyDictionary[nn.Module, Installation] = WeakKeyDictionary()


def uncompiled(denoiser: nn.Module) -> nn.Module:
    """The module that `torch.compile` wrapped; any other module as it is."""
    inner = getattr(denoiser, "_orig_mod", denoiser)
    return inner if isinstance(inner, nn.Module) else denoiser


@contextmanager
def installation(denoiser: nn.Module, kept: Installation | None = None) -> Iterator[Installation]:
    """The denoiser's installation: the one already there, else `kept`, else a new one, for the time of the block."""
    inner = uncompiled(denoiser)
    present = _installed.get(inner)
    if present is not None:
        yield present
        return
    new = Installation(denoiser) if kept is None else kept
    with applied([*new.root, Entry(_installed, inner, new)]):
        yield new


@contextmanager
def negative_guidance(denoiser: nn.Module, guidance: Guidance) -> Iterator[None]:
    """Guide the calls of a denoiser for which `guidance.decide` gives a negative text.

    Raises: ValueError if the denoiser is guided already, or a layer does not exist.
    """
    with installation(denoiser) as here:
        if here.guidance is not None:
            raise ValueError("this denoiser is guided already; leave the outer guide_denoiser block first")
        select_layers(here.seam.layers, guidance.layers)
        with here.seam_installed(), applied([Attribute(here, "guidance", guidance)]):
            yield


@contextmanager
def guide_denoiser(
    denoiser: nn.Module, method: Any, *, negative: Mapping[str, Tensor], rows: slice | None = None
) -> Iterator[None]:
    """Within the block, calls of `denoiser` are guided away from a negative text.

    Args:
        denoiser: A diffusers denoiser; its calls hold the positive text.
        method: A negative method such as `NAG`; settings that are None come from the model's preset.
        negative: The denoiser's text inputs for the negative text, e.g. `{"encoder_hidden_states": ...}`, with one
            row, one row per guided row, or one per row of the call. Its length may differ from the positive text's.
        rows: Batch rows to guide; None is all. The others pass through unguided.

    Raises: UnsupportedModelError if the denoiser's class has no family row; ValueError if the method is limited to a
        window of steps (a single denoiser call has no step), or `negative` does not fit the call;
        GuidanceBypassedError if a layer that reads the text escapes.
    """
    rule = resolved(method, uncompiled(denoiser))
    if (rule.start, rule.end) != (0.0, 1.0):
        raise ValueError("guide_denoiser knows no steps: leave start and end at 0 and 1, or use guide(pipe, ...)")
    if rule.identity:
        yield
        return
    with negative_guidance(denoiser, Guidance(rule.combine, lambda _: (rows, negative), rule.layers)):
        yield


@contextmanager
def record_maps(
    denoiser: nn.Module,
    token_groups: Sequence[Sequence[int]],
    *,
    rows: slice | None = None,
    layers: Sequence[str | int] | None = None,
    size: int | tuple[int, int] | None = None,
    normalise: bool = False,
    stop_after: bool = False,
) -> Iterator[MapRecorder]:
    """Within the block, the latest call of `denoiser` leaves its attention maps in `recorder.maps`.

    Args:
        denoiser: A diffusers denoiser.
        token_groups: Token indices into the positive text, one list per map; a map is the mean over its tokens.
        rows: Batch rows to record; None is all.
        layers: Names or indices (in execution order) of the layers to record; None is all.
        size: Height and width (one number for both) to which every map is resized bilinearly.
        normalise: Whether to divide each map by its sum + 1e-8.
        stop_after: End the forward, and with it the block, right after the last of `layers`.

    Yields: The recorder; its `maps` hold one (rows, layers x heads, height, width) tensor per group. They are
        differentiable under autograd; under gradient checkpointing take the gradient inside the block.

    Raises: UnsupportedModelError if the class has no family row; ValueError for an empty group or unknown layer.
    """
    if not token_groups or any(len(group) == 0 for group in token_groups):
        raise ValueError(f"token_groups must hold one non-empty list of token indices per map, got {token_groups!r}")
    with installation(denoiser) as here:
        shape = (size, size) if isinstance(size, int) else None if size is None else (size[0], size[1])
        readers = frozenset(layer.name for layer in here.seam.layers if layer.reads.role != "text")
        names = select_layers(here.seam.layers, layers) & readers
        config = getattr(here.inner, "config", {})
        patch = config.get("patch_size") or next(iter(config.get("all_patch_size", ())), None)
        recorder = MapRecorder(here.family, patch, token_groups, names, rows, shape, normalise, stop_after)
        with here.seam_installed(), ExitStack() as stack:
            for present in (here.recorders, here.seam.readers):
                present.append(recorder)
                stack.callback(present.remove, recorder)
            try:
                yield recorder
            except StopForward as stop:
                if stop.args != (recorder,):
                    raise


@contextmanager
def before_denoiser_call(denoiser: nn.Module, callback: BeforeCall) -> Iterator[None]:
    """Within the block, `callback(module, args, kwargs)` runs before every call of `denoiser`.

    It runs before the negative text is injected, gets all arguments by name in containers of its own (`args` is
    empty), and may return replacements `(args, kwargs)`. Calls of the denoiser inside the callback do not call it
    again; wrap them in `suspended(denoiser)` to run them without negative guidance.
    """
    with installation(denoiser) as here:
        here.callbacks.append(callback)
        try:
            yield
        finally:
            here.callbacks.remove(callback)


@contextmanager
def suspended(denoiser: nn.Module) -> Iterator[None]:
    """Within the block, calls of `denoiser` run without negative guidance; maps are still recorded."""
    with installation(denoiser) as here:
        here.suspensions += 1
        try:
            yield
        finally:
            here.suspensions -= 1


@contextmanager
def wrap_scheduler_step(scheduler: Any, wrapper: Callable[..., Any]) -> Iterator[None]:
    """Within the block, `scheduler.step(...)` calls `wrapper(step, ...)`, `step` being the original bound method."""
    step = scheduler.step

    @functools.wraps(step)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        return wrapper(step, *args, **kwargs)

    with applied([Attribute(scheduler, "step", wrapped)]):
        yield


@contextmanager
def frozen(denoiser: nn.Module) -> Iterator[None]:
    """Within the block, no weight of the denoiser requires gradients, so that autograd keeps nothing for them."""
    trained = {name for name, parameter in denoiser.named_parameters() if parameter.requires_grad}
    _require_gradients(denoiser, trained, False)
    try:
        yield
    finally:
        _require_gradients(denoiser, trained, True)


def _require_gradients(denoiser: nn.Module, names: set[str], value: bool) -> None:
    """Set it by name: sequential offloading replaces the parameters themselves."""
    for name, parameter in denoiser.named_parameters():
        if name in names:
            parameter.requires_grad_(value)
