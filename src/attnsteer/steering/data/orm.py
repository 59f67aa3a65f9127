"""Triplets from a local copy of the reward-model data of Image-Generation-CoT: made pictures, judged yes or no.

    FOLDER/orm.json      pictures, prompts and verdicts; see `attnsteer.steering.data.orm_file`
    FOLDER/...           the pictures, under the paths in the file, or under FOLDER/images

Source: Guo et al. 2025, arXiv:2501.13926, `ZiyuG/Image-Generation-CoT` on the Hub; selection of Learn-to-Steer,
arXiv:2509.02295.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Final

from attnsteer.steering.data.orm_file import NAMES, judged_pictures
from attnsteer.steering.data.triplets import ATTRIBUTE, SplitSizes, Triplet

COLOURS: Final = ("white", "green")
SIZES: Final = SplitSizes((800, 100, 70), (400, 50, 35))
_RELATION: Final = re.compile(r"a photo of an? (.+?) (left of|right of|above|below) an? (.+)")
_COLOUR: Final = re.compile(rf"a photo of an? ({'|'.join(COLOURS)}) (.+)")
_NAMES: Final = {"left of": "to the left of", "right of": "to the right of", "above": "above", "below": "below"}


def orm_triplets(folder: str | Path) -> list[list[Triplet]]:
    """One triplet for each picture that was judged to show its prompt, where the prompt states a relation or colour.

    Raises: FileNotFoundError if the file, or every picture of it, is missing; ValueError if it has another format, or
        no prompt of a known form.
    """
    root = Path(folder)
    file = next((root / name for name in NAMES if (root / name).is_file()), None)
    if file is None:
        raise FileNotFoundError(
            f"{root / NAMES[0]} is missing: download the data set ZiyuG/Image-Generation-CoT (orm.json and its "
            f"pictures) into {folder}"
        )
    right = [entry for entry in judged_pictures(file) if entry.right]
    stated = [(entry.image, found) for entry in right if (found := _stated(entry.prompt)) is not None]
    if not stated:
        raise ValueError(
            f"{file}: none of the {len(right)} prompts that are judged to be shown is 'a photo of a A left of a B' "
            f"(right of, above, below) or 'a photo of a {COLOURS[0]} A'"
        )
    there = [(path, image, found) for image, found in stated if (path := _picture(root, image)) is not None]
    if not there:
        raise FileNotFoundError(
            f"none of the {len(stated)} pictures that {file} names with a relation is in {folder}, such as "
            f"{stated[0][0]!r}"
        )
    return [[Triplet(path, image, *found)] for path, image, found in there]


def _stated(prompt: str) -> tuple[str, str, str] | None:
    """Subject, relation and object that a prompt states; None if it states none."""
    if (relation := _RELATION.fullmatch(prompt)) is not None:
        return relation[1], _NAMES[relation[2]], relation[3]
    colour = _COLOUR.fullmatch(prompt)
    if colour is None or " and " in colour[2]:
        return None
    return colour[1], ATTRIBUTE, colour[2]


def _picture(root: Path, image: str) -> str | None:
    return next((place for place in (image, f"images/{image}") if (root / place).is_file()), None)
