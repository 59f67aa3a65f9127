"""What a stock pipeline feeds its denoiser: captured by running it, never re-implemented.

A dry run is the pipeline's own `__call__` with another prompt, stopped at the first call of the denoiser. It works for
every text encoder, chat template and padding rule. Random number generators, the scheduler and the pipeline's own
attributes are put back afterwards, so the real run is the same as without it.
"""

import random
import re
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from attnsteer.changes import Attribute, Change, Hook, applied
from attnsteer.families import Family
from attnsteer.inject import fresh, named_arguments, taken

Arguments = dict[str, Any]

_PROMPT_KEYWORD = re.compile(r"(pooled_)?prompt(_\d+)?(_embeds|_attention_mask|_mask)?(_\d+|_mask)?$")
_CALLBACKS = ("callback_on_step_end", "callback")
_NOT_IN_TEXT = frozenset(
    ("generator", "latents", "num_inference_steps", "output_type", "return_dict", "eta", "timesteps", "sigmas")
    + ("callback_on_step_end", "callback_on_step_end_tensor_inputs", "callback", "callback_steps")
)


class _Captured(Exception):
    """Carries the arguments of the first denoiser call out of the dry run."""

    def __init__(self, arguments: Arguments) -> None:
        super().__init__()
        self.arguments = arguments


def captured(pipe: Any, denoisers: Sequence[nn.Module], call: Mapping[str, Any]) -> Arguments:
    """The arguments of the first denoiser call that `pipe(**call)` would make.

    Args:
        pipe: A stock diffusers pipeline.
        denoisers: Its denoisers, as the pipeline calls them.
        call: Keywords of the call; user callbacks among them are left out.

    Raises: RuntimeError if the pipeline ends without calling a denoiser.
    """

    def stop(module: nn.Module, args: tuple[Any, ...], kwargs: Arguments) -> None:
        raise _Captured(named_arguments(getattr(module, "_orig_mod", module), args, kwargs))

    quiet = {**getattr(pipe, "_progress_bar_config", {}), "disable": True}
    changes: list[Change] = [Hook(denoiser, "before", stop) for denoiser in denoisers]
    changes.append(Attribute(pipe, "_progress_bar_config", quiet))
    arguments = {name: fresh(value) for name, value in call.items() if name not in _CALLBACKS}
    with _preserved(pipe, call), applied(changes):
        try:
            pipe(**arguments)
        except _Captured as found:
            return found.arguments
    raise RuntimeError(f"{type(pipe).__name__} returned without calling its denoiser, so its text inputs are unknown")


@contextmanager
def _preserved(pipe: Any, call: Mapping[str, Any]) -> Iterator[None]:
    """Put back random state, the user's generators, scheduler and pipeline attributes; free offload hooks."""
    given = call.get("generator")
    generators = [given] if isinstance(given, torch.Generator) else list(given or ())
    states = [generator.get_state() for generator in generators]
    owners = [vars(owner) for owner in (pipe, getattr(pipe, "scheduler", None)) if owner is not None]
    saved = [dict(own) for own in owners]
    python, numpy = random.getstate(), np.random.get_state()
    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numpy)
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)
        for own, before in zip(owners, saved, strict=True):
            own.clear()
            own.update(before)
        if hasattr(pipe, "maybe_free_model_hooks"):
            pipe.maybe_free_model_hooks()


def prompt_count(call: Mapping[str, Any]) -> int:
    """Number of prompts in a pipeline call, before `num_images_per_prompt`.

    Raises: ValueError if the call has neither a prompt nor its embeddings.
    """
    prompt, embeds = call.get("prompt"), call.get("prompt_embeds")
    if prompt is None and embeds is None:
        raise ValueError("the call has no prompt: give prompt=..., or prompt_embeds=...")
    return 1 if isinstance(prompt, str) else len(embeds if prompt is None else prompt)  # type: ignore[arg-type]


def with_prompt(call: Mapping[str, Any], prompt: str | Sequence[str]) -> Arguments:
    """The same pipeline call for another prompt; one text stands for every prompt of the call.

    Raises: ValueError if the number of texts is not the number of prompts.
    """
    count = prompt_count(call)
    texts = [prompt] * count if isinstance(prompt, str) else list(prompt)
    if len(texts) != count:
        raise ValueError(f"got {len(texts)} negative prompts for {count} prompts: give one for all, or one for each")
    kept = {name: value for name, value in call.items() if not _PROMPT_KEYWORD.match(name)}
    return {**kept, "prompt": texts[0] if isinstance(call.get("prompt"), str) else texts}


def text_inputs(family: Family, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """The text inputs among the arguments of a denoiser call."""
    names = (text.name for text in family.text)
    return {name: arguments[name] for name in names if isinstance(arguments.get(name), Tensor | list | dict)}


class Conditioning:
    """Tells, for every denoiser call of one pipeline run, which batch rows are conditional.

    The run's first call is the reference. Its rows that change with the prompt are conditional; rows that stay the
    same (the unconditional half of a CFG batch) are not. Later calls are recognised by their text, row by row, so
    separate unconditional calls, other batch sizes and skipped calls are told apart.

    Args:
        family: The denoiser's row.
        contrast: Text inputs of the first call for another prompt (the negative one, where there is one).
        capture: Gives the arguments of the first call for the run's own prompt, by a dry run.
    """

    def __init__(self, family: Family, contrast: Mapping[str, Any], capture: Callable[[], Arguments]) -> None:
        self.family = family
        self.contrast = dict(contrast)
        self._main = family.text[0].name
        self.dry_run = capture
        self._positive: Arguments | None = None
        self._reference: list[Tensor] | None = None
        self._conditional: list[int] = []
        self._seen: list[tuple[list[Tensor], list[tuple[int, int]], list[tuple[int, int]]]] = []

    @property
    def positive(self) -> Arguments:
        """Arguments of the first denoiser call for the run's own prompt; costs a dry run on first use."""
        if self._positive is None:
            self._positive = self.dry_run()
        return self._positive

    def rows(self, arguments: Mapping[str, Any]) -> slice | Tensor | None:
        """The conditional batch rows of a denoiser call; None if it has none."""
        matches = self._matches(arguments)
        return _as_rows([row for row, _ in matches]) if matches else None

    def decide(self, arguments: Mapping[str, Any]) -> tuple[slice | Tensor, dict[str, Any]] | None:
        """The conditional rows of a denoiser call and the contrast's text inputs for them; None if it has none."""
        matches = self._matches(arguments)
        if not matches:
            return None
        chosen = [reference for _, reference in matches]
        negative = {
            text.name: taken(text, self.contrast[text.name], chosen)
            for text in self.family.text
            if text.name in self.contrast
        }
        return _as_rows([row for row, _ in matches]), negative

    def _matches(self, arguments: Mapping[str, Any]) -> list[tuple[int, int]]:
        text = list(arguments[self._main])
        if self._reference is None:
            self._set_reference(text)
        value = arguments[self._main]
        held = [value] if isinstance(value, Tensor) else value
        version = [(id(tensor), 0 if tensor.is_inference() else tensor._version) for tensor in held]
        known = next((entry for entry in self._seen if entry[1] == version), None)
        if known is not None:
            return known[2]
        matches = self._compare(text)
        self._seen.append((held, version, matches))  # holding the tensors keeps their ids theirs
        del self._seen[:-4]
        return matches

    def _set_reference(self, text: list[Tensor]) -> None:
        contrast = list(self.contrast[self._main])
        if len(contrast) != len(text):
            raise ValueError(
                f"the denoiser gets {len(text)} rows of text for the prompt and {len(contrast)} for the other prompt, "
                "so conditional rows cannot be told; please report this pipeline"
            )
        self._reference = text
        pairs = enumerate(zip(text, contrast, strict=True))
        self._conditional = [i for i, (mine, other) in pairs if not _same_text(mine, other.to(mine))]

    def _compare(self, text: list[Tensor]) -> list[tuple[int, int]]:
        reference, matches = self._reference or [], []
        if len(text) == len(reference) and all(map(torch.equal, text, reference)):
            return [(row, row) for row in self._conditional]
        for row, tokens in enumerate(text):
            match = next((known for known in self._conditional if torch.equal(tokens, reference[known])), None)
            if match is not None:
                matches.append((row, match))
        return matches


def _same_text(first: Tensor, second: Tensor) -> bool:
    """Whether two rows hold the same text; lengths may differ by padding."""
    length = min(first.shape[0], second.shape[0])
    return bool(torch.allclose(first[:length], second[:length], rtol=1e-3, atol=1e-5))


def _as_rows(rows: list[int]) -> slice | Tensor:
    together = rows == list(range(rows[0], rows[0] + len(rows)))
    return slice(rows[0], rows[-1] + 1) if together else torch.tensor(rows)


def cache_key(pipe: Any, call: Mapping[str, Any]) -> Hashable | None:
    """What the text inputs of a pipeline call depend on; None if that cannot be told, so that nothing is reused."""
    parts: list[Hashable] = []
    for name, module in sorted(pipe.components.items()):
        if isinstance(module, nn.Module) and "encoder" in name:
            if getattr(module, "peft_config", None):
                return None
            weights = list(module.parameters())
            versions = sum(0 if weight.is_inference() else weight._version for weight in weights)
            first = weights[0] if weights else torch.empty(0)
            parts.append((name, id(module), len(weights), versions, first.dtype))
        elif "tokenizer" in name and hasattr(module, "__len__"):
            parts.append((name, id(module), len(module)))
    try:
        return (*parts, _frozen({k: v for k, v in call.items() if k not in _NOT_IN_TEXT}))
    except TypeError:
        return None


def _frozen(value: Any) -> Hashable:
    if isinstance(value, Mapping):
        return tuple((key, _frozen(value[key])) for key in sorted(value))
    if isinstance(value, list | tuple):
        return tuple(_frozen(entry) for entry in value)
    if value is None or isinstance(value, str | int | float | bool):
        return value
    raise TypeError(f"{type(value).__name__} has no stable value")
