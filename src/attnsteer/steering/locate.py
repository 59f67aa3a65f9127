"""Which rows of the denoiser's text input are the words of a prompt, for any stock pipeline.

The pipeline encodes its own prompt in a dry run; its text encoders are watched, and their output rows are recognised
in the denoiser's text input by value. No pipeline, template or padding rule is known here.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from attnsteer.changes import Hook, applied
from attnsteer.pipeline.conditioning import Conditioning
from attnsteer.pipeline.denoisers import denoisers_of
from attnsteer.steering.call_rows import perturbed
from attnsteer.steering.relations import Span
from attnsteer.steering.tokens import RowMatch, letters, match_text_rows, token_indices
from attnsteer.texts.inject import batch_size

_TRANSFORMED = (
    "the pipeline changes what its text encoder gives (by a connector or projection of its own), so that words cannot "
    "be followed: it cannot be steered, its negative prompts work"
)


@dataclass
class Encoding:
    """One text of one call of a text encoder.

    Attributes:
        encoder: Name of the text encoder in the pipeline.
        tokenizer: Its tokenizer.
        row: Batch row of the call.
        ids: Token ids, with template and padding.
        states: Candidates for its output rows, (tokens, channels) each.
    """

    encoder: str
    tokenizer: Any
    row: int
    ids: list[int]
    states: list[Tensor]

    @cached_property
    def letters(self) -> str:
        """What the ids say, without special tokens."""
        return letters(self.tokenizer.decode(self.ids, skip_special_tokens=True))

    def spells(self, prompt: str) -> bool:
        """Whether the ids hold all of a prompt, or its beginning and nothing else.

        Args:
            prompt: As `letters` gives it.
        """
        return prompt in self.letters or bool(self.letters) and prompt.startswith(self.letters)


@dataclass
class Watch:
    """Collects what the text encoders of a pipeline compute while it encodes its prompt.

    Attributes:
        encodings: Every text, in order.
        perturbed: Whether the denoiser is called with perturbed copies of its rows (PAG).
        last_layer: What the last layer of a text encoder gave, ahead of its final norm.
    """

    encodings: list[Encoding] = field(default_factory=list)
    perturbed: bool = False
    last_layer: Any = None

    def hooks(self, pipe: Any) -> list[Hook]:
        """One hook for each text encoder that has a tokenizer, and for each denoiser."""
        hooks = [Hook(getattr(pipe, name), "before", self._note) for name in denoisers_of(pipe)]
        for name, encoder in pipe.components.items():
            tokenizer = tokenizer_of(pipe, name)
            if isinstance(encoder, nn.Module) and tokenizer is not None:
                hooks.append(Hook(encoder, "after", self._recorder(name, tokenizer)))
                hooks += [Hook(layer, "after", self._keep) for layer in _last_layer(encoder)]
        return hooks

    def _note(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        self.perturbed = perturbed(module)

    def _keep(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> None:
        self.last_layer = output

    def _recorder(self, name: str, tokenizer: Any) -> Callable[..., None]:
        def record(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> None:
            ids = kwargs.get("input_ids", args[0] if args else None)
            if output is None or not isinstance(ids, Tensor):
                return
            states = [state for state in (*_tensors(output), *_tensors(self.last_layer)) if state.ndim == 3]
            states = [state if state.shape[:2] == ids.shape else state.transpose(0, 1) for state in states]
            states = [state for state in states if state.shape[:2] == ids.shape]
            for row in range(len(ids)):
                found = Encoding(name, tokenizer, row, ids[row].tolist(), [state[row] for state in states])
                self.encodings.append(found)

        return record

    def of_prompt(self, number: int, prompts: int) -> list[list[Encoding]]:
        """For each text encoder its different texts, those first that are most likely the prompt of that number."""
        distinct: dict[str, dict[tuple[int, ...], Encoding]] = {}
        for encoding in sorted(self.encodings, key=lambda encoding: encoding.row % prompts != number):
            distinct.setdefault(encoding.encoder, {}).setdefault(tuple(encoding.ids), encoding)
        return [list(encodings.values()) for encodings in distinct.values()]


def tokenizer_of(pipe: Any, encoder: str) -> Any:
    """The tokenizer of a pipeline's component, or the one in its processor; None if it is no text encoder."""
    if not encoder.startswith("text_encoder") and encoder != "bert":  # latent diffusion's name for it
        return None
    names = [encoder.replace("text_encoder", kind) for kind in ("tokenizer", "processor")]
    names = ["tokenizer"] if encoder == "bert" else names
    found = next((pipe.components[name] for name in names if pipe.components.get(name) is not None), None)
    return found if hasattr(found, "all_special_ids") else getattr(found, "tokenizer", found)


def cut_off(pipe: Any, prompt: str, spans: Sequence[Span]) -> str:
    """Why a pipeline's tokenizers cut one of the spans off by their own limits; "" if one of them keeps them all.

    A pipeline may read fewer tokens than its tokenizer (`max_sequence_length`), or put a template around the prompt;
    that shows in a call only.
    """
    reasons = []
    for name in pipe.components:
        tokenizer = tokenizer_of(pipe, name)
        if not hasattr(tokenizer, "convert_ids_to_tokens"):
            continue
        try:
            for span in spans:
                token_indices(tokenizer, prompt, span)
            return ""
        except ValueError as reason:
            reasons.append(str(reason))
    return next(iter(reasons), "")


def _last_layer(encoder: nn.Module) -> list[nn.Module]:
    """The last of the encoder's layers: some pipelines read it ahead of the final norm."""
    lists = [module for module in encoder.modules() if isinstance(module, nn.ModuleList) and len(module)]
    return [max(lists, key=len)[-1]] if lists else []


def _tensors(output: Any) -> list[Tensor]:
    """The hidden states in a text encoder's output, the last layer's first."""
    values = output.values() if isinstance(output, Mapping) else output if isinstance(output, tuple) else [output]
    nested = [value if isinstance(value, tuple) else (value,) for value in values]
    return [state for group in nested for state in group if isinstance(state, Tensor)]


def text_rows_of(
    pipe: Any,
    capture: Conditioning,
    prompts: Sequence[str],
    spans: Sequence[Sequence[Span]],
    seen: Callable[[Mapping[str, Any]], None] | None = None,
) -> tuple[list[dict[Span, list[int]]], int]:
    """For every picture that the denoiser draws conditionally, the token rows of each span of its prompt.

    Where several encoders are joined along the sequence (CLIP and T5 in SD3) the rows of all of them count.

    Args:
        pipe: A stock pipeline.
        capture: Its conditioning in this call.
        prompts: The call's prompts.
        spans: The spans wanted of each prompt.
        seen: Called with the arguments of the pipeline's first denoiser call, as a dry run shows them.

    Returns: One mapping per conditional row of the latents, and the number of these rows per prompt.

    Raises: ValueError if words are cut off, or no text encoder's output is found in the text input.
    """
    watch = Watch()
    with applied(watch.hooks(pipe)):
        arguments = capture.dry_run()
    rows = capture.rows(arguments)
    if rows is None:
        raise ValueError("the pipeline's first denoiser call is not conditional: steering cannot tell its rows")
    if seen is not None:
        seen(arguments)
    text = _texts(capture, arguments, rows)
    text = text[: len(text) // 2] if watch.perturbed else text
    if not watch.encodings:
        raise ValueError(
            "no text encoder of the pipeline ran, so words cannot be found in its text input: pass prompt=... rather "
            "than embeddings, to a pipeline that has its text encoder"
        )
    per_prompt, rest = divmod(len(text), len(prompts))
    if rest:
        raise ValueError(f"{len(text)} conditional rows do not divide among {len(prompts)} prompts")
    found: list[dict[Span, list[int]]] = []
    for row, number in enumerate(row // per_prompt for row in range(len(text))):
        if row % per_prompt and torch.equal(text[row], text[row - 1]):
            found.append(found[-1])
            continue
        encodings, picture = watch.of_prompt(number, len(prompts)), _Text(text[row])
        found.append({span: _rows_of_span(encodings, picture, prompts[number], span) for span in spans[number]})
    return found, per_prompt


def _texts(capture: Conditioning, arguments: Mapping[str, Any], rows: "slice | Tensor") -> list[Tensor]:
    """The text of each picture that is drawn conditionally, (tokens, channels)."""
    family = capture.family
    main, total = family.text[0], len(arguments[family.latents])
    count = total if main.kind == "positions" else batch_size(family, arguments)
    chosen = torch.arange(count)[rows][:: max(1, count // total)].tolist()  # videos may have a row for each frame
    given = arguments[main.name]
    if main.kind == "positions":
        return [given]
    axis = max(0, main.axis - 1) if main.axis > 0 else main.axis
    return [given[row].movedim(axis, 0).flatten(1) for row in chosen]


@dataclass
class _Text:
    """The denoiser's text for one picture, (tokens, channels), compared once with what each encoder gave."""

    rows: Tensor
    known: dict[int, RowMatch | ValueError] = field(default_factory=dict)

    def match(self, states: Tensor) -> RowMatch:
        """As `match_text_rows`. The states must live as long as this text does."""
        if id(states) not in self.known:
            try:
                self.known[id(states)] = match_text_rows(self.rows, states)
            except ValueError as problem:
                self.known[id(states)] = problem
        found = self.known[id(states)]
        if isinstance(found, ValueError):
            raise found
        return found


def _rows_of_span(encodings: Sequence[Sequence[Encoding]], text: _Text, prompt: str, span: Span) -> list[int]:
    """Rows of one text that hold a span, from every encoder whose output is in it (CLIP and T5 in SD3).

    Encodings that spell the prompt are looked at first. The others, as many as there are prompts, may hold the span
    too, but are the prompt's only if the pipeline rewrote it.
    """
    wanted, reasons = letters(prompt), list[str]()
    spelling = [[encoding for encoding in each if encoding.spells(wanted)] or each for each in encodings]
    for chosen in (spelling, encodings):
        placed = [_first_placed(of_encoder, text, prompt, span, reasons) for of_encoder in chosen]
        if any(placed):
            return sorted(set().union(*placed))
    cut = [reason for reason in reasons if "beyond" in reason or "cuts them" in reason]
    told = reasons if not any("no row" in reason for reason in reasons) else []
    why = next(iter([*cut, *told]), _TRANSFORMED)
    raise ValueError(f"cannot find {span.text!r} in the denoiser's text input: {why}")


def _first_placed(
    encodings: Sequence[Encoding], text: _Text, prompt: str, span: Span, reasons: list[str]
) -> list[int]:
    """Rows of the span as the first of one encoder's texts has it that is in the denoiser's text."""
    found = (_placed(encoding, text, prompt, span, reasons) for encoding in encodings)
    return next((rows for rows in found if rows), [])


def _placed(encoding: Encoding, text: _Text, prompt: str, span: Span, reasons: list[str]) -> list[int]:
    """Rows of the text that hold the span as this encoder wrote it; none if it did not, with the reason why."""
    try:
        indices = token_indices(encoding.tokenizer, prompt, span, input_ids=encoding.ids)
    except ValueError as reason:
        reasons.append(str(reason))
        return []
    for states in encoding.states:
        try:
            return text.match(states).text_rows(indices)
        except ValueError as reason:
            reasons.append(str(reason))
    return []
