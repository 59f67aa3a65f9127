"""What a flip, a transposition or an exchange of the objects does to a spatial relation.

A relation is a direction in the picture: x to the right, y downwards, z away from the viewer, from the object (second)
to the subject (first). Every symmetry of the square acts on that direction exactly, so maps can be mirrored for
training with exact labels, and a classifier can be built that cannot tell A-left-of-B from B-right-of-A apart.
"""

import re
from collections.abc import Callable, Sequence
from types import MappingProxyType

import torch
from jaxtyping import Float, Int64
from torch import Tensor

Direction = tuple[int, int, int]

_WORDS: dict[str, Direction] = {
    "left": (-1, 0, 0),
    "right": (1, 0, 0),
    "above": (0, -1, 0),
    "below": (0, 1, 0),
    "front": (0, 0, -1),
    "behind": (0, 0, 1),
    "near": (0, 0, 0),
    "next": (0, 0, 0),
    "none": (0, 0, 0),
    "overlap": (0, 0, 0),
    "missing": (0, 0, 0),
}

SYMMETRIES: MappingProxyType[str, Callable[[Direction], Direction]] = MappingProxyType(
    {
        "swap": lambda d: (-d[0], -d[1], -d[2]),
        "mirror": lambda d: (-d[0], d[1], d[2]),
        "upend": lambda d: (d[0], -d[1], d[2]),
        "transpose": lambda d: (d[1], d[0], d[2]),
    }
)
"""Exchange of the two objects, left-right flip, top-bottom flip, reflection in the main diagonal. Rotations by 90
degrees are compositions of these."""


def direction_of(relation: str) -> Direction | None:
    """Direction from the second object to the first, components in {-1, 0, 1}; None if the words name none.

    (0, 0, 0) stands for relations that every symmetry leaves alone ("near", "none").
    """
    known = [_WORDS[word] for word in re.split(r"[^a-z]+", relation.lower()) if word in _WORDS]
    if not known:
        return None
    return (sum(d[0] for d in known), sum(d[1] for d in known), sum(d[2] for d in known))


def relation_permutation(relations: Sequence[str], symmetry: str) -> tuple[int, ...]:
    """Index of the relation that each relation becomes under a symmetry; -1 where the vocabulary has none.

    Args:
        relations: Vocabulary, distinct names.
        symmetry: A key of `SYMMETRIES`.

    Raises:
        ValueError: if the symmetry is unknown or two relations name the same direction.
    """
    if symmetry not in SYMMETRIES:
        raise ValueError(f"symmetry must be one of {', '.join(SYMMETRIES)}, got {symmetry!r}")
    directions = [direction_of(relation) for relation in relations]
    moving = [d for d in directions if d is not None and any(d)]
    if len(set(moving)) != len(moving):
        raise ValueError(f"two relations of {list(relations)} name the same direction; keep one name for each")
    permutation = []
    for index, direction in enumerate(directions):
        if direction is None:
            permutation.append(-1)
        elif not any(direction):
            permutation.append(index)
        else:
            image = SYMMETRIES[symmetry](direction)
            permutation.append(directions.index(image) if image in directions else -1)
    return tuple(permutation)


def transform_maps(
    maps: Float[Tensor, "batch 2 channels height width"], symmetry: str
) -> Float[Tensor, "batch 2 channels height width"]:
    """Maps of the mirrored picture, or of the same picture with the objects exchanged."""
    if symmetry == "swap":
        return maps.flip(1)
    if symmetry == "mirror":
        return maps.flip(-1)
    if symmetry == "upend":
        return maps.flip(-2)
    if symmetry == "transpose":
        return maps.transpose(-1, -2)
    raise ValueError(f"symmetry must be one of {', '.join(SYMMETRIES)}, got {symmetry!r}")


def augment(
    maps: Float[Tensor, "batch 2 channels height width"],
    labels: Int64[Tensor, " batch"],
    relations: Sequence[str],
    symmetries: Sequence[str],
    generator: torch.Generator | None = None,
) -> tuple[Float[Tensor, "batch 2 channels height width"], Int64[Tensor, " batch"]]:
    """Apply each symmetry to a random half of the samples, labels following exactly.

    A sample whose relation has no counterpart in the vocabulary stays as it is. The inputs are not changed.

    Args:
        maps: Maps of subject and object, square where "transpose" is used.
        labels: Indices into `relations`.
        relations: Vocabulary.
        symmetries: Keys of `SYMMETRIES`, applied in this order.
        generator: CPU generator that draws the halves.
    """
    maps, labels = maps.clone(), labels.clone()
    for symmetry in symmetries:
        permutation = torch.tensor(relation_permutation(relations, symmetry), device=labels.device)
        coin = torch.rand(len(labels), generator=generator).to(labels.device) < 0.5
        chosen = (coin & (permutation[labels] >= 0)).nonzero().flatten()
        maps[chosen] = transform_maps(maps[chosen], symmetry)
        labels[chosen] = permutation[labels[chosen]]
    return maps, labels
