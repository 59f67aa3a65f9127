"""The ablation on a tiny random model: its mechanics, not its figures."""

import io
from random import Random

import pytest
import torch
from PIL import Image

from attnsteer.evaluate.detectors.shapes import ShapesDetector
from attnsteer.evaluate.metrics import frechet_distance
from attnsteer.evaluate.suites import find_suite
from attnsteer.jobs import read_records, run_job
from attnsteer.steering.descent import LeanRule
from attnsteer.steering.learned import LearnedSteering
from attnsteer.world import ablate, chains
from attnsteer.world.ablate import Ablation, redrawn
from attnsteer.world.ablation_table import _share
from attnsteer.world.distances import RelativeDistances
from attnsteer.world.features import RandomFeatures
from attnsteer.world.render import render
from attnsteer.world.scene import Shape, random_scene
from attnsteer.world.variants import VARIANTS
from steered import Spy, save_classifier
from tiny import build


def test_unknown_variants_and_odd_counts_are_errors():
    with pytest.raises(ValueError, match="unknown variants"):
        Ablation("m", "c", ("lean", "magic"))
    with pytest.raises(ValueError, match="multiple of batch"):
        Ablation("m", "c", count=10, batch=4)


def test_every_variant_changes_the_default_method():
    rule = LeanRule(iterations=6, step_size=0.03, backtracking=False)  # as our classifier advises
    default = LearnedSteering(Spy(), rule=rule)
    changed = {name: variant.change(default) for name, variant in VARIANTS.items() if variant.change is not None}
    assert changed.pop("lean") == default
    assert all(method != default for method in changed.values())
    assert len({repr(method) for method in changed.values()}) == len(changed)


def test_features_tell_quality_from_place():
    """Smeared pictures are far away, pictures with the shapes elsewhere are not."""
    generator = torch.Generator().manual_seed(1)

    def scenes(count):
        places = (0.25 + 0.5 * torch.rand(count, 2, generator=generator)).tolist()
        return render([(Shape("circle", "red", x, y, 0.14),) for x, y in places], 32)

    features, here = RandomFeatures(), scenes(40)
    smeared = torch.nn.functional.avg_pool2d(scenes(40), 5, stride=1, padding=2, count_include_pad=False)
    near = frechet_distance(features.of_pixels(here), features.of_pixels(scenes(40)))
    assert frechet_distance(features.of_pixels(here), features.of_pixels(smeared)) > 5 * near


def test_shares_come_with_their_interval():
    assert _share([True] * 9 + [False]) == "90 % [60, 98]" and _share([]) == "-"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder, pipe = tmp_path_factory.mktemp("model"), build("sd")
    pipe.save_pretrained(folder)
    save_classifier(pipe, folder / "steering")
    return folder


def test_the_command_prints_a_row_for_each_variant_and_resumes(model, tmp_path, monkeypatch, capsys):
    for module in (ablate, chains):
        monkeypatch.setattr(module, "KINDS", ("2 objects, 1 relation",))
    call = ["--model", str(model), "--work", str(tmp_path), "--count", "2", "--batch", "2", "--steps", "2"]
    ablate.main([*call, "--variants", "lean", "verify"])
    lines = capsys.readouterr().out.splitlines()
    assert [line[:40].strip() for line in lines[1:]] == ["not steered", "lean", "verified first (classifier)"]
    assert "x1.00 [1.00, 1.00]" in lines[1] and lines[1].count("x1.00") == 4
    written = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.tar")}
    assert len(written) == 3
    ablate.main([*call, "--variants", "best-of-2"])
    assert {path: path.stat().st_mtime_ns for path in written} == written
    assert len(list(tmp_path.rglob("*.tar"))) == 4


def test_examples_are_the_first_pictures_of_the_run(model, tmp_path):
    ablation = Ablation(str(model), str(model / "steering"), ("best-of-2",), count=2, batch=2, steps=1)
    run_job(ablation.examples(2), tmp_path / "examples", progress=False)
    features = RandomFeatures()
    for example in read_records(tmp_path / "examples", files=True):
        run_job(ablation.jobs()[example.key], tmp_path / example.key, progress=False)
        run = list(read_records(tmp_path / example.key, files=True))
        expected = torch.tensor([], dtype=torch.float32)
        for record in run:
            rows = torch.frombuffer(bytearray(record.files["features.bin"]), dtype=torch.float32)
            expected = torch.cat([expected, rows])
        pictures = [Image.open(io.BytesIO(example.files[name])) for name in sorted(example.files)]
        torch.testing.assert_close(features(pictures).flatten(), expected, atol=1e-3, rtol=1e-3)
        assert example.data["right"] == [right for record in run for right in record.data["right"]]
        assert len(pictures) == len(example.data["prompts"]) == 2 * len(chains.KINDS)


def test_prompts_are_compared_with_renderings_that_obey_them():
    tasks = chains.chains(3)
    assert list(tasks) == list(chains.KINDS)
    assert all(chains.chains(2)[kind] == own[:2] for kind, own in tasks.items())
    for task in tasks["4 objects, 3 relations"]:
        pixels = render([chains.obeying_scene(Random(1), task)], 32)[0].permute(1, 2, 0)
        found = ShapesDetector()([Image.fromarray((255 * pixels).byte().numpy())], [task.labels])[0]
        assert find_suite(chains.SUITE).judge(task, found, (32, 32)).correct


def test_a_picture_is_compared_with_its_own_layout_drawn_well():
    random = Random("layouts")
    scenes = [random_scene(random, 2) for _ in range(24)]
    sharp = render(scenes, 32)
    smeared = torch.nn.functional.avg_pool2d(sharp, 3, 1, 1)
    features = RandomFeatures()

    def compared(pixels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        pictures = [Image.fromarray((one * 255).round().byte().permute(1, 2, 0).numpy()) for one in pixels]
        return features(pictures), features.of_pixels(redrawn(pictures))

    (clean, clean_redrawn), (soft, soft_redrawn) = compared(sharp), compared(smeared)
    looks = RelativeDistances({"": soft}, {"": soft_redrawn}, paired=True)
    assert looks.of({"": soft}, {"": soft_redrawn}).value == 1.0
    assert looks.of({"": clean}, {"": clean_redrawn}).value < 0.1
    # other layouts of the same look are no loss of quality, though they are another distance to fixed scenes
    moved = render([random_scene(random, 2) for _ in range(24)], 32)
    assert looks.of({"": compared(moved)[0]}, {"": compared(moved)[1]}).value < 0.1
