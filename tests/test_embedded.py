"""The embedded model as users meet it: a stock folder that loads without attnsteer, draws, and can be steered."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from attnsteer import NAG, LearnedSteering, guide, parse_relations
from attnsteer.world.demo import EXAMPLES
from attnsteer.world.detect import detect
from attnsteer.world.measure import base_figures, find_pair, load_pipeline, pairs, pictures
from attnsteer.world.models import WEIGHTS, embedded_models, model_folder, steering_folder
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


def test_the_folder_loads_and_draws_without_attnsteer(tmp_path: Path):
    code = (
        "import sys; from diffusers import StableDiffusionPipeline as Pipeline; "
        f"pipe = Pipeline.from_pretrained({str(model_folder('shapes-unet'))!r}); "
        "image = pipe('a red circle', num_inference_steps=2).images[0]; "
        "assert 'attnsteer' not in sys.modules; print(image.size)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=True)
    assert done.stdout.strip() == "(32, 32)"


def test_it_draws_what_prompts_name(pipe):
    right, alone, both, relation, _ = base_figures(pipe, count=24, steps=10, guidance_scale=1.5)
    assert right.value >= 0.85
    assert alone.value >= 0.7
    assert both.value >= 0.75
    assert relation.value <= 0.7  # it has not learnt relations: about 40 % come out right


def test_steering_puts_objects_where_the_prompt_says(pipe):
    asked = pairs(12, seed=5)
    guided = guide(pipe, LearnedSteering.from_pretrained(steering_folder("shapes-unet")))
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
    metrics = json.loads((steering_folder("shapes-unet") / "metrics.json").read_text())
    assert metrics["leakage"]["by_word"]["wrong"]["samples"] > 500


def test_publishing_refuses_large_models_and_keeps_the_classifier(tmp_path: Path, monkeypatch):
    monkeypatch.setattr("attnsteer.world.publish.WEIGHTS", tmp_path / "weights")
    run = tmp_path / "run"
    (run / "model").mkdir(parents=True)
    (run / "log.jsonl").write_text("{}\n")
    with pytest.raises(FileNotFoundError, match="no diffusers folder"):
        publish(run, "tiny")
    (run / "model" / "model_index.json").write_text("{}")
    (run / "model" / "a.safetensors").write_bytes(b"0" * 10)
    folder = publish(run, "tiny")
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
