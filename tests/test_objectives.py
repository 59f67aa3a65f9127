import math

import pytest
import torch

from attnsteer.steering.classifier import RelationClassifier
from attnsteer.steering.classifier_settings import ClassifierSettings, EncoderSize
from attnsteer.steering.objectives import (
    CentroidObjective,
    ClassifierObjective,
    Objective,
    joint_loss,
    relation_rows,
)

FOUR = ("to the left of", "to the right of", "above", "below")


@pytest.fixture
def classifier() -> RelationClassifier:
    torch.manual_seed(0)
    size = EncoderSize(8, 1, 2, 12)
    return RelationClassifier(ClassifierSettings(FOUR, channels=3, map_size=5, extractor=size, head=size)).eval()


def bright(*cells: tuple[int, int], size: int = 5, channels: int = 2) -> torch.Tensor:
    """One row of maps: each object is a single bright cell (x, y)."""
    maps = torch.zeros(1, 2, channels, size, size)
    for which, (x, y) in enumerate(cells):
        maps[0, which, :, y, x] = 0.7
    return maps


def test_cross_entropy_and_probability(classifier: RelationClassifier):
    maps = torch.rand(3, 2, 3, 5, 5)
    wanted = ["above", "to the left of", "below"]
    verdict = ClassifierObjective(classifier)(maps, 0.0, wanted)
    for row, relation in enumerate(wanted):
        scores = [math.exp(value) for value in classifier(maps, 0.0)[row].tolist()]
        p = scores[FOUR.index(relation)] / sum(scores)
        assert verdict.probability[row].item() == pytest.approx(p, rel=1e-5)
        assert verdict.loss[row].item() == pytest.approx(-math.log(p), rel=1e-4)
    one = ClassifierObjective(classifier)(maps, 0.0, ["above"])
    torch.testing.assert_close(one.loss[0], verdict.loss[0])


def test_centroids_of_single_cells():
    centroids = CentroidObjective().moments(bright((0, 1), (4, 2)))[0][0]
    torch.testing.assert_close(centroids, torch.tensor([[0.1, 0.3], [0.9, 0.5]]))


def softplus(x: float) -> float:
    return math.log1p(math.exp(-abs(x))) + max(x, 0.0)


@pytest.mark.parametrize(
    ("relation", "separations"),
    [
        ("to the left of", [0.4]),
        ("to the right of", [-0.4]),
        ("above", [0.2]),
        ("below", [-0.2]),
        ("above and to the left of", [0.4, 0.2]),
        ("below and to the left of", [0.4, -0.2]),
    ],
)
def test_centroid_loss_in_closed_form(relation: str, separations: list[float]):
    objective = CentroidObjective(margin=0.3, temperature=0.1)
    verdict = objective(bright((1, 2), (3, 3)), 0.0, [relation])  # offset (-0.4, -0.2)
    loss = sum(0.1 * softplus((0.3 - s) / 0.1) for s in separations)
    probability = math.prod(1 / (1 + math.exp(-s / 0.1)) for s in separations)
    assert verdict.loss.item() == pytest.approx(loss, rel=1e-4)
    assert verdict.probability.item() == pytest.approx(probability, rel=1e-4)


def test_near_in_closed_form():
    objective = CentroidObjective(reach=0.3, temperature=0.1)
    verdict = objective(bright((1, 2), (3, 3)), 0.0, ["near"])
    distance = math.hypot(0.4, 0.2)
    assert verdict.loss.item() == pytest.approx(0.1 * softplus((distance - 0.3) / 0.1), rel=1e-4)
    assert verdict.probability.item() == pytest.approx(1 / (1 + math.exp((distance - 0.3) / 0.1)), rel=1e-4)


@pytest.mark.parametrize("relation", CentroidObjective().relations)
def test_centroid_gradient_against_finite_differences(relation: str):
    objective, maps = CentroidObjective(temperature=0.3), torch.rand(1, 2, 2, 3, 3) + 0.1
    maps.requires_grad_(True)
    (grad,) = torch.autograd.grad(objective(maps, 0.0, [relation]).loss.sum(), maps)
    for place in ((0, 0, 1, 0, 2), (0, 1, 0, 2, 1)):
        shift = torch.zeros_like(maps)
        shift[place] = 1e-2
        with torch.no_grad():
            ahead = objective(maps + shift, 0.0, [relation]).loss.double()
            behind = objective(maps - shift, 0.0, [relation]).loss.double()
        assert grad[place].item() == pytest.approx((ahead - behind).item() / 2e-2, abs=2e-3, rel=0.05)


def test_descending_the_centroid_loss_reaches_the_relation():
    objective = CentroidObjective()
    picture = torch.randn(1, 2, 3, 6, 6, generator=torch.Generator().manual_seed(0))
    for _ in range(200):
        picture = picture.detach().requires_grad_(True)
        verdict = objective(picture.exp(), 0.0, ["above and to the right of"])
        (grad,) = torch.autograd.grad(verdict.loss.sum(), picture)
        picture = picture - 20 * grad
    assert verdict.probability.item() > 0.95


def test_empty_maps_stay_finite():
    maps = torch.zeros(1, 2, 2, 4, 4, requires_grad=True)
    for relation in CentroidObjective().relations:
        verdict = CentroidObjective()(maps, 0.0, [relation])
        (grad,) = torch.autograd.grad(verdict.loss.sum(), maps)
        assert verdict.loss.isfinite().all() and grad.isfinite().all()


def test_objectives_can_be_swapped(classifier: RelationClassifier):
    maps = torch.rand(2, 2, 3, 5, 5)
    objectives: list[Objective] = [ClassifierObjective(classifier), CentroidObjective()]
    for objective in objectives:
        verdict = objective(maps, torch.zeros(2), ["above", "to the left of"])
        assert set(FOUR) <= set(objective.relations) and verdict.loss.shape == verdict.probability.shape == (2,)
        assert ((verdict.probability >= 0) & (verdict.probability <= 1) & (verdict.loss >= 0)).all()
        with pytest.raises(ValueError, match=r"cannot steer towards \['behind'\]"):
            objective(maps, 0.0, ["behind"])
        with pytest.raises(ValueError, match="one per row"):
            objective(maps, 0.0, ["above"] * 3)
        with pytest.raises(ValueError, match="list of names"):
            objective(maps, 0.0, "above")


def test_relations_are_found_by_direction():
    published = ("above", "above_left", "below_right", "is")
    assert relation_rows(["above and to the left of", "above", "is"], published, 3) == [1, 0, 3]
    assert relation_rows(["below_right"], published, 2) == [2, 2]
    with pytest.raises(ValueError, match="near"):
        relation_rows(["near"], published, 1)


def test_joint_loss():
    losses = torch.tensor([[1.0, 3.0, 2.0], [4.0, 0.5, 9.0]], requires_grad=True)
    wanted = torch.tensor([[True, True, True], [True, True, False]])
    assert joint_loss(losses, "sum", wanted).tolist() == [6.0, 4.5]
    worst = joint_loss(losses, "worst", wanted)
    assert worst.tolist() == [3.0, 4.0] and joint_loss(losses, "worst").tolist() == [3.0, 9.0]
    (grad,) = torch.autograd.grad(worst.sum(), losses)
    assert grad.tolist() == [[0, 1, 0], [1, 0, 0]]
    with pytest.raises(ValueError, match="'sum' or 'worst'"):
        joint_loss(losses, "mean")
