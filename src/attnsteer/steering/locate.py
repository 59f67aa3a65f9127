"""Which rows of the denoiser's text input are the words of a prompt, for any stock pipeline.

The pipeline encodes its own prompt in a dry run; its text encoders are watched, and their output rows are recognised
in the denoiser's text input by value. No pipeline, template or padding rule is known here.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor, nn

from attnsteer.changes import Hook, applied
from attnsteer.conditioning import Conditioning
from attnsteer.steering.relations import Span
from attnsteer.steering.tokens import match_text_rows, token_indices


@dataclass
class Encoding:
    """One text of one call of a text encoder: its tokenizer, token ids, and the candidates for its output rows."""

    tokenizer: Any
    ids: list[int]
    states: list[Tensor]


@dataclass
class Watch:
    """Collects what the text encoders of a pipeline compute while it encodes its prompt."""

    encodings: list[Encoding] = field(default_factory=list)

    def hooks(self, pipe: Any) -> list[Hook]:
        """One hook for each text encoder that has a tokenizer."""
        hooks = []
        for name, encoder in pipe.components.items():
            tokenizer = pipe.components.get(name.replace("text_encoder", "tokenizer"))
            if isinstance(encoder, nn.Module) and name.startswith("text_encoder") and tokenizer is not None:
                hooks.append(Hook(encoder, "after", self._recorder(tokenizer)))
        return hooks

    def _recorder(self, tokenizer: Any) -> Any:
        def record(module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], output: Any) -> None:
            ids = kwargs.get("input_ids", args[0] if args else None)
            if output is None or not isinstance(ids, Tensor):
                return
            states = [output.last_hidden_state] if getattr(output, "last_hidden_state", None) is not None else []
            states += [state for state in getattr(output, "hidden_states", None) or () if isinstance(state, Tensor)]
            states = [state for state in states if state.ndim == 3 and state.shape[:2] == ids.shape]
            for row in range(len(ids)):
                self.encodings.append(Encoding(tokenizer, ids[row].tolist(), [state[row] for state in states]))

        return record


def text_rows_of(
    pipe: Any, capture: Conditioning, prompts: Sequence[str], spans: Sequence[Sequence[Span]]
) -> tuple[list[dict[Span, list[int]]], int]:
    """For every conditional row of the denoiser's text input, the token rows of each span of its prompt.

    Args:
        pipe: A stock pipeline.
        capture: Its conditioning in this call.
        prompts: The call's prompts.
        spans: The spans wanted of each prompt.

    Returns: One mapping per conditional row, and the number of conditional rows per prompt.

    Raises: ValueError if words are cut off, or no text encoder's output is found in the text input.
    """
    watch = Watch()
    with applied(watch.hooks(pipe)):
        arguments = capture.dry_run()
    rows = capture.rows(arguments)
    if rows is None:
        raise ValueError("the pipeline's first denoiser call is not conditional: steering cannot tell its rows")
    text = arguments[capture.family.text[0].name][rows]
    if not watch.encodings:
        raise ValueError(
            "no text encoder of the pipeline ran, so words cannot be found in its text input: pass prompt=... rather "
            "than embeddings, to a pipeline that has its text encoder"
        )
    per_prompt, rest = divmod(len(text), len(prompts))
    if rest:
        raise ValueError(f"{len(text)} conditional rows do not divide among {len(prompts)} prompts")
    found = []
    for row in range(len(text)):
        prompt = row // per_prompt
        found.append({s: _rows_of_span(watch.encodings, text[row], prompts[prompt], s) for s in spans[prompt]})
    return found, per_prompt


def _rows_of_span(encodings: Sequence[Encoding], text: Tensor, prompt: str, span: Span) -> list[int]:
    reasons = []
    for encoding in encodings:
        try:
            indices = token_indices(encoding.tokenizer, prompt, span, input_ids=encoding.ids)
        except ValueError as reason:
            reasons.append(str(reason))
            continue
        for states in encoding.states:
            try:
                return match_text_rows(text, states).text_rows(indices)
            except ValueError as reason:
                reasons.append(str(reason))
    why = max(dict.fromkeys(reasons), key=lambda reason: "cut off" in reason or "beyond" in reason, default="")
    raise ValueError(f"cannot find {span.text!r} in the denoiser's text input: {why}")
