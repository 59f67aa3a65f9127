"""How good a relation classifier is, and whether it reads the prompt instead of the picture."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

LEAKAGE_LIMIT = 0.03
_FEWEST = 30  # samples with right and with wrong words, each; fewer tell nothing about a gap this small


@dataclass(frozen=True)
class Predictions:
    """Logits of a classifier on labelled maps, without augmentation.

    Attributes:
        logits: Of each sample.
        label: True relation in the picture.
        prompt_relation: Relation named by the prompt, right or wrong; -1 if it named none.
        timestep: Step index the maps were recorded at.
    """

    logits: Float[Tensor, "samples relations"]
    label: Int64[Tensor, " samples"]
    prompt_relation: Int64[Tensor, " samples"]
    timestep: Int64[Tensor, " samples"]


def evaluate(predictions: Predictions, relations: Sequence[str], limit: float = LEAKAGE_LIMIT) -> dict[str, Any]:
    """Accuracy, cross entropy, confusion matrix and leakage report, as plain JSON types.

    Args:
        predictions: On held-out samples.
        relations: Names in the order of the logits.
        limit: Greatest difference of accuracy between right and wrong words that counts as no leakage.

    Returns:
        samples; loss (mean cross entropy in nats); accuracy; accuracy_by_timestep and accuracy_by_relation, each name
        to {accuracy, samples}; confusion (rows: truth, columns: prediction); leakage (see `leakage_report`).

    Raises:
        ValueError: if there are no samples.
    """
    if not len(predictions.label):
        raise ValueError("cannot evaluate a classifier without samples")
    guess = predictions.logits.argmax(dim=1)
    correct = guess == predictions.label
    pairs = predictions.label * len(relations) + guess
    confusion = torch.bincount(pairs, minlength=len(relations) ** 2).view(len(relations), len(relations))
    return {
        "samples": len(correct),
        "loss": torch.nn.functional.cross_entropy(predictions.logits.double(), predictions.label).item(),
        "accuracy": correct.double().mean().item(),
        "accuracy_by_timestep": {
            str(step): _accuracy(correct[predictions.timestep == step])
            for step in predictions.timestep.unique(sorted=True).tolist()
        },
        "accuracy_by_relation": {
            name: _accuracy(correct[predictions.label == index]) for index, name in enumerate(relations)
        },
        "confusion": confusion.tolist(),
        "leakage": leakage_report(predictions, limit),
    }


def leakage_report(predictions: Predictions, limit: float = LEAKAGE_LIMIT) -> dict[str, Any]:
    """Compare the accuracy where the prompt's relation word is right with that where it is wrong.

    A classifier that reads the word from the maps follows it when it is wrong.

    gap = accuracy(right) - accuracy(wrong),   passed if |gap| <= limit

    Returns:
        by_word: "right", "wrong" and "none", each to {accuracy, samples}; gap and gap_error (its standard error);
        follows_word: share of the wrong-word samples that are classified as the prompt says; limit; passed. None
        stands for what the samples do not tell; whether the test is passed takes 30 samples of either kind.
    """
    guess = predictions.logits.argmax(dim=1)
    correct = guess == predictions.label
    none = predictions.prompt_relation < 0
    right = predictions.prompt_relation == predictions.label
    wrong = ~none & ~right
    rows = {"right": _accuracy(correct[right]), "wrong": _accuracy(correct[wrong]), "none": _accuracy(correct[none])}
    gap, error, follows = None, None, None
    if right.any() and wrong.any():
        gap = rows["right"]["accuracy"] - rows["wrong"]["accuracy"]
        error = math.sqrt(
            sum(r["accuracy"] * (1 - r["accuracy"]) / r["samples"] for r in (rows["right"], rows["wrong"]))
        )
    if wrong.any():
        follows = (guess == predictions.prompt_relation)[wrong].double().mean().item()
    return {
        "by_word": rows,
        "gap": gap,
        "gap_error": error,
        "follows_word": follows,
        "limit": limit,
        "passed": None if gap is None or min(int(right.sum()), int(wrong.sum())) < _FEWEST else abs(gap) <= limit,
    }


def _accuracy(correct: Tensor) -> dict[str, Any]:
    return {"accuracy": correct.double().mean().item() if len(correct) else None, "samples": len(correct)}
