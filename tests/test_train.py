import json
import logging
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from attnsteer.steering.classifier import RelationClassifier
from attnsteer.steering.classifier_settings import ClassifierSettings, EncoderSize
from attnsteer.steering.dataset import MapDataset, read_manifest
from attnsteer.steering.train import (
    PUBLISHED_TRAINING,
    EpochReport,
    TrainSettings,
    default_classifier,
    evaluate_classifier,
    train_classifier,
)
from blobs import blob_maps, write_blobs

QUICK = TrainSettings(epochs=6, learning_rate=2e-3, validation=0.25, symmetries=("swap", "mirror", "upend"))
SIZE = EncoderSize(width=32, layers=1, heads=2, feedforward=32)


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def small(folder: Path, **changes) -> ClassifierSettings:
    return replace(default_classifier(read_manifest(folder)), extractor=SIZE, head=SIZE, dropout=0.1, **changes)


@pytest.mark.parametrize("conditioning", ["log_snr", "index"])
def test_learns_relations_from_blobs(tmp_path: Path, conditioning: str):
    maps = write_blobs(tmp_path / "maps", blob_maps(500, seed=1), blob_maps(300, seed=2))
    reports: list[EpochReport] = []
    trained = train_classifier(
        [maps], tmp_path / "out", classifier=small(maps, conditioning=conditioning, antisymmetric=True),
        settings=QUICK, on_epoch=reports.append,
    )  # fmt: skip
    assert not trained.training and [r.epoch for r in reports] == list(range(1, len(reports) + 1))
    metrics = json.loads((tmp_path / "out" / "metrics.json").read_text())
    assert metrics == trained.metrics and metrics["accuracy"] > 0.97
    assert set(metrics["accuracy_by_timestep"]) == {"0", "1", "2"} and metrics["leakage"]["passed"] is True
    assert metrics["loss"] == pytest.approx(min(r.validation_loss for r in reports), rel=1e-6)
    unseen = write_blobs(tmp_path / "unseen", blob_maps(400, seed=3))
    again = RelationClassifier.from_pretrained(tmp_path / "out")
    assert again.metrics == metrics
    assert evaluate_classifier(again, [unseen])["accuracy"] > 0.97
    card = (tmp_path / "out" / "README.md").read_text()
    assert "base_model" not in card and "passed" in card and "| to the left of |" in card


def leaky(count: int, seed: int = 0):
    """Positions drowned in noise, the prompt's word, mostly right, written into a channel: no dual prompts."""
    return blob_maps(count, leak=8.0, noise=8.0, wrong_share=0.2, seed=seed)


def test_the_leakage_report_catches_a_leak(tmp_path: Path):
    maps = write_blobs(tmp_path / "maps", leaky(1000))
    trained = train_classifier(
        [maps], tmp_path / "out", classifier=small(maps), settings=replace(QUICK, epochs=10, symmetries=())
    )
    leakage = trained.metrics["leakage"]
    assert leakage["passed"] is False and leakage["gap"] > 0.3 and leakage["follows_word"] > 0.4
    assert "FAILED" in (tmp_path / "out" / "README.md").read_text()


def test_an_interrupted_run_ends_with_the_same_weights(tmp_path: Path):
    maps = write_blobs(tmp_path / "maps", blob_maps(200, noise=3.0))
    settings, architecture = replace(QUICK, epochs=4), small(maps)
    whole = train_classifier([maps], tmp_path / "whole", classifier=architecture, settings=settings)

    def interrupt(report: EpochReport) -> None:
        if report.epoch == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_classifier([maps], tmp_path / "parts", classifier=architecture, settings=settings, on_epoch=interrupt)
    later: list[EpochReport] = []
    parts = train_classifier(
        [maps], tmp_path / "parts", classifier=architecture, settings=settings, on_epoch=later.append
    )
    assert [r.epoch for r in later] == [3, 4]
    for (name, one), two in zip(whole.state_dict().items(), parts.state_dict().values(), strict=True):
        assert torch.equal(one, two), name
    assert whole.metrics == parts.metrics
    finished = train_classifier([maps], tmp_path / "parts", classifier=architecture, settings=settings)
    assert finished.metrics == whole.metrics
    with pytest.raises(ValueError, match="other settings or maps"):
        train_classifier([maps], tmp_path / "parts", classifier=architecture, settings=replace(settings, seed=1))


def test_stops_early_and_keeps_the_best_weights(tmp_path: Path):
    noise_only = blob_maps(120, noise=1.0)
    noise_only = replace(noise_only, maps=torch.rand(noise_only.maps.shape).half())
    maps = write_blobs(tmp_path / "maps", noise_only)
    reports: list[EpochReport] = []
    trained = train_classifier(
        [maps], tmp_path / "out", classifier=small(maps), on_epoch=reports.append,
        settings=replace(QUICK, epochs=60, stop_patience=2, plateau_patience=0, learning_rate=1e-2),
    )  # fmt: skip
    best = min(range(len(reports)), key=lambda i: reports[i].validation_loss)
    assert len(reports) == best + 3 < 60 and trained.metrics["best_epoch"] == best + 1
    assert trained.metrics["loss"] == pytest.approx(reports[best].validation_loss)
    assert trained.metrics["loss"] < reports[-1].validation_loss
    assert reports[-1].learning_rate < reports[0].learning_rate


def test_leaves_global_state_alone(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    maps = write_blobs(tmp_path / "maps", blob_maps(80))
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    with caplog.at_level(logging.INFO, logger="attnsteer"):
        train_classifier([maps], tmp_path / "out", classifier=small(maps), settings=replace(QUICK, epochs=1))
    assert torch.equal(torch.rand(1), expected)
    assert "validation_accuracy" in caplog.text


def test_scale_of_the_maps_is_measured(tmp_path: Path):
    maps = write_blobs(tmp_path / "maps", blob_maps(80))
    trained = train_classifier([maps], tmp_path / "out", classifier=small(maps), settings=replace(QUICK, epochs=1))
    stack = MapDataset([maps]).__getitems__(list(range(80))).maps.double()
    for channel in range(6):
        assert trained.map_mean[channel].item() == pytest.approx(stack[:, :, channel].mean().item(), rel=0.1)
        assert trained.map_std[channel].item() == pytest.approx(stack[:, :, channel].std().item(), rel=0.1)


def test_errors(tmp_path: Path):
    maps = write_blobs(tmp_path / "maps", blob_maps(40))
    for changes, message in (
        ({"channels": 5}, "reads 5 map channels, the maps have 6"),
        ({"map_size": 16}, "map_size is 16, the maps have 8"),
        ({"relations": ("above", "below")}, "relations"),
    ):
        with pytest.raises(ValueError, match=message):
            train_classifier([maps], tmp_path / "out", classifier=replace(small(maps), **changes))
    for changes, message in (
        ({"epochs": 0}, "epochs must be >= 1"),
        ({"symmetries": ("rotate",)}, "choose from swap"),
        ({"learning_rate": 0.0}, "learning_rate must be > 0"),
        ({"validation": 1.0}, r"validation must be in \(0, 1\)"),
    ):
        with pytest.raises(ValueError, match=message):
            replace(QUICK, **changes)


def test_spoilt_maps_are_not_trained_on(tmp_path: Path):
    maps = write_blobs(tmp_path / "maps", blob_maps(40))
    (shard,) = maps.glob("*.safetensors")
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 1
    shard.write_bytes(content)
    with pytest.raises(ValueError, match="is damaged"):
        train_classifier([maps], tmp_path / "out", classifier=small(maps))


def test_published_settings():
    rates = {name: (row.epochs, row.learning_rate, row.weight_decay) for name, row in PUBLISHED_TRAINING.items()}
    assert rates == {
        "flux_schnell": (200, 5e-5, 0.05),
        "flux_dev": (200, 5e-5, 0.05),
        "sd2": (100, 1e-4, 0.05),
        "sd14": (150, 1e-4, 0.05),
    }
