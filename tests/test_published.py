from pathlib import Path

import pytest
import torch

from attnsteer.steering.classifier import RelationClassifier
from attnsteer.steering.published import (
    PUBLISHED_SCHEDULES,
    assign_by_intervals,
    published_classifier,
    published_schedule,
)
from published_network import RELATIONS, logits_of, random_checkpoint, save

GOLDEN = Path(__file__).parent / "golden"


def gradient(logits: torch.Tensor, target: torch.Tensor, maps: torch.Tensor) -> torch.Tensor:
    return torch.autograd.grad(torch.nn.functional.cross_entropy(logits, target), maps)[0]


def test_agrees_with_the_published_network():
    case = torch.load(GOLDEN / "l2s_classifier_mid_io.pt", weights_only=True)
    classifier = RelationClassifier.from_published(GOLDEN / case["checkpoint"])
    assert not classifier.training
    maps = case["maps"].clone().requires_grad_(True)
    logits = classifier(maps, case["timestep_index"])
    torch.testing.assert_close(logits, case["expected_logits"], rtol=0, atol=2e-6)
    grad = gradient(logits, case["target"], maps)
    torch.testing.assert_close(grad, case["expected_grad"], rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("mode", ["start", "mid", "end", "none"])
def test_agrees_with_an_independent_computation_at_other_sizes(mode: str, tmp_path: Path):
    checkpoint = random_checkpoint(mode, enable=mode != "none")
    classifier = RelationClassifier.from_published(save(checkpoint, tmp_path))
    maps = torch.rand(4, 2, 9, 6, 6, requires_grad=True)  # fewer channels than the table of 14
    timestep, target = torch.tensor([0.0, 3.0, 6.0, 1.0]), torch.tensor([0, 1, 2, 4])
    logits, expected = classifier(maps, timestep[:, None]), logits_of(checkpoint, maps, timestep)
    torch.testing.assert_close(logits, expected, rtol=0, atol=2e-6)
    torch.testing.assert_close(gradient(logits, target, maps), gradient(expected, target, maps), rtol=1e-4, atol=1e-7)


def test_modes_differ():
    maps, timestep = torch.rand(2, 2, 14, 6, 6), torch.tensor([1.0, 3.0])
    start, mid, end = (logits_of(random_checkpoint(mode), maps, timestep) for mode in ("start", "mid", "end"))
    assert (start - mid).abs().max() > 1e-3 and (end - mid).abs().max() > 1e-3 and (end - start).abs().max() > 1e-3


def test_settings_come_from_the_weights(tmp_path: Path):
    checkpoint = random_checkpoint()
    checkpoint["config"].update(map_size=99, d_model=1000, num_timesteps=1)
    settings = RelationClassifier.from_published(save(checkpoint, tmp_path)).settings
    assert (settings.channels, settings.map_size, settings.num_timesteps) == (14, 6, 7)
    assert settings.relations == RELATIONS
    assert (settings.extractor.layers, settings.head.layers, settings.head_widths) == (3, 1, (40, 24))
    assert (settings.source.timesteps, settings.source.num_steps, settings.source.orig_map_size) == ((1, 3, 6), 7, 32)


def test_round_trip_through_our_format(tmp_path: Path):
    checkpoint = random_checkpoint()
    RelationClassifier.from_published(save(checkpoint, tmp_path)).save_pretrained(tmp_path / "ours")
    maps, timestep = torch.rand(2, 2, 14, 6, 6), torch.tensor([1.0, 3.0])
    again = RelationClassifier.from_pretrained(tmp_path / "ours")
    torch.testing.assert_close(again(maps, timestep), logits_of(checkpoint, maps, timestep), rtol=0, atol=2e-6)


class Payload:
    def __reduce__(self):
        return (Path.touch, (Path("executed"),))


def test_refuses_unsafe_and_foreign_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"model_state_dict": Payload(), "config": {}}, "unsafe.pth")
    with pytest.raises(ValueError, match="cannot be read safely"):
        RelationClassifier.from_published("unsafe.pth")
    assert not Path("executed").exists()
    torch.save({"weights": torch.zeros(1)}, "other.pth")
    with pytest.raises(ValueError, match="not a published relation classifier"):
        RelationClassifier.from_published("other.pth")
    with pytest.raises(FileNotFoundError):
        RelationClassifier.from_published("absent.pth")
    save(random_checkpoint(), tmp_path).rename("short.pth")
    Path("short.pth").write_bytes(Path("short.pth").read_bytes()[:500])
    with pytest.raises(ValueError, match=r"short\.pth is damaged"):
        RelationClassifier.from_published("short.pth")
    Path("page.pth").write_text("<html>sign in to download</html>")
    with pytest.raises(ValueError, match=r"page\.pth"):
        RelationClassifier.from_published("page.pth")


def test_refuses_what_it_does_not_know(tmp_path: Path):
    with pytest.raises(ValueError, match="unknown timestep_embedding mode 'sideways'"):
        RelationClassifier.from_published(save(random_checkpoint("sideways"), tmp_path))
    checkpoint = random_checkpoint()
    checkpoint["config"]["classifier"]["fc_ver"] = "v9"
    with pytest.raises(ValueError, match="fc_ver='v9'"):
        RelationClassifier.from_published(save(checkpoint, tmp_path))
    checkpoint = random_checkpoint()
    del checkpoint["model_state_dict"]["object_extractor.query_vector"]
    with pytest.raises(ValueError, match="query_vector"):
        RelationClassifier.from_published(save(checkpoint, tmp_path))
    checkpoint = random_checkpoint()
    del checkpoint["config"]["extractor"]["nhead"]
    with pytest.raises(ValueError, match="nhead"):
        RelationClassifier.from_published(save(checkpoint, tmp_path))


def test_intervals():
    assert assign_by_intervals(4, [1, 3]) == [1, 1, 3, 3]
    steps = assign_by_intervals(50, [5, 10, 15, 20, 25, 49])
    assert steps[:6] == [5] * 6 and steps[6:11] == [10] * 5 and steps[26:] == [49] * 24
    assert assign_by_intervals(6, [3, 1]) == [1, 1, 3, 3, 3, 3]
    with pytest.raises(ValueError, match="trained"):
        assign_by_intervals(4, [])


def test_schedules():
    schnell, dev = published_schedule("some/where/flux_schnell.pth"), published_schedule("flux_dev")
    assert [dev.loss_target(step) for step in (0, 1, 2, 3, 24)] == [1e-5, 3e-5, 5e-5, 7e-5, 7e-5]
    assert [dev.relation_at(k, 3) for k in range(5)] == [0, 1, 2, 0, 1]
    assert (schnell.start_step, schnell.stop_step, dev.stop_step) == (0, 1, 25)
    assert (schnell.image_size_for(16), dev.image_size_for(32), PUBLISHED_SCHEDULES["sd2"].image_size_for(64)) == (
        256,
        512,
        512,
    )
    assert [PUBLISHED_SCHEDULES[name].step_size for name in ("flux_dev", "sd2", "sd14")] == [5.0, 5.0, 7.5]
    with pytest.raises(ValueError, match="flux_schnell_diagonals"):
        published_schedule("mine.pth")


@pytest.mark.parametrize(
    ("name", "parameters"), [("flux_schnell", 4_848_453), ("flux_dev", 4_860_965), ("sd2", 1_964_581)]
)
def test_published_sizes(name: str, parameters: int):
    """Counts of the released checkpoints."""
    classifier = RelationClassifier(published_classifier(name))
    assert sum(p.numel() for p in classifier.parameters()) == parameters
