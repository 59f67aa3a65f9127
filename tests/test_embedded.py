"""The embedded model as users meet it: a stock folder that loads without attnsteer, draws, and can be steered."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from attnsteer import NAG, LearnedSteering, guide, parse_relations
from attnsteer.compare.models import KEYWORDS, find_model
from attnsteer.world.clip_detect import detect_clips
from attnsteer.world.clip_measure import Sampling, draw_clips, load_video_pipeline
from attnsteer.world.demo import EXAMPLES
from attnsteer.world.detect import detect
from attnsteer.world.measure import base_figures, find_pair, load_pipeline, negative_figures, pairs, pictures
from attnsteer.world.models import (
    FEW_STEP_MODEL,
    VIDEO_MODEL,
    WEIGHTS,
    embedded_models,
    model_folder,
    steering_folder,
)
from attnsteer.world.publish import publish, write_card
from attnsteer.world.scene import relations_between


@pytest.fixture(scope="module")
def pipe():
    return load_pipeline("shapes-unet")


def test_the_default_model_is_listed_first_and_unknown_names_are_errors():
    assert embedded_models()[0] == "shapes-unet"
    with pytest.raises(ValueError, match="shapes-unet"):
        model_folder("no-such-model")


@pytest.mark.parametrize("name", embedded_models())
def test_weights_are_small_float16_safetensors(name):
    files = list(model_folder(name).rglob("*.safetensors"))
    assert sum(file.stat().st_size for file in files) <= 8_000_000
    assert sum(file.stat().st_size for file in WEIGHTS.rglob("*.safetensors")) <= 30_000_000
    assert not [file for file in model_folder(name).rglob("*") if file.suffix in (".bin", ".pt", ".pth", ".ckpt")]


def test_every_folder_loads_and_draws_without_attnsteer(tmp_path: Path):
    calls = {}
    for name in embedded_models():
        own = find_model(name).defaults
        given = {KEYWORDS[setting]: own[setting] for setting in KEYWORDS if setting in own}
        calls[str(model_folder(name))] = {**given, **own.get("extra", {}), "num_inference_steps": 1}
    code = (
        "import json, sys\n"
        "from diffusers import DiffusionPipeline\n"
        "for folder, call in json.loads(sys.argv[1]).items():\n"
        "    made = DiffusionPipeline.from_pretrained(folder)('a red circle', output_type='np', **call)\n"
        "    print(*(made.images if hasattr(made, 'images') else made.frames)[0].shape)\n"
        "assert 'attnsteer' not in sys.modules\n"
    )
    command = [sys.executable, "-c", code, json.dumps(calls)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=True)
    shapes = ["9 96 96 3" if name == VIDEO_MODEL else "32 32 3" for name in embedded_models()]
    assert done.stdout.splitlines() == shapes
    assert "not expected" not in done.stderr  # a setting that the class does not know


def test_every_model_has_a_card_with_figures_and_its_log():
    for name in embedded_models():
        source = find_model(name)
        assert source.card["figures"] and source.card["description"] and source.defaults["steps"] >= 1
        assert list((model_folder(name) / "training").glob("log-*.jsonl"))
        assert "Not measured" not in (model_folder(name) / "README.md").read_text()


def test_it_draws_what_prompts_name(pipe):
    right, alone, both, relation, _ = base_figures(pipe, count=24, steps=10, guidance_scale=1.5)
    assert right.value >= 0.85
    assert alone.value >= 0.7
    assert both.value >= 0.75
    assert relation.value <= 0.7  # it has not learnt relations: about 40 % come out right


@pytest.mark.parametrize("name", ["shapes-unet", "shapes-mmdit"])
def test_steering_puts_objects_where_the_prompt_says(name):
    asked = pairs(12, seed=5)
    guided = guide(load_pipeline(name), LearnedSteering.from_pretrained(steering_folder(name)))
    found = detect(pictures(guided, asked.prompts, 10, 1.5))
    pairs_found = [find_pair(scene, seen) for scene, seen in zip(asked.scenes, found, strict=True)]
    right = [p is not None and word in relations_between(*p) for p, word in zip(pairs_found, asked.words, strict=True)]
    assert sum(right) >= 9


def test_nag_keeps_a_colour_out_in_four_steps(pipe):
    prompts = ["a circle"] * 24
    plain = detect(pictures(pipe, prompts, 4, 1.0))
    negative = detect(pictures(guide(pipe, NAG()), prompts, 4, 1.0, nag_negative_prompt="red"))
    red = [sum(any(d.shape.colour == "red" for d in seen) for seen in found) for found in (plain, negative)]
    assert red[0] >= 4
    assert red[1] <= red[0] / 4


def test_the_student_draws_in_one_step_and_nag_keeps_a_colour_out_of_it():
    pipe = load_pipeline(FEW_STEP_MODEL)
    assert base_figures(pipe, count=24, steps=1, guidance_scale=1.0)[0].value >= 0.75
    red = {f.name: f.right for f in negative_figures(pipe, 24, 1, 1.5, NAG(scale=7.0), attributes=("red",))}
    assert red["1 step, unguided: red shows"] >= 4
    assert red["1 step, NAG: red shows"] <= red["1 step, unguided: red shows"] / 4


def test_the_video_model_moves_what_the_prompt_says():
    words = ("left", "right", "up", "down")
    prompts = [f"a red circle moving {word}" for word in words] * 2
    clips = draw_clips(load_video_pipeline(VIDEO_MODEL), prompts, Sampling(12, 2.0))
    right = [
        any((track.colour, track.shape, track.direction) == ("red", "circle", word) for track in tracks)
        for word, tracks in zip(words * 2, detect_clips(clips), strict=True)
    ]
    assert sum(right) >= 5


def test_a_prompt_without_a_relation_is_the_stock_picture(pipe):
    guided = guide(pipe, LearnedSteering.from_pretrained(steering_folder("shapes-unet")))
    call = {"num_inference_steps": 3, "output_type": "pt"}
    pictures_made = [
        generate("a red circle", generator=torch.Generator().manual_seed(1), **call).images
        for generate in (pipe, guided)
    ]
    assert torch.equal(*pictures_made)


def test_the_card_holds_the_measured_figures():
    card = json.loads((model_folder("shapes-unet") / "attnsteer.json").read_text())
    assert {"description", "defaults", "figures"} <= set(card)
    assert card["figures"]
    logs = sorted((model_folder("shapes-unet") / "training").glob("log-*.jsonl"))
    stages = [json.loads(log.read_text().splitlines()[0])["settings"] for log in logs]
    assert [stage["seed"] for stage in stages] == [0, 1, 2]


def test_classifier_card_holds_accuracy_and_leakage():
    for name in ("shapes-unet", "shapes-mmdit"):
        metrics = json.loads((steering_folder(name) / "metrics.json").read_text())
        assert metrics["leakage"]["by_word"]["wrong"]["samples"] > 500


def test_publishing_refuses_large_models_and_keeps_the_classifier(tmp_path: Path, monkeypatch):
    monkeypatch.setattr("attnsteer.world.publish.WEIGHTS", tmp_path / "weights")
    run = tmp_path / "run"
    (run / "model").mkdir(parents=True)
    (run / "log.jsonl").write_text("{}\n")
    with pytest.raises(FileNotFoundError, match="no diffusers folder"):
        publish(run, "tiny")
    (run / "model" / "model_index.json").write_text('{\n  "_name_or_path": "/home/someone",\n  "unet": 1\n}')
    (run / "model" / "a.safetensors").write_bytes(b"0" * 10)
    folder = publish(run, "tiny")
    assert json.loads((folder / "model_index.json").read_text()) == {"unet": 1}
    (folder / "steering").mkdir()
    assert (publish(run, "tiny") / "steering").is_dir()
    figures = [{"name": "both right", "right": 8, "of": 10, "interval": [0.49, 0.94]}, "lean: 1.50 times"]
    write_card(folder, figures, "shapes-unet")
    assert json.loads((folder / "attnsteer.json").read_text())["figures"]["both right"] == "80.0%"
    assert "| both right | 80.0% | 49.0% to 94.0% | 8 of 10 |" in (folder / "README.md").read_text()
    (run / "model" / "a.safetensors").write_bytes(b"0" * 8_000_001)
    with pytest.raises(ValueError, match="8000000"):
        publish(run, "tiny")


def test_demo_examples_name_a_relation_or_a_negative():
    examples = [example for row in EXAMPLES for example in row]
    assert all(example.negative or parse_relations(example.prompt) for example in examples)
