"""How good a relation classifier is, and whether it reads the prompt instead of the picture."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float, Int64
from torch import Tensor

LEAKAGE_LIMIT = 0.03
_FEWEST = 30  # pictures with right and with wrong words, each; fewer tell nothing about a gap this small
_SURE = 1.96  # standard errors


@dataclass(frozen=True)
class Predictions:
    """Logits of a classifier on labelled maps, without augmentation.

    Attributes:
        logits: Of each sample.
        label: True relation in the picture.
        prompt_relation: Relation named by the prompt, right or wrong; -1 if it named none.
        timestep: Step index the maps were recorded at.
        picture: A number for each sample, the same for those of one picture; None if each shows another one.
    """

    logits: Float[Tensor, "samples relations"]
    label: Int64[Tensor, " samples"]
    prompt_relation: Int64[Tensor, " samples"]
    timestep: Int64[Tensor, " samples"]
    picture: Int64[Tensor, " samples"] | None = None


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

    gap = accuracy(right) - accuracy(wrong)

    It is passed if |gap| <= limit and failed if |gap| is above the limit by more than 1.96 standard errors. What lies
    between, and fewer than 30 pictures of either kind, decides nothing.

    Returns:
        by_word: "right", "wrong" and "none", each to {accuracy, samples, pictures}; gap and gap_error (its standard
        error, which takes the samples of one picture together); follows_word: share of the wrong-word samples that are
        classified as the prompt says; limit; passed. None stands for what the samples do not tell.
    """
    guess = predictions.logits.argmax(dim=1)
    correct = guess == predictions.label
    none = predictions.prompt_relation < 0
    right = predictions.prompt_relation == predictions.label
    wrong = ~none & ~right
    picture = torch.arange(len(guess)) if predictions.picture is None else predictions.picture
    rows = {
        name: _accuracy(correct[of]) | {"pictures": len(picture[of].unique())}
        for name, of in (("right", right), ("wrong", wrong), ("none", none))
    }
    gap, error, follows, passed = None, None, None, None
    if right.any() and wrong.any():
        gap = rows["right"]["accuracy"] - rows["wrong"]["accuracy"]
        error = _gap_error(correct, right, wrong, picture)
        if min(rows[name]["pictures"] for name in ("right", "wrong")) >= _FEWEST:
            surely_above = abs(gap) - _SURE * error > limit
            passed = True if abs(gap) <= limit else False if surely_above else None
    if wrong.any():
        follows = (guess == predictions.prompt_relation)[wrong].double().mean().item()
    return {
        "by_word": rows,
        "gap": gap,
        "gap_error": error,
        "follows_word": follows,
        "limit": limit,
        "passed": passed,
    }


def leakage_verdict(leakage: Mapping[str, Any]) -> str:
    """What a leakage report says, in words."""
    if leakage["passed"] is None:
        if leakage["gap"] is None or abs(leakage["gap"]) <= leakage["limit"]:
            return f"not measured, it takes {_FEWEST} pictures each with a right and with a wrong word"
        return "undecided, it may be chance: measure on more pictures"
    return "passed" if leakage["passed"] else "FAILED: it reads the relation word, do not steer with it"


def _gap_error(correct: Tensor, right: Tensor, wrong: Tensor, picture: Tensor) -> float:
    """Standard error of the gap: the root of the sum over pictures of their squared influence on it."""
    weight = torch.zeros(len(correct), dtype=torch.float64)
    for rows, sign in ((right, 1.0), (wrong, -1.0)):
        weight[rows] = sign * (correct[rows].double() - correct[rows].double().mean()) / rows.sum()
    _, places = picture.unique(return_inverse=True)
    of_picture = torch.zeros(int(places.max()) + 1, dtype=torch.float64).index_add_(0, places, weight)
    return float(of_picture.norm())


def _accuracy(correct: Tensor) -> dict[str, Any]:
    return {"accuracy": correct.double().mean().item() if len(correct) else None, "samples": len(correct)}
