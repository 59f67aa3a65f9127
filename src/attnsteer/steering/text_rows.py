"""Where a text encoder's output rows sit inside a denoiser's text input, found by value."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from jaxtyping import Float
    from torch import Tensor

_PROBES = 8  # encoder rows found again that are enough


@dataclass(frozen=True)
class RowMatch:
    """Where the rows of a text encoder's output sit in a denoiser's text input.

    Args:
        shift: Text row = encoder row + shift; negative where a pipeline crops a template.
        columns: Channels of the text input that the encoder filled (encoders side by side: SDXL, SD3).
        encoder_rows: The encoder's rows that were found, ascending; others are cropped or masked out.
    """

    shift: int
    columns: slice
    encoder_rows: tuple[int, ...]

    def text_rows(self, indices: Sequence[int]) -> list[int]:
        """Rows of the text input for rows of the encoder.

        Raises: ValueError if the pipeline left one of them out.
        """
        found = set(self.encoder_rows)
        missing = [index for index in indices if index not in found]
        if missing:
            raise ValueError(
                f"rows {missing} of the text encoder are not in the denoiser's text input, the pipeline cuts them: "
                "shorten the prompt or move these words to its beginning"
            )
        return [index + self.shift for index in indices]


def match_text_rows(
    text_rows: "Float[Tensor, 'text_tokens channels']", encoder_rows: "Float[Tensor, 'tokens encoder_channels']"
) -> RowMatch:
    """Find a text encoder's output rows inside a denoiser's text input, by value.

    Handles cropped templates, padding, masked rows, and encoders joined along tokens or channels. Rows that are equal
    to all others (zeros, repeated padding) decide nothing; the placement with the most equal rows wins.

    Args:
        text_rows: One row of the denoiser's text input, (T, D), any floating type.
        encoder_rows: Output of the encoder for the same prompt, (T_enc, D_enc) with D_enc <= D.

    Returns: The placement; it is unique.
    Raises: ValueError if shapes do not fit, nothing matches, or two placements match equally well.
    Source: equality by value instead of per-pipeline bookkeeping; exact up to the rounding of the narrower type.
    """
    if text_rows.ndim != 2 or encoder_rows.ndim != 2:
        raise ValueError(f"expected (tokens, channels), got shapes {text_rows.shape} and {encoder_rows.shape}")
    if not (text_rows.is_floating_point() and encoder_rows.is_floating_point()):
        raise ValueError(f"expected floating types, got {text_rows.dtype} and {encoder_rows.dtype}")
    if encoder_rows.shape[1] > text_rows.shape[1]:
        raise ValueError(
            f"the encoder's rows have {encoder_rows.shape[1]} channels, the text input only {text_rows.shape[1]}: "
            "it was projected in between, so rows cannot be matched by value"
        )
    text, encoder, tolerance = _comparable(text_rows, encoder_rows)
    sorts = _sorts(encoder)
    scores: dict[int, list[tuple[int, int, list[int]]]] = {}
    for shift, column in dict.fromkeys(_candidates(text, encoder, sorts, tolerance)):
        rows = _equal_rows(text, encoder, shift, column, tolerance)
        score = len({sorts[row] for row in rows if sorts[row] is not None})
        scores.setdefault(score, []).append((shift, column, rows))
    if not scores or max(scores) == 0:
        raise ValueError("no row of the text encoder is in the text input: give the hidden layer the pipeline uses")
    best = scores[max(scores)]
    if len(best) > 1:
        raise ValueError("the text encoder's rows fit at more than one place of the text input")
    shift, column, rows = best[0]
    return RowMatch(shift, slice(column, column + encoder.shape[1]), tuple(rows))


def _comparable(first: "Tensor", second: "Tensor") -> "tuple[Tensor, Tensor, float]":
    """Both in float32 on the CPU after rounding to the narrower type, and the tolerance relative to each row."""
    import torch

    narrow = max((first.dtype, second.dtype), key=lambda dtype: torch.finfo(dtype).eps)
    rounded = [rows.detach().to(narrow).to("cpu", torch.float32) for rows in (first, second)]
    return rounded[0], rounded[1], 4 * torch.finfo(narrow).eps


def _sorts(encoder: "Tensor") -> list[int | None]:
    """A number for each row, the same for equal rows; None for rows of zeros."""
    import torch

    numbers = torch.unique(encoder, dim=0, return_inverse=True)[1].tolist()
    return [number if bool(row.any()) else None for number, row in zip(numbers, encoder, strict=True)]


def _candidates(
    text: "Tensor", encoder: "Tensor", sorts: list[int | None], tolerance: float
) -> Iterator[tuple[int, int]]:
    """Placements (shift, first channel) where a telling encoder row recurs: looked for by its largest entry."""
    counts = Counter(sorts)
    telling = [row for row, sort in enumerate(sorts) if sort is not None and counts[sort] == 1]
    telling = telling or [row for row, sort in enumerate(sorts) if sort is not None]
    # Padding rows are nearly alike and recur nearly everywhere: begin with those least like the common row.
    unlike = (encoder - encoder.median(dim=0).values).norm(dim=1).tolist()
    telling.sort(key=lambda row: -unlike[row])
    if not telling:
        return
    values, places = _entries_near(text, encoder[telling], tolerance)
    if not len(values):
        return
    successes = 0
    for row in telling:
        found = _recurrences(text, encoder[row], values, places, tolerance)
        yield from ((text_row - row, first) for text_row, first in found)
        successes += bool(found)  # rows of a cropped template are found nowhere and tell nothing
        if successes == _PROBES:
            return


def _entries_near(text: "Tensor", rows: "Tensor", tolerance: float) -> "tuple[Tensor, Tensor]":
    """Entries of the text that may be the largest one of some row, and their places in the flattened text."""
    import torch

    largest = rows.gather(1, rows.abs().argmax(dim=1, keepdim=True))[:, 0].sort().values
    low, high = largest - tolerance * largest.abs(), largest + tolerance * largest.abs()
    new = torch.ones(len(largest), dtype=torch.bool)
    new[1:] = low[1:] > high.cummax(dim=0).values[:-1]  # intervals that overlap are joined
    ends = torch.cat([torch.nonzero(new)[1:, 0] - 1, torch.tensor([len(largest) - 1])])
    edges = torch.stack([low[new], high.cummax(dim=0).values[ends].nextafter(torch.tensor(torch.inf))], dim=1)
    flat = text.flatten()
    places = (torch.bucketize(flat, edges.flatten(), right=True) % 2 == 1).nonzero()[:, 0]
    return flat[places], places


def _recurrences(
    text: "Tensor", row: "Tensor", values: "Tensor", places: "Tensor", tolerance: float
) -> list[tuple[int, int]]:
    """Where an encoder row recurs: (text row, first channel), looked for by its largest entry, then by the others.

    Args:
        text: All rows, (T, D).
        row: The encoder's, (D_enc,).
        values: Entries of the text, among them all that may be the row's largest one.
        places: Where they stand in the flattened text.
        tolerance: Relative to the row's largest entry.
    """
    order = row.abs().argsort(descending=True)
    near = tolerance * row[order[0]].abs()
    hits = places[(values - row[order[0]]).abs() <= near]
    text_rows, first = hits // text.shape[1], hits % text.shape[1] - order[0]
    for columns in (order[:0], order[:8], order):  # none: whether the row fits there at all
        inside = (first >= 0) & (first <= text.shape[1] - len(row))
        text_rows, first = text_rows[inside], first[inside]
        seen = text[text_rows[:, None], first[:, None] + columns]
        same = ((seen - row[columns]).abs() <= near).all(dim=1)
        text_rows, first = text_rows[same], first[same]
    return list(zip(text_rows.tolist(), first.tolist(), strict=True))


def _equal_rows(text: "Tensor", encoder: "Tensor", shift: int, column: int, tolerance: float) -> list[int]:
    """Encoder rows that equal the text row at this placement."""
    first, stop = max(0, -shift), min(len(encoder), len(text) - shift)
    mine = encoder[first:stop]
    theirs = text[first + shift : stop + shift, column : column + encoder.shape[1]]
    scale = mine.abs().amax(dim=1, keepdim=True)
    equal = ((mine - theirs).abs() <= tolerance * scale).all(dim=1)
    return [first + int(row) for row in equal.nonzero().flatten()]
