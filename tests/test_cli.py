"""The command: what it prints and writes, and how it fails. A stand-in pipeline keeps most of it fast."""

import inspect
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

import attnsteer.compare
from attnsteer.cli import main
from attnsteer.cli.parse import underlined
from attnsteer.cli.settings import build_request, picture_paths, sheet_path
from attnsteer.compare import ModelSource, OpenModel, Request, RequestError, plan, resolve
from attnsteer.compare.clips import exposure, film_strip, frames_of, write_gif
from attnsteer.compare.maps import choose_steps, choose_words
from attnsteer.compare.run import pictures_of
from attnsteer.compare.sheets import centre, duration, relation_words
from attnsteer.pictures import read_settings
from attnsteer.steering.relations import Relation, Span

PROMPT = "a red circle to the left of a blue square"


class StandIn:
    """Draws noise from the generator, in the shape of a diffusers pipeline."""

    def __call__(self, prompt, num_inference_steps=20, guidance_scale=4.0, height=None, width=None, generator=None,
                 output_type="pil", callback_on_step_end=None, mood="calm"):  # fmt: skip
        import torch

        if prompt == "break":
            raise RuntimeError("out of memory")
        pixels = torch.rand(height or 16, width or 24, 3, generator=generator)
        return SimpleNamespace(images=[Image.fromarray((pixels.numpy() * 255).astype(np.uint8))])

    def set_progress_bar_config(self, **_):
        pass


@pytest.fixture
def stand_in(monkeypatch, tmp_path):
    """The stand-in behind every model name; runs in an empty folder."""
    monkeypatch.setattr(attnsteer.compare, "find_model", lambda name, classifier=None: ModelSource(name, name))
    monkeypatch.setattr(attnsteer.compare, "open_model", lambda source, **_: OpenModel(source, StandIn(), "cpu"))
    monkeypatch.chdir(tmp_path)


def run(*arguments: str):
    return CliRunner().invoke(main, list(arguments))


def run_json(*arguments: str) -> dict:
    result = run(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.stdout)


def picture(path) -> Image.Image:
    with Image.open(path) as image:
        image.load()
        return image


# --- starting up ---


@pytest.mark.parametrize("arguments", [["--help"], ["generate", "--help"], ["heatmap", "--help"], ["--version"]])
def test_help_loads_no_heavy_library(arguments):
    code = (
        "import sys\n"
        "from attnsteer.cli import main\n"
        f"try:\n    main({arguments!r})\nexcept SystemExit as leave:\n    assert not leave.code\n"
        "heavy = {'torch', 'diffusers', 'transformers', 'accelerate'} & set(sys.modules)\n"
        "sys.exit(f'loaded {heavy}' if heavy else 0)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "attnsteer" in done.stdout


def test_python_dash_m_is_the_same_command():
    done = subprocess.run([sys.executable, "-m", "attnsteer", "--version"], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == f"attnsteer {attnsteer.__version__}"


def test_no_command_is_a_usage_error():
    assert run().exit_code == 2
    assert run("paint").exit_code == 2


# --- requests ---


@pytest.mark.parametrize(("option", "value", "message"), [
    ("--steps", "0", "steps must be a whole number >= 1"),
    ("--seed", "-1", "seed must be"),
    ("--width", "0", "width must be"),
    ("--guidance-scale", "-1", "guidance_scale must be >= 0"),
    ("--nag-scale", "0.5", "nag_scale must be >= 1"),
    ("--nag-tau", "0", "nag_tau must be >= 1"),
    ("--nag-alpha", "1.5", "nag_alpha must be in 0..1"),
    ("--nag-end", "nan", "nag_end must be in 0..1"),
    ("--dtype", "int8", "dtype must be auto or float32"),
    ("--num-images", "0", "num_images must be"),
    ("--set", "novalue", "--set takes NAME=VALUE"),
])  # fmt: skip
def test_bad_values_are_usage_errors_that_say_the_range(stand_in, option, value, message):
    result = run("generate", "a dog", option, value)
    assert result.exit_code == 2 and message in result.stderr
    assert list(Path.cwd().iterdir()) == []


def test_an_empty_prompt_and_none_are_usage_errors(stand_in):
    assert run("generate", "  ").exit_code == 2
    assert "give a prompt" in run("generate").stderr


def test_start_must_be_before_end():
    with pytest.raises(RequestError, match="nag_start must be below nag_end"):
        Request("a dog", nag_start=0.6, nag_end=0.5)


def test_requests_survive_json():
    request = Request(PROMPT, negative="blurry", seed=3, nag_scale=5.0, extra={"mood": [1, "x"]})
    assert Request.from_dict(json.loads(json.dumps(request.to_dict()))) == request


@pytest.mark.parametrize(("change", "message"), [
    ({"schema": 99}, "update attnsteer"),
    ({"colour": "red"}, "unknown settings"),
    ({"seed": "7"}, "seed must be"),
    ({"steps": True}, "steps must be"),
    ({"prompt": 5}, "prompt"),
])  # fmt: skip
def test_foreign_settings_are_refused(change, message):
    with pytest.raises(RequestError, match=message):
        Request.from_dict({**Request("a dog").to_dict(), **change})


def test_the_readable_text_has_what_image_browsers_look_for():
    request = Request("a dog", negative="blurry", steps=20, seed=7, guidance_scale=4.0, width=8, height=9)
    lines = request.parameters_text().splitlines()
    assert lines[:2] == ["a dog", "Negative prompt: blurry"]
    assert lines[2].startswith("Steps: 20, CFG scale: 4, Seed: 7, Size: 8x9, Model: shapes-unet")


# --- generate ---


def test_generate_writes_a_picture_with_its_settings(stand_in):
    result = run_json("generate", "a dog", "--seed", "7", "--steps", "3", "-o", "sub/out.png")
    (entry,) = result["pictures"]
    assert entry["path"] == "sub/out.png" and entry["seed"] == 7
    assert result["settings"]["steps"] == 3 and result["settings"]["guidance_scale"] == 4.0
    assert result["methods"] == {"nag": False, "steering": False} and result["relations"] == []
    settings = read_settings(entry["path"])
    assert settings["prompt"] == "a dog" and settings["seed"] == 7 and settings["steps"] == 3
    assert "Seed: 7" in picture(entry["path"]).text["parameters"]


def test_from_makes_the_same_picture_and_options_win(stand_in):
    first = run_json("generate", "a dog", "--seed", "7", "--width", "20", "-o", "a.png")
    again = run_json("generate", "--from", "a.png", "-o", "b.png")
    assert again["settings"] == first["settings"]
    assert picture("a.png").tobytes() == picture("b.png").tobytes()
    other = run_json("generate", "a cat", "--from", "a.png", "--seed", "8", "-o", "c.png")
    assert other["settings"] == {**first["settings"], "prompt": "a cat", "seed": 8}
    assert picture("c.png").size == (20, 16) and picture("c.png").tobytes() != picture("a.png").tobytes()


def test_from_a_foreign_picture_is_a_usage_error(stand_in):
    Image.new("RGB", (4, 4)).save("plain.png")
    result = run("generate", "--from", "plain.png")
    assert result.exit_code == 2 and "no attnsteer settings" in result.stderr
    assert run("generate", "--from", "missing.png").exit_code == 2


def test_several_pictures_count_seeds_up_and_each_can_be_made_again(stand_in):
    result = run_json("generate", "a dog", "--seed", "5", "--num-images", "3", "-o", "out.png")
    assert [(e["path"], e["seed"]) for e in result["pictures"]] == [
        ("out-1.png", 5), ("out-2.png", 6), ("out-3.png", 7)]  # fmt: skip
    run_json("generate", "--from", "out-2.png", "-o", "again.png")
    assert picture("again.png").tobytes() == picture("out-2.png").tobytes()


def test_existing_files_are_kept_unless_told_otherwise(stand_in):
    run_json("generate", "a dog", "-o", "out.png")
    before = Path("out.png").read_bytes()
    result = run("generate", "a cat", "-o", "out.png")
    assert result.exit_code == 2 and "--overwrite" in result.stderr
    assert Path("out.png").read_bytes() == before
    run_json("generate", "a cat", "-o", "out.png", "--overwrite")
    assert read_settings("out.png")["prompt"] == "a cat"


def test_without_output_a_free_name_is_taken(stand_in):
    names = [run("generate", "a dog", "--seed", "4", "-q").stdout.strip() for _ in range(3)]
    assert names == ["attnsteer-4.png", "attnsteer-4-v2.png", "attnsteer-4-v3.png"]


def test_other_formats_are_refused(stand_in):
    result = run("generate", "a dog", "-o", "out.jpg")
    assert result.exit_code == 2 and ".png" in result.stderr


def test_set_passes_keywords_and_refuses_unknown_ones(stand_in):
    settings = run_json("generate", "a dog", "--set", "mood=wild", "-o", "a.png")["settings"]
    assert settings["extra"] == {"mood": "wild"}
    result = run("generate", "a dog", "--set", "moood=1", "-o", "b.png")
    assert result.exit_code == 2 and "takes no moood" in result.stderr
    assert run("generate", "a dog", "--frames", "5").exit_code == 2
    assert "setting of its own" in run("generate", "a dog", "--set", "width=8").stderr


def test_failures_while_working_exit_with_1_and_leave_no_file(stand_in):
    result = run("generate", "break", "-o", "out.png")
    assert result.exit_code == 1 and "out of memory" in result.stderr
    assert list(Path.cwd().iterdir()) == []


def test_json_reports_failures_too(stand_in):
    result = run("generate", "a dog", "--steps", "0", "--json")
    error = json.loads(result.stdout)["error"]
    assert result.exit_code == 2 and error["exit_code"] == 2 and "steps" in error["message"]


def test_unknown_models_are_usage_errors(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    result = run("generate", "a dog", "--model", "no-such-model")
    assert result.exit_code == 2 and "unknown model 'no-such-model'" in result.stderr
    (tmp_path / "empty").mkdir()
    result = run("generate", "a dog", "--model", "empty")
    assert result.exit_code == 2 and "model_index.json" in result.stderr


@pytest.mark.parametrize("command", [
    ("collect", "samples"), ("convert-classifier", "sd2.pth"), ("evaluate",), ("report", "runs"),
])  # fmt: skip
def test_a_file_where_a_folder_belongs_is_a_usage_error(command, tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    result = run(*command, "--output", str(tmp_path / "notes.txt"))
    assert result.exit_code == 2 and "is a file" in result.stderr
    assert (tmp_path / "notes.txt").read_text() == "mine"


def test_models_are_listed_briefly_or_with_every_figure():
    brief, whole = (run("models", *more).stdout for more in ((), ("--figures",)))
    assert "20 steps, CFG 1.5" in brief and "relation right" not in brief and "--figures" in brief
    assert "relation right" in whole


# --- what runs ---


def test_steering_must_be_possible_if_insisted_on():
    with pytest.raises(RequestError, match="no relation was found"):
        plan(Request("a dog", steer="on"), "classifier")
    with pytest.raises(RequestError, match="no relation classifier"):
        plan(Request(PROMPT, steer="on"), None)


@pytest.mark.parametrize(("changes", "classifier", "names"), [
    ({}, None, ["off"]),
    ({}, "c", ["off", "steered"]),
    ({"steer": "off"}, "c", ["off"]),
    ({"negative": "red"}, "c", ["off", "nag", "steered", "both"]),
    ({"negative": "red", "nag_scale": 1.0}, "c", ["off", "steered"]),
    ({"negative": "red", "nag_alpha": 0.0}, None, ["off"]),
    ({"negative": "red", "prompt": "a dog"}, "c", ["off", "nag"]),
])  # fmt: skip
def test_the_plan_follows_prompt_and_settings(changes, classifier, names):
    request = Request(**{"prompt": PROMPT, **changes})
    assert [variant.name for variant in plan(request, classifier).variants] == names


def test_what_is_left_out_is_said():
    (note,) = plan(Request(PROMPT), None).notes
    assert "not steered" in note
    (note,) = plan(Request("a dog", nag_scale=5.0), None).notes
    assert "without a negative prompt" in note


def test_defaults_come_from_the_card_then_from_the_pipeline():
    source = ModelSource("m", "m", card={"defaults": {"steps": 9, "width": 64}})
    resolved = resolve(Request("a dog", guidance_scale=1.0), OpenModel(source, StandIn(), "cpu"))
    assert (resolved.steps, resolved.width, resolved.guidance_scale, resolved.height) == (9, 64, 1.0, None)


def test_videos_become_a_strip_and_frames():
    frames = [Image.new("RGB", (4, 3), (n, 0, 0)) for n in range(9)]
    image, kept = pictures_of(SimpleNamespace(frames=[frames]))
    assert image.size == (36, 3) and len(kept) == 9  # thinned out, an object that flickers would never show
    assert [image.getpixel((4 * n, 0))[0] for n in range(9)] == list(range(9))
    assert [film_strip(frames, 5).getpixel((4 * n, 0))[0] for n in range(5)] == [0, 2, 4, 6, 8]
    assert film_strip(frames[:1]).size == (4, 3)
    wide = film_strip([frame.resize((48, 48)) for frame in frames[:2]])
    assert wide.size == (98, 48) and wide.getpixel((49, 0)) == (255, 255, 255)


def test_animations_keep_every_frame_and_grow_by_whole_pixels(tmp_path):
    frames = [Image.new("RGB", (96, 64), colour) for colour in ("red", "white", "red")]
    frames[0].putpixel((5, 7), (1, 2, 3))
    path = write_gif(frames, tmp_path / "out.gif")
    shown = frames_of(path.read_bytes())
    assert [frame.size for frame in shown] == [(288, 192)] * 3
    assert [frame.getpixel((0, 0)) for frame in shown] == [(255, 0, 0), (255, 255, 255), (255, 0, 0)]
    assert shown[0].getpixel((17, 23)) == (1, 2, 3) and shown[0].getpixel((18, 23)) == (255, 0, 0)
    assert exposure(frames).getpixel((0, 0)) == (255, 85, 85)
    with pytest.raises(RequestError, match="no pictures"):
        pictures_of(SimpleNamespace(audios=[1]))


# --- words, steps, captions ---


def test_words_are_found_whole():
    assert choose_words("a catfish and a Cat", ["cat"], []) == [Span("Cat", 16, 19)]
    with pytest.raises(RequestError, match="is not in the prompt"):
        choose_words("a catfish", ["cat"], [])
    with pytest.raises(RequestError, match="no words to look at"):
        choose_words("a catfish", None, [])


def test_steps_are_spread_and_checked():
    assert choose_steps(20, None) == [0, 6, 13, 19]
    assert choose_steps(1, None) == [0] and choose_steps(3, None) == [0, 1, 2]
    assert choose_steps(20, [4, 5]) == [4, 5]
    with pytest.raises(RequestError, match=r"1\.\.20"):
        choose_steps(20, [20])


@pytest.mark.parametrize("at", ["0", "a", "1,,2", "-3"])
def test_bad_steps_are_usage_errors(stand_in, at):
    assert run("heatmap", PROMPT, "--at", at).exit_code == 2


def test_the_centre_of_a_map_is_its_centre_of_mass():
    attention = np.zeros((4, 8))
    attention[0, 7], attention[2, 7] = 1.0, 3.0
    result = centre(attention)
    assert (result["x"], result["y"]) == (7.5 / 8, (0.5 + 3 * 2.5) / 4 / 4)
    assert centre(np.zeros((2, 2)))["x"] == 0.5


def test_times_read_well():
    assert [duration(s) for s in (0.042, 0.996, 9.94, 59.4, 185.0)] == [
        "0.04 s", "1.0 s", "9.9 s", "59 s", "3 min 5 s"]  # fmt: skip


def span(prompt: str, text: str) -> Span:
    return Span(text, prompt.index(text), prompt.index(text) + len(text))


@pytest.mark.parametrize(("prompt", "first", "second", "words"), [
    (PROMPT, "red circle", "blue square", "to the left of"),
    ("a dog is above the cat", "dog", "cat", "is above"),
    ("to the left of the tree is a bench", "tree", "bench", "is"),
    ("a dog, and far away, a cat", "dog", "cat", None),
])  # fmt: skip
def test_relation_words_are_what_stands_between(prompt, first, second, words):
    relation = Relation(span(prompt, second), "above", span(prompt, first))
    found = relation_words(prompt, relation)
    assert (prompt[slice(*found)] if found else None) == words


# --- parse, models, doctor ---


def test_parse_underlines_what_it_found():
    result = run("parse", PROMPT)
    assert result.exit_code == 0
    first, second = result.stdout.splitlines()[:2]
    assert first == PROMPT
    assert second == "  ^^^^^^^^^^                  ~~~~~~~~~~~"
    assert "to the left of" in result.stdout


def test_parse_as_json_has_character_offsets():
    found = run_json("parse", PROMPT)
    (relation,) = found["relations"]
    assert relation == {
        "subject": {"text": "red circle", "start": 2, "end": 12},
        "relation": "to the left of",
        "object": {"text": "blue square", "start": 30, "end": 41},
    }


def test_parse_of_a_prompt_without_relation_says_so():
    result = run("parse", "a photo of a dog")
    assert result.exit_code == 0 and "No relation found" in result.stdout


def test_wide_letters_keep_marks_aligned():
    prompt = "猫 on a mat"
    marked = underlined(prompt, [(span(prompt, "猫"), "^"), (span(prompt, "mat"), "~")])
    assert marked.splitlines()[1] == "^^      ~~~"


def test_models_and_doctor_speak_json():
    models = run_json("models")["models"]
    assert all({"name", "description", "figures", "steerable"} <= set(model) for model in models)
    result = run("doctor", "--json")
    found = json.loads(result.stdout)
    assert result.exit_code == (1 if found["problems"] else 0)
    assert found["packages"]["torch"] and found["devices"][-1]["device"] == "cpu"
    assert {"denoiser": "FluxTransformer2DModel", "available": True} in found["families"]
    assert run("doctor").exit_code == result.exit_code


# --- settings ---


@pytest.mark.parametrize(
    ("words", "negative", "shown"),
    [
        (["blurry"], "blurry", "blurry"),
        (["blurry=1"], "blurry", "blurry"),
        (["blurry=0.5"], {"blurry": 0.5}, "blurry (0.5)"),
        (["blurry", "a=b text=0.25"], {"blurry": 1.0, "a=b text": 0.25}, "blurry, a=b text (0.25)"),
    ],
)
def test_negative_prompts_have_weights(words, negative, shown):
    request = build_request({"prompt": "a cat", "negative": words})
    assert request.negative == negative
    assert request.negative_text == shown
    assert Request.from_dict(json.loads(json.dumps(request.to_dict()))) == request
    assert f"Negative prompt: {shown}" in request.parameters_text()


@pytest.mark.parametrize("negative", [{}, {"blurry": -1.0}, {"blurry": "much"}, 3])
def test_bad_weights_of_negative_prompts_are_refused(negative):
    with pytest.raises(RequestError, match="weights >= 0"):
        Request("a cat", negative=negative)


def test_presets_are_listed_with_their_source():
    presets = run_json("models", "--presets")["presets"]
    flux = next(row for row in presets if (row["model"], row["method"]) == ("FLUX.1", "NAG"))
    assert flux["settings"] == {"scale": 5.0, "tau": 2.5, "alpha": 0.25}
    assert "2505.21179" in flux["source"]
    text = run("models", "--presets").stdout
    assert "FLUX.1  NAG: scale 5, tau 2.5, alpha 0.25" in text
    assert "VSF: scale" in text


def test_given_options_win_over_nothing():
    assert build_request({"prompt": "a dog", "seed": None}, steer=False).steer == "off"
    extra = build_request({"prompt": "a dog"}, extra=["a=1", "b=x=y", "c=null"]).extra
    assert extra == {"a": 1, "b": "x=y", "c": None}


def test_paths_are_checked_before_work(tmp_path):
    (tmp_path / "out-2.png").write_bytes(b"")
    with pytest.raises(RequestError, match="out-2"):
        picture_paths(tmp_path / "out.png", Request("a dog", num_images=2), overwrite=False)
    assert sheet_path(Path("a/out.png")) == Path("a/out-compare.png")


def test_every_option_of_a_request_is_an_option_of_generate():
    from dataclasses import fields

    from attnsteer.cli.generate import generate

    assert {item.name for item in fields(Request)} <= set(inspect.signature(generate).parameters)
