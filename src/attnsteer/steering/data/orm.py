"""Triplets from a local copy of the reward-model data of Image-Generation-CoT: made pictures, judged yes or no.

    FOLDER/orm.json      [{"image": "...", "conversations": [{"from": "human", "value": "... prompt: P. Does ..."},
                           {"from": "gpt", "value": "yes"}]}, ...]
    FOLDER/...           the pictures, under the paths in the file, or under FOLDER/images

Source: Guo et al. 2025, arXiv:2501.13926, `ZiyuG/Image-Generation-CoT` on the Hub; selection of Learn-to-Steer,
arXiv:2509.02295.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from attnsteer.steering.data.triplets import ATTRIBUTE, SplitSizes, Triplet

COLOURS: Final = ("white", "green")
SIZES: Final = SplitSizes((800, 100, 70), (400, 50, 35))
_PROMPT: Final = re.compile(r"prompt: (.*)\. Does", re.DOTALL)
_RELATION: Final = re.compile(r"a photo of an? (.+?) (left of|right of|above|below) an? (.+)")
_COLOUR: Final = re.compile(rf"a photo of an? ({'|'.join(COLOURS)}) (.+)")
_NAMES: Final = {"left of": "to the left of", "right of": "to the right of", "above": "above", "below": "below"}


def orm_triplets(folder: str | Path) -> list[list[Triplet]]:
    """One triplet for each picture that was judged to show its prompt, where the prompt states a relation or colour.

    Raises: FileNotFoundError if the file, or every picture of it, is missing; ValueError if it has another format.
    """
    root = Path(folder)
    file = root / "orm.json"
    if not file.is_file():
        raise FileNotFoundError(
            f"{file} is missing: download the data set ZiyuG/Image-Generation-CoT (orm.json and its pictures) into "
            f"{folder}"
        )
    entries = json.loads(file.read_text("utf-8"))
    if not isinstance(entries, list) or not entries:
        raise ValueError(f"{file} must hold a list of entries with image and conversations")
    stated = [(str(entry["image"]), found) for entry in entries if (found := _stated(entry, file)) is not None]
    there = [(path, image, found) for image, found in stated if (path := _picture(root, image)) is not None]
    if not there:
        raise FileNotFoundError(f"none of the {len(stated)} pictures that {file} names with a relation is in {folder}")
    return [[Triplet(path, image, *found)] for path, image, found in there]


def _stated(entry: Mapping[str, Any], file: Path) -> tuple[str, str, str] | None:
    """Subject, relation and object of an entry whose answer is yes; None if there is none."""
    try:
        turns = {turn["from"]: str(turn["value"]) for turn in entry["conversations"]}
        question, answer = turns["human"], turns["gpt"]
    except (KeyError, TypeError) as problem:
        raise ValueError(f"{file}: an entry lacks conversations from human and gpt: {entry!r:.200}") from problem
    asked = _PROMPT.search(question)
    if asked is None or not answer.strip().lower().startswith("yes"):
        return None
    prompt = asked[1].strip()
    if (relation := _RELATION.fullmatch(prompt)) is not None:
        return relation[1], _NAMES[relation[2]], relation[3]
    colour = _COLOUR.fullmatch(prompt)
    if colour is None or " and " in colour[2]:
        return None
    return colour[1], ATTRIBUTE, colour[2]


def _picture(root: Path, image: str) -> str | None:
    return next((place for place in (image, f"images/{image}") if (root / place).is_file()), None)
