"""Which rows of a text encoder's sequence hold a piece of the prompt."""

from bisect import bisect_left
from collections.abc import Sequence
from difflib import SequenceMatcher
from typing import TYPE_CHECKING, Any, NamedTuple

from attnsteer.steering.parser.spans import Span
from attnsteer.steering.text_rows import RowMatch, match_text_rows

if TYPE_CHECKING:
    from jaxtyping import Int
    from torch import Tensor

__all__ = ["RowMatch", "letters", "match_text_rows", "token_indices"]

_NO_LIMIT = 1_000_000  # tokenizers without a limit report a huge one
_BROKEN = "\N{REPLACEMENT CHARACTER}"  # what a decoder gives for part of a character
_SPACES = "▁Ġ \t\n"  # spaces as tokenizers write them; such a token alone may claim the letter behind it
_LONGEST_CHARACTER = 8  # tokens that may share one character
_SURE = 8  # letters by which a prompt is recognised


def token_indices(
    tokenizer: Any,
    prompt: str,
    span: Span,
    *,
    text: str | None = None,
    input_ids: "Sequence[int] | Int[Tensor, ' tokens'] | None" = None,
    max_length: int | None = None,
) -> list[int]:
    """Rows of the text encoder's sequence that hold the tokens of `span`, in order.

    A token belongs to the span if it covers at least one of its characters. Three ways, in this order: the ids that
    the encoder was given; the character offsets of a fast tokenizer; encoding ever longer pieces of the prompt, for
    tokenizers without offsets.

    Args:
        tokenizer: A transformers tokenizer, as in `pipe.tokenizer`.
        prompt: The text that `span` belongs to.
        span: A piece of `prompt`.
        text: What was tokenised, where that is more than the prompt (chat template, prefix); the prompt is looked for
            inside, whatever its case and spaces.
        input_ids: The row of ids that the encoder was given, with its template, padding and truncation; the surest
            way. Overrides `text` and `max_length`.
        max_length: Length in tokens, > 0, to which the pipeline pads and truncates. None: the tokenizer's own limit,
            and no padding.

    Returns: Indices >= 0, ascending, special tokens counted.
    Raises: ValueError if the span is not part of the prompt, or its words are cut off or cannot be found.
    """
    if prompt[span.start : span.end] != span.text or not span.text.strip():
        raise ValueError(f"the span {span} is not part of the prompt {prompt[:200]!r}; parse the same text again")
    if max_length is not None and max_length < 1:
        raise ValueError(f"max_length must be at least 1 token, got {max_length}")
    if input_ids is not None:
        return _rows_by_decoding(tokenizer, prompt, span, [int(token) for token in input_ids])
    shown = prompt if text is None else text
    start, end = (span.start, span.end) if text is None else _find_inside(prompt, span, text)
    if getattr(tokenizer, "is_fast", False):
        return _rows_by_offsets(tokenizer, shown, start, end, max_length)
    return _rows_by_pieces(tokenizer, shown, start, end, max_length)


def letters(text: str) -> str:
    """A text without spaces and in lower case, to be compared with what a tokenizer made of it."""
    return _squeeze(text).text


def _limits(tokenizer: Any, max_length: int | None) -> dict[str, Any]:
    """Keywords that make the tokenizer cut and pad as the pipeline does."""
    limit = max_length or int(min(getattr(tokenizer, "model_max_length", _NO_LIMIT), _NO_LIMIT))
    settings: dict[str, Any] = {"truncation": False}
    if limit < _NO_LIMIT:
        settings = {"truncation": True, "max_length": limit}
    if max_length is not None and tokenizer.pad_token is not None:
        settings["padding"] = "max_length"
    return settings


def _cut_off(words: str, limit: int) -> ValueError:
    return ValueError(
        f'"{words}" lies beyond the {limit} tokens that the text encoder reads, so it cannot be steered: '
        "shorten the prompt, move these words to its beginning, or raise max_sequence_length where the pipeline has it"
    )


def _rows_by_offsets(tokenizer: Any, text: str, start: int, end: int, max_length: int | None) -> list[int]:
    """Rows through the character offsets of a fast tokenizer."""
    settings = _limits(tokenizer, max_length)

    def rows(**keywords: Any) -> list[int]:
        encoded = tokenizer(text, return_offsets_mapping=True, return_special_tokens_mask=True, **keywords)
        tokens = tokenizer.convert_ids_to_tokens(encoded["input_ids"])
        found = zip(tokens, encoded["offset_mapping"], encoded["special_tokens_mask"], strict=True)
        return [
            row
            for row, (token, (first, stop), special) in enumerate(found)
            if not special and token.strip(_SPACES) and text[max(first, start) : min(stop, end)].strip()
        ]

    kept = rows(**settings)
    whole = rows(truncation=False, verbose=False)
    if len(kept) < len(whole):
        raise _cut_off(text[start:end], settings["max_length"])
    if not kept:
        raise ValueError(f'the tokenizer makes no token of "{text[start:end]}"; choose other words for it')
    return kept


def _rows_by_pieces(tokenizer: Any, text: str, start: int, end: int, max_length: int | None) -> list[int]:
    """Rows for a tokenizer without offsets: the tokens by which the encoding grows from the words before to the span.

    Where a span ends inside a token (a Korean noun before its particle) that token counts.
    """
    ids = list(tokenizer(text, truncation=False, verbose=False)["input_ids"])
    bare = list(tokenizer(text, truncation=False, add_special_tokens=False, verbose=False)["input_ids"])
    prefix = _offset_of(ids, bare)
    before = _shared(tokenizer, text[:start].rstrip(), bare, exact=False)
    after = _shared(tokenizer, text[:end], bare, exact=True)
    tokens = tokenizer.convert_ids_to_tokens(bare)
    rows = [prefix + row for row in range(before, after) if tokens[row].strip(_SPACES)]
    if not rows:
        raise ValueError(f'the tokenizer makes no token of "{text[start:end]}"; choose other words for it')
    settings = _limits(tokenizer, max_length)
    cut = list(tokenizer(text, verbose=False, **settings)["input_ids"])
    shift = 0
    if len(cut) > len(ids) and getattr(tokenizer, "padding_side", "right") == "left":
        shift = len(cut) - len(ids)
    moved = [row + shift for row in rows]
    if moved[-1] >= len(cut) or [cut[row] for row in moved] != [ids[row] for row in rows]:
        raise _cut_off(text[start:end], settings["max_length"])
    return moved


def _offset_of(ids: list[int], bare: list[int]) -> int:
    """Number of special tokens before the text."""
    for offset in range(len(ids) - len(bare) + 1):
        if ids[offset : offset + len(bare)] == bare:
            return offset
    raise ValueError("this tokenizer changes the text's tokens when it adds special tokens; pass input_ids instead")


def _shared(tokenizer: Any, piece: str, bare: list[int], *, exact: bool) -> int:
    """Number of tokens of the whole text that lie in `piece`, its beginning.

    A piece that ends inside a token shares fewer tokens than it has itself; with `exact` that token counts too.
    """
    ids = list(tokenizer(piece, truncation=False, add_special_tokens=False, verbose=False)["input_ids"])
    same = 0
    while same < min(len(ids), len(bare)) and ids[same] == bare[same]:
        same += 1
    return min(same + 1, len(bare)) if exact and same < len(ids) else same


class _Squeezed(NamedTuple):
    """Text without spaces and in lower case, and where each of its characters came from."""

    text: str
    origins: list[int]

    def inside(self, span: Span) -> range:
        """Indices of the characters of a span."""
        first = bisect_left(self.origins, span.start)
        return range(first, bisect_left(self.origins, span.end))


def _squeeze(text: str) -> _Squeezed:
    kept = [(low, offset) for offset, char in enumerate(text) if not char.isspace() for low in char.casefold()]
    return _Squeezed("".join(low for low, _ in kept), [offset for _, offset in kept])


def _align(prompt: str, text: str, wanted: range) -> int | None:
    """Shift from the squeezed prompt to the squeezed text, valid for the characters `wanted`; None if they are absent.

    The prompt is there as it stands, once; or, where the pipeline cleaned it or cut its end off, in pieces, of which
    one holds all that is wanted.
    """
    found = text.find(prompt)
    if found >= 0:
        if text.find(prompt, found + 1) >= 0:
            raise ValueError(f"{prompt[:200]!r} occurs more than once in the text that was tokenised; pass input_ids")
        return found
    for block in SequenceMatcher(None, prompt, text, autojunk=False).get_matching_blocks():
        stop = block.a + block.size
        if block.a <= wanted.start and wanted.stop <= stop:
            at_an_end = 0 in (block.a, len(prompt) - stop) and text.count(prompt[block.a : stop]) == 1
            if block.size >= _SURE or at_an_end:
                return block.b - block.a
    return None


def _find_inside(prompt: str, span: Span, text: str) -> tuple[int, int]:
    """Offsets of the span in a longer text that holds the prompt."""
    small, large = _squeeze(prompt), _squeeze(text)
    wanted = small.inside(span)
    shift = _align(small.text, large.text, wanted)
    if shift is None:
        raise ValueError(f'"{span.text}" is not in the text that was tokenised; pass the text that the prompt became')
    return large.origins[shift + wanted.start], large.origins[shift + wanted.stop - 1] + 1


def _rows_by_decoding(tokenizer: Any, prompt: str, span: Span, ids: list[int]) -> list[int]:
    """Rows of given ids: every token is decoded, and the prompt is looked for in the joined text."""
    small = _squeeze(prompt)
    pieces = _decoded(tokenizer, ids, small.text)
    owners = [rows for piece, rows in pieces for _ in piece]
    wanted = small.inside(span)
    large = "".join(piece for piece, _ in pieces)
    shift = _align(small.text, large, wanted)
    if shift is not None:
        return sorted({row for index in wanted for row in owners[shift + index]})
    beginning = next((n for n in range(wanted.stop, 0, -1) if large.endswith(small.text[:n])), 0)
    known = (small.text[:_SURE], small.text[: max(1, wanted.start)][-_SURE:])  # a template may follow the cut prompt
    if beginning >= min(_SURE, max(1, wanted.start)) or any(len(part) == _SURE and part in large for part in known):
        raise _cut_off(span.text, len(ids))
    raise ValueError(
        f"the ids do not hold the prompt {prompt[:200]!r}: pass those of the same text encoder and prompt"
    )


def _decoded(tokenizer: Any, ids: list[int], prompt: str) -> list[tuple[str, list[int]]]:
    """Squeezed text of each token with its rows; tokens that share one character (bytes) are decoded together.

    Special tokens are left out, unless the prompt has such characters itself ("!" pads in some CLIP tokenizers).
    """
    special = {token for token in tokenizer.all_special_ids if _squeeze(tokenizer.decode([token])).text not in prompt}
    pieces: list[tuple[str, list[int]]] = []
    rows: list[int] = []
    for row, (token, shown) in enumerate(zip(ids, tokenizer.convert_ids_to_tokens(ids), strict=True)):
        if token in special or not shown.strip(_SPACES):
            rows = []
            continue
        rows = [*rows, row]
        text = tokenizer.decode([ids[index] for index in rows])
        if (_BROKEN in text or not text) and len(rows) < _LONGEST_CHARACTER:
            continue
        pieces.append((_squeeze(text).text, rows))
        rows = []
    return pieces
