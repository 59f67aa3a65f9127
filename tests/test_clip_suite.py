"""Negative prompts on clips: prompts, the verdict on whole clips, what is refused, and the claim end to end."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from attnsteer.cli import main
from attnsteer.compare import find_model
from attnsteer.evaluate.detectors.shapes_clips import ShapesClipExaminer
from attnsteer.evaluate.gallery import gallery_sheets
from attnsteer.evaluate.painted import Painted
from attnsteer.evaluate.prompts.shapes_clips import KINDS, shapes_clip_negatives
from attnsteer.evaluate.settings import GALLERY, Evaluation
from attnsteer.jobs import Job, Record, run_job
from attnsteer.world import clip_measure, publish
from attnsteer.world.cards import CARDS
from attnsteer.world.claims import __main__ as command
from attnsteer.world.claims.clips import wanted_clips
from attnsteer.world.claims.roster import world_models
from attnsteer.world.claims.scope import Scope, Size
from attnsteer.world.claims.transfer import plan
from attnsteer.world.clips import DIRECTIONS, FRAMES, Actor, Clip, render_clips
from attnsteer.world.scene import ATTRIBUTES, COLOURS, Shape
from attnsteer.world.video import VideoRecipe, VideoSize

pytestmark = pytest.mark.filterwarnings("ignore:There are modules", "ignore:Mismatch dtype")
RED = Shape("circle", "red", 0.3, 0.5, 0.14)


def shown(clip: Clip, scale: int = 4) -> tuple[Image.Image, ...]:
    """The frames as the pipeline gives them: blocks of `scale` x `scale` pixels, 8 bits."""
    video = render_clips([clip], FRAMES, 24)[0].repeat_interleave(scale, -1).repeat_interleave(scale, -2)
    values = (video * 255).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
    return tuple(Image.fromarray(frame) for frame in values)


def test_prompts_leave_open_what_is_unwanted_and_name_the_rest():
    tasks = shapes_clip_negatives(8, seed=3)
    assert [task.kind for task in tasks] == [kind for kind in KINDS for _ in range(8)]
    assert {task.negative for task in tasks} == {*COLOURS, *ATTRIBUTES, "flickering", "moving"}
    for task in tasks:
        words = task.prompt.split()
        assert task.negative not in words
        named = (
            {word for word in words if word in COLOURS},
            {word for word in words if word in (*DIRECTIONS, "static")},
        )
        assert (not named[0]) == (task.kind == "colour") and (not named[1]) == (task.kind == "moving")
        assert {task.asked["colour"]} - {None} == named[0]
        assert {str(task.asked["motion"]).removeprefix("moving ")} - {"None"} == named[1]
        assert task.asked["subject"] in words and task.asked["unwanted"] == task.negative
    assert shapes_clip_negatives(8, seed=3) == tasks != shapes_clip_negatives(8, seed=4)


MOVING = (Actor(RED, "right", 0.04),)
CASES = [
    (MOVING, {"colour": "red", "motion": "moving right", "unwanted": "flickering"}, True, True),
    ((Actor(RED, "right", 0.04, hidden=0),), {"motion": "moving right", "unwanted": "flickering"}, True, False),
    (MOVING, {"colour": "red", "motion": "moving left", "unwanted": "outline"}, False, True),
    (MOVING, {"motion": "static", "unwanted": "red"}, False, False),
    (MOVING, {"colour": "blue", "motion": None, "unwanted": "moving"}, False, False),
    ((Actor(replace(RED, attribute="outline")),), {"colour": "red", "unwanted": "outline"}, True, False),
    ((Actor(replace(RED, shape="square")),), {"unwanted": "moving"}, False, True),
    ((*MOVING, Actor(Shape("square", "blue", 0.7, 0.15, 0.13))), {"motion": "moving right", "unwanted": "blue"}, True,
     False),
    ((), {"unwanted": "red"}, False, True),
]  # fmt: skip


@pytest.mark.parametrize(("clip", "asked", "kept", "absent"), CASES)
def test_a_clip_is_judged_as_a_whole(clip, asked, kept, absent):
    answers = ShapesClipExaminer().examine_clip(shown(clip), "", {"subject": "circle", **asked})
    assert (answers.kept, answers.absent) == (kept, absent)
    assert answers.quality == (0 if not clip else pytest.approx(4 / 9) if clip[0].flickering else 1)


def test_one_frame_or_frames_of_several_sizes_are_no_clip():
    examine = ShapesClipExaminer().examine_clip
    frames = shown(MOVING)
    with pytest.raises(ValueError, match="frames >= 2"):
        examine(frames[:1], "", {"subject": "circle", "unwanted": "red"})
    with pytest.raises(ValueError, match="one size"):
        examine([frames[0], frames[1].resize((48, 48))], "", {"subject": "circle", "unwanted": "red"})


def test_the_clip_detector_judges_negative_prompts_on_clips_only(tmp_path: Path):
    with pytest.raises(ValueError, match="judges clips of"):
        Evaluation("shapes-position", detector="shapes-clips")
    assert Evaluation("shapes-negatives", methods="none,nag", detector="shapes-clips").detector == "shapes-clips"
    words = ["evaluate", "shapes-clip-negatives", "--methods", "none,nag", "--count", "1", "--steps", "2", "-q"]
    result = CliRunner().invoke(main, [*words, "-o", str(tmp_path / "run")])
    assert result.exit_code and "shapes-unet draws pictures" in result.stderr


def test_wanted_clips_show_what_was_asked_for_and_nothing_unwanted():
    tasks = shapes_clip_negatives(4)
    clips = wanted_clips([{"item": {"asked": task.asked}} for task in tasks], each=3)
    for number, clip in enumerate(clips):
        asked, (actor,) = tasks[number // 3].asked, clip
        words = {actor.shape.colour, actor.shape.attribute, "flickering" if actor.flickering else ""}
        words.add("moving" if actor.direction else "static")
        assert actor.shape.shape == asked["subject"] and asked["unwanted"] not in words
        assert asked["colour"] in (None, actor.shape.colour)
        assert asked["motion"] in (None, f"moving {actor.direction}" if actor.direction else "static")


def test_a_gallery_of_clips_has_a_strip_for_each_method(tmp_path: Path):
    def make():
        def records(items):
            for item in items:
                painted = [Painted(shown(clip, 1), item["seed"], 1.0, 1, 1.0, 1) for clip in (MOVING, CASES[1][0])]
                methods = {name: one.result() for name, one in zip(("none", "nag"), painted, strict=True)}
                files = dict(one.file(name) for name, one in zip(methods, painted, strict=True))
                yield Record(item["id"], {"item": item, "methods": methods}, files)

        return records

    items = [{"id": "a", "prompt": "a circle", "seed": 5}]
    settings = {"methods": "none,nag", "sweep": [], "model": "shapes-video", "negative": "flickering"}
    run_job(Job(GALLERY, items, make, settings), tmp_path, progress=False)
    sheet = np.asarray(gallery_sheets(tmp_path)["a circle"].convert("RGB"), dtype=int)
    red = (sheet[..., 0] - sheet[..., 1] > 150) & (sheet[..., 0] - sheet[..., 2] > 150)
    rows = np.flatnonzero(red.any(1))
    upper, lower = np.split(rows, [int(np.diff(rows).argmax()) + 1])
    circles = [int((np.diff(red[part].any(0).astype(int)) == 1).sum()) for part in (upper, lower)]
    assert circles == [9, 4]  # one circle in each frame, or in every other one


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    """A training run of a tiny video model, which draws a calm background and nothing on it."""
    folder = tmp_path_factory.mktemp("run")
    torch.manual_seed(0)
    pipe = VideoRecipe(VideoSize(picture=16, frames=5, heads=1, head_dim=24, blocks=1)).pipeline
    with torch.no_grad():
        pipe.transformer.proj_out.weight.mul_(0.02)
        pipe.transformer.proj_out.bias.fill_(0.86)
    pipe.save_pretrained(folder / "model")
    (folder / "log.jsonl").write_text("{}\n")
    return folder


@pytest.fixture(scope="module")
def model(run: Path) -> Path:
    """Its model, with a card like that of the embedded one."""
    defaults = {**CARDS["shapes-video"].defaults, "steps": 1, "width": 64, "height": 64, "frames": 5}
    (run / "model" / "attnsteer.json").write_text(json.dumps({"defaults": defaults}))
    return run / "model"


def test_a_run_is_published_with_the_figures_of_its_measurement(run, model, tmp_path: Path, capsys):
    figures, size = tmp_path / "figures.json", ["--size", "16", "--frames", "5"]
    clip_measure.main(["--model", str(model), "--count", "2", *size, "--unwanted", "red", "--output", str(figures)])
    there = {row["name"]: row for row in json.loads(figures.read_text()) if row["of"]}
    assert {"two objects: both right", "NAG: red shows", "NAG: consistency"} <= set(there)
    (model / "attnsteer.json").rename(tmp_path / "card")
    publish.main(["--run", str(run), "--name", "shapes-video", "--into", str(tmp_path)])
    (tmp_path / "card").rename(model / "attnsteer.json")
    folder = tmp_path / "shapes-video"
    assert json.loads((folder / "attnsteer.json").read_text())["figures"] == {}
    assert "Not measured yet" in (folder / "README.md").read_text()
    publish.main(["--name", "shapes-video", "--figures", str(figures), "--into", str(tmp_path)])
    card, text = json.loads((folder / "attnsteer.json").read_text()), (folder / "README.md").read_text()
    assert card["defaults"] | {"nag_scale": 0} == {
        "steps": 12, "guidance_scale": 2.0, "width": 96, "height": 96, "frames": 9, "nag_scale": 0,
        "extra": {"max_sequence_length": 32},
    }  # fmt: skip
    assert set(card["figures"]) == set(there)
    assert "| NAG: red shows | 0.0% | 0.0% to 65.8% | 0 of 2 |" in text  # Wilson's interval of none of two
    assert "| NAG: consistency | 0.000 | 0.000 to 0.000 | 2 |" in text
    assert "text-to-video" in text and "python -m attnsteer.world.clip_measure" in text
    assert capsys.readouterr().out.count(str(folder)) == 2
    with pytest.raises(SystemExit):
        publish.main(["--name", "shapes-video", "--into", str(tmp_path / "elsewhere")])


def test_the_claim_judges_whole_clips_and_goes_on_where_it_stopped(model, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("attnsteer.world.distances.RESAMPLES", 4)
    monkeypatch.setattr(command, "QUICK", Size("quick", few=1, clips=1, points=3, batch=4))
    call = ["--quick", "--claims", "video", "--models", str(model), "--work", str(tmp_path / "runs"), "--workers", "1"]
    call += ["--output", str(tmp_path / "out")]
    assert command.main(call) == 0
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    claim = next(claim for claim in results["claims"] if claim["name"] == "video")
    steady = {row["row"]: row["of"] for row in claim["figures"] if row["name"] == "object consistency"}
    assert steady == {"Off": 4, "CFG, scale 2": 4, "NAG, scale 5": 4}
    assert {f"unwanted absent: {kind}" for kind in KINDS} <= {figure["name"] for figure in claim["figures"]}
    assert len(claim["findings"]) == 4
    page = (tmp_path / "out" / "report.html").read_text()
    assert page.count('<div class="strips">') == 4 and page.count("<svg") == 2
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("*.tar")}
    assert written and command.main(call) == 0
    assert {path: path.stat().st_mtime_ns for path in written} == written
    capsys.readouterr()


def test_the_same_settings_are_tried_once_where_the_preset_is_the_common_one(model, tmp_path):
    scope = Scope(Size("quick", few=1, clips=1), world_models([str(model)]), tmp_path)
    (task,) = plan(scope)
    assert task.evaluation.suite == "shapes-clip-negatives"
    assert set(task.evaluation.sweep) == {"nag.scale=5", "nag.tau=2.5", "nag.alpha=0.25"}


def test_steering_without_a_classifier_says_what_to_do(model, tmp_path):
    prompt = "a red circle to the left of a blue square"
    result = CliRunner().invoke(main, ["generate", prompt, "--steer", "--model", str(model)])
    assert result.exit_code == 2 and "has no relation classifier; pass one with --classifier" in result.stderr
    result = CliRunner().invoke(
        main, ["evaluate", "shapes-position", "--model", str(model), "-o", str(tmp_path / "run")]
    )
    assert result.exit_code and "--methods that do not steer" in result.stderr
    result = CliRunner().invoke(main, ["collect", "shapes", "--model", str(model), "-o", str(tmp_path / "maps"), "-q"])
    assert result.exit_code and "draws clips" in result.stderr
    assert find_model(str(model)).classifier is None
