"""The layer probe, layer subsets in training, noise-level conditioning across step counts, and the commands."""

import json
import math
from dataclasses import replace

import pytest
import torch
from diffusers import DDIMScheduler
from typer.testing import CliRunner

from attnsteer.cli import main
from attnsteer.steering.classifier import RelationClassifier
from attnsteer.steering.classifier_settings import EncoderSize
from attnsteer.steering.dataset import Manifest, MapDataset, ShardWriter, split_by_source
from attnsteer.steering.descent import LeanRule, PublishedRule
from attnsteer.steering.learned import LearnedSteering
from attnsteer.steering.noise import log_snr_of
from attnsteer.steering.probe import centre_differences, choose_layers
from attnsteer.steering.recording import Recording
from attnsteer.steering.train import TrainSettings, default_classifier, evaluate_classifier, train_classifier
from attnsteer.steering.train_presets import PRESETS, train_preset
from blobs import RELATIONS, STEP, blob_maps
from published_network import random_checkpoint

TOLD = [["up.late", 2, 5], ["down.blind", 2, 0], ["up.sees", 2, 4], ["down.sees", 2, 1]]
"""Four layers of two channels in channel order, with their places in the order of execution."""


def layered(count, seed=0):
    """Only "down.sees", and a little worse "up.sees", show the objects; "up.late" shows them through heavy noise."""
    batch = blob_maps(count, channels=8, noise=1.0, seed=seed)
    draw = torch.Generator().manual_seed(seed + 100)
    maps = batch.maps.float()
    maps[:, :, 2:4] = torch.rand(maps[:, :, 2:4].shape, generator=draw)
    maps[:, :, 0:2] += 4 * torch.rand(maps[:, :, 0:2].shape, generator=draw)
    return replace(batch, maps=maps.half())


def twin_layers():
    """Layer "up.sees" shows exactly what "down.sees" shows."""
    batch = layered(200, 3)
    maps = batch.maps.clone()
    maps[:, :, 4:6] = maps[:, :, 6:8]
    return replace(batch, maps=maps)


def written(folder, *batches, **changes):
    settings = {"channel_layers": TOLD, "steps": [4, 6, 8], "num_inference_steps": 20, "text_length": 77}
    manifest = Manifest("tiny", RELATIONS, 8, 8, settings=settings)
    writer = ShardWriter(folder, replace(manifest, **changes))
    for number, batch in enumerate(batches):
        writer.write(number, batch)
    return folder


@pytest.fixture(scope="module")
def maps(tmp_path_factory):
    return written(tmp_path_factory.mktemp("probe") / "maps", layered(500, 1))


def test_centres_are_the_means_of_the_maps():
    maps = torch.zeros(1, 2, 1, 4, 4)
    maps[0, 0, 0, 1, 3] = 2.0  # x = 3.5 / 4, y = 1.5 / 4
    maps[0, 1, 0, 2, 0], maps[0, 1, 0, 2, 1] = 0.5, 0.5  # x = 1 / 4, y = 2.5 / 4
    difference = centre_differences(maps)
    assert difference.shape == (1, 1, 4)
    assert difference[0, 0].tolist() == pytest.approx([0.625, -0.25] * 2)


def test_the_probe_finds_the_layers_that_see(maps):
    dataset = MapDataset([maps])
    choice = choose_layers(dataset, 2, split_by_source(dataset.source, 0.3))
    assert choice.order == ("down.sees", "up.sees") and choice.last == 0.75
    widths = {name: count for name, count, _ in dataset.manifest.settings["channel_layers"]}
    assert choice.channels == (widths["down.sees"], widths["down.sees"] + widths["up.sees"])
    assert choice.alone["down.blind"] < 0.45 and choice.alone["down.sees"] > 0.9 and choice.alone["up.late"] < 0.9
    assert choice.accuracy[0] == choice.alone["down.sees"] <= choice.accuracy[1] + 0.02
    one = choose_layers(dataset, 1, split_by_source(dataset.source, 0.3))
    assert one.layers == ("down.sees",) and one.last == 0.5  # the second of four
    every = choose_layers(dataset, 4, split_by_source(dataset.source, 0.3))
    assert every.layers == ("down.blind", "down.sees", "up.sees", "up.late") and every.last == 1.0
    assert every.accuracy[-1] == every.accuracy_of_all
    twins = MapDataset([written(maps.parent / "twins", twin_layers())])
    assert choose_layers(twins, 1, split_by_source(twins.source, 0.3)).layers == ("down.sees",)  # it runs first
    with pytest.raises(ValueError, match="1 to 4 layers, not 5"):
        choose_layers(dataset, 5, split_by_source(dataset.source, 0.3))


def test_the_regression_is_a_ridge_regression(maps):
    """Against the normal equations solved by hand in another way: least squares on an augmented matrix."""
    dataset = MapDataset([maps])
    train, held = split_by_source(dataset.source, 0.3)
    choice = choose_layers(dataset, 1, (train, held))
    columns = [6, 7]  # channels of "down.sees"
    x, z = (
        centre_differences(dataset.__getitems__(rows).maps)[:, columns].flatten(1).double() for rows in (train, held)
    )
    mean, deviation = x.mean(0), x.std(0)
    x, z = (x - mean) / deviation, (z - mean) / deviation
    y = torch.eye(4, dtype=torch.float64)[dataset.label[train]]
    rows = math.sqrt(1e-2 * len(train)) * torch.eye(8, dtype=torch.float64)
    weights = torch.linalg.lstsq(torch.cat([x, rows]), torch.cat([y - y.mean(0), torch.zeros(8, 4).double()])).solution
    right = (z @ weights + y.mean(0)).argmax(1) == dataset.label[held]
    assert choice.alone["down.sees"] == pytest.approx(float(right.double().mean()))


def quick(**changes):
    return TrainSettings(**{"epochs": 5, "learning_rate": 3e-3, "symmetries": ("swap",), "validation": 0.2, **changes})


def small(manifest, **changes):
    size = EncoderSize(width=32, layers=1, heads=2, feedforward=32)
    return replace(default_classifier(manifest), extractor=size, head=size, dropout=0.0, **changes)


def test_a_classifier_of_chosen_layers_carries_them(maps, tmp_path):
    subset = MapDataset([maps], ["up.sees", "down.sees"])
    assert subset.manifest.layers == ("up.sees", "down.sees") and subset.manifest.channels == 4
    assert torch.equal(subset[3].maps, MapDataset([maps])[3].maps[:, :, 4:])
    trained = train_classifier([maps], tmp_path / "out", classifier=small(subset.manifest), settings=quick())
    again = RelationClassifier.from_pretrained(tmp_path / "out")
    source = again.settings.source
    assert source.layers == ("up.sees", "down.sees") and again.settings.channels == 4
    assert (source.timesteps, source.num_steps, source.text_length) == ((4, 6, 8), 20, 77)
    assert trained.metrics["accuracy"] > 0.9
    assert evaluate_classifier(again, [maps])["accuracy"] > 0.9  # cuts the maps of all layers to its own
    method = LearnedSteering.from_classifier(again)
    assert method.recording == Recording(("up.sees", "down.sees"), 8, text_length=77)
    assert (method.start, method.end) == (0.2, 0.45)


def dependent(levels, count, seed):
    """Where the truth is written depends on the noise: in channel 0 of noisy maps, mirrored there in clean ones."""
    batch = blob_maps(count, channels=2, noise=0.1, seed=seed)
    draw = torch.Generator().manual_seed(seed)
    level = levels[torch.randint(len(levels), (count,), generator=draw)]
    maps = batch.maps.clone()
    clean = level > 0
    maps[clean] = maps[clean].flip(1)  # the objects change places
    return replace(batch, maps=maps, log_snr=level, timestep=torch.zeros(count, dtype=torch.int64))


def levels_of(steps, first, last):
    """Log-SNR of the steps of a fraction of a DDIM run."""
    scheduler = DDIMScheduler(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
    scheduler.set_timesteps(steps)
    chosen = scheduler.timesteps[int(first * steps) : int(last * steps)]
    return torch.tensor([log_snr_of(scheduler, float(t)) for t in chosen])


def test_a_classifier_of_twenty_steps_serves_at_twelve(tmp_path):
    """Conditioned on the noise level itself, it judges at levels that it has never met."""
    twenty, twelve = levels_of(20, 0.2, 0.9), levels_of(12, 0.25, 0.9)
    assert not set(twenty.tolist()) & set(twelve.tolist())
    assert min(float((twelve > 0).double().mean()), float((twelve < 0).double().mean())) > 0.2
    manifest = {"channels": 2, "settings": {}}
    seen = written(tmp_path / "twenty", dependent(twenty, 900, 1), **manifest)
    unseen = written(tmp_path / "twelve", dependent(twelve, 200, 2), **manifest)
    architecture = small(MapDataset([seen]).manifest)
    trained = train_classifier([seen], tmp_path / "out", classifier=architecture, settings=quick(epochs=12))
    assert evaluate_classifier(trained, [unseen])["accuracy"] > 0.9
    blind = train_classifier(
        [seen], tmp_path / "blind", classifier=replace(architecture, placement="none", head_timestep_width=0),
        settings=quick(epochs=2),
    )  # fmt: skip
    assert evaluate_classifier(blind, [unseen])["accuracy"] < 0.75  # the level is needed


def test_held_out_folders_replace_the_share(maps, tmp_path):
    other = written(tmp_path / "held", layered(60, 7))
    settings = quick(epochs=1, held_out=(str(other),))
    trained = train_classifier(
        [maps], tmp_path / "out", classifier=small(MapDataset([maps]).manifest), settings=settings
    )
    assert trained.metrics["samples"] == 60


def test_presets_fit_the_maps(maps):
    manifest = MapDataset([maps]).manifest
    for name in (*PRESETS, None):
        classifier, settings = train_preset(name, manifest)
        assert classifier.relations == RELATIONS and (classifier.channels, classifier.map_size) == (8, 8)
        assert classifier.source.num_steps == 20 and settings.epochs > 0
    published, training = train_preset("flux-schnell", manifest)
    assert (published.conditioning, published.num_timesteps, published.extractor.layers) == ("index", 20, 4)
    assert (training.learning_rate, training.epochs, training.symmetries) == (5e-5, 200, ())
    assert train_preset("shapes", manifest)[0].antisymmetric
    with pytest.raises(ValueError, match="preset must be one of sd14"):
        train_preset("sd9", manifest)


def run(*line):
    return CliRunner().invoke(main, [str(part) for part in line])


def test_the_train_command(maps, tmp_path, monkeypatch):
    line = ["train", maps, "-o", tmp_path / "out", "--select-layers", 1, "--epochs", 2, "--learning-rate", 1e-3]
    result = run(*line, "--test", maps, "--json")
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert told["layers"]["layers"] == ["down.sees"] and told["metrics"]["samples"] == 500
    assert told["metrics"]["leakage"]["passed"] in (True, False)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["source"]["layers"] == ["down.sees"] and config["channels"] == 2
    assert "down.sees" in (tmp_path / "out" / "README.md").read_text()
    assert json.loads((tmp_path / "out" / "metrics.json").read_text())["samples"] == 500
    pushed = []
    monkeypatch.setattr(
        RelationClassifier, "push_to_hub", lambda self, name, *, private: pushed.append((name, private)) or "address"
    )
    again = run(*line, "--push", "me/relations", "--private")
    assert again.exit_code == 0 and pushed == [("me/relations", True)]
    assert again.stdout.strip() == str(tmp_path / "out")
    for change, message in (
        (["--preset", "sd9"], "preset must be one of"),
        (["--symmetries", "spin"], "choose from swap"),
        (["--conditioning", "colour"], "conditioning must be one of index, log_snr"),
    ):
        failed = run("train", maps, "-o", tmp_path / "other", *change)
        assert failed.exit_code == 1 and message in failed.stderr
    assert "collect maps into it first" in run("train", tmp_path / "none", "-o", tmp_path / "other").stderr
    late = run("train", maps, "-o", tmp_path / "other", "--test", tmp_path / "none")
    assert "collect maps into it first" in late.stderr and "epoch 1" not in late.stderr  # ahead of training
    (tmp_path / "file").touch()
    for output in (tmp_path / "file", tmp_path / "file" / "inside"):
        refused = run("train", maps, "-o", output)
        assert refused.exit_code == 1 and f"cannot write into the folder {output}" in refused.stderr
        assert "epoch 1" not in refused.stderr


def test_the_convert_command(tmp_path):
    checkpoint = random_checkpoint()
    torch.save(checkpoint, tmp_path / "flux_schnell.pth")
    result = run("convert-classifier", tmp_path / "flux_schnell.pth", "-o", tmp_path / "out", "--json")
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert (told["model"], told["text_length"]) == ("black-forest-labs/FLUX.1-schnell", 512)
    ours = RelationClassifier.from_pretrained(tmp_path / "out")
    stock = RelationClassifier.from_published(tmp_path / "flux_schnell.pth")
    side = ours.settings.map_size
    maps = torch.rand(2, 2, 14, side, side, generator=torch.Generator().manual_seed(0))
    assert torch.equal(ours(maps, 1.0), stock(maps, 1.0))
    assert ours.settings.source.text_length == 512 and not ours.settings.source.normalise
    # the published pictures of four steps are steered ahead of the first one, though maps of the next one were learned
    method, published = LearnedSteering.from_pretrained(tmp_path / "out"), tmp_path / "flux_schnell.pth"
    assert (method.start, method.end) == (0.0, 0.25) and isinstance(method.rule, LeanRule)
    official = LearnedSteering.from_published(published)
    assert (official.start, official.end) == (0.0, 0.25) and isinstance(official.rule, PublishedRule)
    (tmp_path / "flux_schnell.pth").rename(tmp_path / "mine.pth")
    for line, message in (
        ([tmp_path / "mine.pth"], "say which it is with --schedule"),
        ([tmp_path / "mine.pth", "--schedule", "sd2"], "pass --overwrite"),
        ([tmp_path / "absent.pth"], "there is no file"),
    ):
        refused = run("convert-classifier", *line, "-o", tmp_path / "out")
        assert refused.exit_code == 2 and message in refused.stderr
    done = run("convert-classifier", tmp_path / "mine.pth", "--schedule", "sd2", "-o", tmp_path / "out", "--overwrite")
    assert done.exit_code == 0 and RelationClassifier.from_pretrained(tmp_path / "out").settings.source.normalise
    method = LearnedSteering.from_pretrained(tmp_path / "out")
    assert (method.start, method.end) == (0.0, 0.5)
    (tmp_path / "file").touch()
    for output in (tmp_path / "file", tmp_path / "file" / "inside"):
        refused = run("convert-classifier", tmp_path / "mine.pth", "--schedule", "sd2", "-o", output)
        assert refused.exit_code and str(tmp_path / "file") in refused.stderr


def test_directions_of_the_fixture():
    """The blobs stand as their labels say: the probe's features have the sign of the direction."""
    batch = blob_maps(200, noise=0.0, seed=5)
    difference = centre_differences(batch.maps)[:, 0, :2]
    step = torch.tensor(STEP, dtype=torch.float32)[batch.label]
    assert bool(((difference * step).sum(1) > 0).all())
