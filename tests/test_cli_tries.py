"""`attnsteer generate` with several runs for one picture: seeds, best of N, verification."""

import json

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from attnsteer import LearnedSteering, guide
from attnsteer.cli import main
from attnsteer.compare import Request, RequestError, plan
from attnsteer.compare.maps import watched_run
from attnsteer.compare.models import find_model, open_model
from attnsteer.compare.run import STEERED, learned_steering, pipeline_call
from attnsteer.families import family_of
from attnsteer.pictures import read_settings
from attnsteer.seam.layers import text_layers
from attnsteer.steering.classifier import RelationClassifier
from attnsteer.steering.classifier_settings import ClassifierSettings, EncoderSize
from attnsteer.steering.relations import Span
from attnsteer.steering.retry import Retries
from attnsteer.steering.select import SeedSelection
from attnsteer.steering.verify import Verification
from tiny import build

pytestmark = pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")
PROMPT = "a red circle to the left of a dog"


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    """A tiny pipeline with a relation classifier of random weights beside it."""
    folder = tmp_path_factory.mktemp("model")
    pipe = build("sd")
    pipe.save_pretrained(folder)
    (folder / "attnsteer.json").write_text('{"defaults": {"steps": 4, "width": 16, "height": 16}}')
    channels = sum(layer.module.heads for layer in text_layers(pipe.unet, family_of(pipe.unet)))
    size = EncoderSize(width=8, layers=1, heads=2, feedforward=8)
    relations = ("to the left of", "to the right of")
    RelationClassifier(
        ClassifierSettings(relations, channels, map_size=4, extractor=size, pooling_heads=2, head=size)
    ).save_pretrained(folder / "steering")
    return str(folder)


@pytest.fixture(autouse=True)
def elsewhere(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)


def generate(model, *arguments, prompt=PROMPT):
    return CliRunner().invoke(main, ["generate", prompt, "--model", model, *arguments])


def made(model, *arguments):
    done = generate(model, *arguments, "--json")
    assert done.exit_code == 0, done.output
    result = json.loads(done.stdout)
    return result["pictures"][0], np.asarray(Image.open(result["pictures"][0]["path"]))


def expected(model, request, **settings):
    """The same through Python."""
    opened = open_model(find_model(model), device="cpu", dtype="float32", progress=False)
    method = LearnedSteering.from_pretrained(f"{model}/steering", unknown="skip", **settings)
    call = pipeline_call(request, opened, request.seed)
    guided = guide(opened.pipe, method)
    return np.asarray(guided(**call).images[0]), guided.steering_report


def test_seeds_are_tried_and_the_chosen_one_is_steered(model):
    entry, picture = made(model, "--seeds", "3", "--seed", "4", "-o", "a.png")
    request = Request(PROMPT, seed=4, steps=4, width=16, height=16)
    same, report = expected(model, request, seeds=SeedSelection(3))
    assert np.array_equal(picture, same)
    assert entry["steering"]["trials"] == [trial.iterations for trial in report.trials] and report.trials
    assert entry["steering"]["seeds"] == list(report.seeds) and entry["steering"]["verified"] == []
    assert read_settings("a.png")["seeds"] == 3
    again = CliRunner().invoke(main, ["generate", "--from", "a.png", "-o", "b.png"])
    assert again.exit_code == 0 and np.array_equal(np.asarray(Image.open("b.png")), picture)


def test_the_best_of_several_seeds_is_not_steered(model):
    entry, picture = made(model, "--best-of", "2", "-o", "a.png")
    chosen = entry["steering"]["seeds"][0]
    assert len(entry["steering"]["trials"]) == 2 and entry["steering"]["iterations"] == 2
    plain = np.asarray(
        Image.open(json.loads(generate(model, "--no-steer", "-o", "b.png", "--json").stdout)["pictures"][0]["path"])
    )
    assert np.array_equal(picture, plain) == (chosen == 0)


def test_verified_pictures_are_the_plain_ones_or_steered(model):
    entry, picture = made(model, "--verify", "-o", "a.png")
    same, report = expected(model, Request(PROMPT, steps=4, width=16, height=16), verify=Verification())
    assert np.array_equal(picture, same)
    assert entry["steering"]["verified"] == pytest.approx(report.verified) and len(report.verified) == 1
    assert "verify" not in entry and read_settings("a.png")["verify"] is True


def test_attempts_are_steered_until_one_is_right(model):
    entry, picture = made(model, "--attempts", "2", "-o", "a.png")
    same, report = expected(model, Request(PROMPT, steps=4, width=16, height=16), retries=Retries(2))
    assert np.array_equal(picture, same)
    assert entry["steering"]["attempts"] == list(report.attempts) and len(report.attempts) == 1
    assert entry["steering"]["scores"] == pytest.approx(report.scores)
    assert read_settings("a.png")["attempts"] == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--attempts", "1"], "attempts must be a whole number >= 2"),
        (["--seeds", "1"], "seeds must be a whole number >= 2"),
        (["--best-of", "0"], "best_of must be a whole number >= 2"),
        (["--best-of", "2", "--verify"], "leave seeds, verify and attempts out, or best_of"),
        (["--seeds", "2", "--no-steer"], "let the relation classifier judge"),
        (["--seeds", "2", "--compare"], "--compare shows one seed in every column"),
    ],
)
def test_what_cannot_be_is_a_usage_error(model, arguments, message):
    done = generate(model, *arguments)
    assert done.exit_code == 2 and message in done.stderr


def test_a_prompt_without_relation_has_nothing_to_judge(model):
    done = generate(model, "--verify", prompt="a dog and a cat")
    assert done.exit_code == 2 and "need a relation in the prompt" in done.stderr
    with pytest.raises(RequestError, match="need a relation"):
        plan(Request(PROMPT, best_of=2), None)


def test_maps_show_a_single_run(model):
    opened = open_model(find_model(model), device="cpu", dtype="float32", progress=False)
    request = Request(PROMPT, steps=4, seeds=2)
    with pytest.raises(RequestError, match="maps show one run with the given seed"):
        watched_run(request, opened, STEERED, [Span("dog", 30, 33)], [1])
    assert learned_steering(request, opened).seeds == SeedSelection(2)
