import pytest
import torch

from attnsteer.steering.symmetry import SYMMETRIES, augment, direction_of, relation_permutation, transform_maps
from blobs import RELATIONS, blob

EIGHT = (
    *RELATIONS,
    "above and to the left of",
    "above and to the right of",
    "below and to the left of",
    "below and to the right of",
)


def seen(maps: torch.Tensor) -> str:
    """Relation read from where the brightest cells are: independent of any table of names."""
    size = maps.shape[-1]
    first, second = (divmod(int(m.flatten().argmax()), size) for m in maps[:, 0])
    words = []
    if first[0] != second[0]:
        words.append("above" if first[0] < second[0] else "below")
    if first[1] != second[1]:
        words.append("to the left of" if first[1] < second[1] else "to the right of")
    return " and ".join(words)


def pair(first: tuple[float, float], second: tuple[float, float]) -> torch.Tensor:
    return torch.stack([blob(torch.tensor([x]), torch.tensor([y]), 9) for x, y in (first, second)], dim=0)


CENTRE = (0.5, 0.5)
PLACES = [(x, y) for x in (0.15, 0.5, 0.85) for y in (0.15, 0.5, 0.85) if (x, y) != CENTRE]


@pytest.mark.parametrize("symmetry", list(SYMMETRIES))
@pytest.mark.parametrize("place", PLACES)
def test_labels_follow_the_picture(symmetry: str, place: tuple[float, float]):
    maps = pair(place, CENTRE)
    became = EIGHT[relation_permutation(EIGHT, symmetry)[EIGHT.index(seen(maps))]]
    assert became == seen(transform_maps(maps[None], symmetry)[0])


def test_augmented_samples_keep_true_labels_and_mix():
    maps = torch.stack([pair(place, CENTRE) for place in PLACES] * 20)
    labels = torch.tensor([EIGHT.index(seen(m)) for m in maps])
    before = maps.clone()
    mixed, new = augment(maps, labels, EIGHT, list(SYMMETRIES), torch.Generator().manual_seed(0))
    assert torch.equal(maps, before)
    assert [EIGHT[i] for i in new.tolist()] == [seen(m) for m in mixed]
    assert 0.5 < (new != labels).float().mean() < 0.95
    again = augment(maps, labels, EIGHT, list(SYMMETRIES), torch.Generator().manual_seed(0))
    assert torch.equal(mixed, again[0]) and torch.equal(new, again[1])


def test_relations_without_counterpart_stay():
    maps, labels = torch.rand(50, 2, 1, 4, 4), torch.randint(0, 3, (50,))
    kept, same = augment(maps, labels, ("above", "is", "to the left of"), ["swap"])
    assert torch.equal(same, labels) and torch.equal(kept, maps)


def test_directions():
    assert direction_of("to the right of") == (1, 0, 0)
    assert direction_of("above_left") == direction_of("above-to the left of") == (-1, -1, 0)
    assert direction_of("in front of") == (0, 0, -1) and direction_of("near") == (0, 0, 0)
    assert direction_of("is") is None
    assert relation_permutation(("in front of", "behind", "near"), "swap") == (1, 0, 2)
    assert relation_permutation(("in front of", "behind", "near"), "mirror") == (0, 1, 2)


def test_errors():
    with pytest.raises(ValueError, match="same direction"):
        relation_permutation(("to the left of", "left of"), "swap")
    with pytest.raises(ValueError, match="swap, mirror"):
        relation_permutation(RELATIONS, "rotate")
    with pytest.raises(ValueError, match="swap, mirror"):
        transform_maps(torch.zeros(1, 2, 1, 2, 2), "rotate")
