"""Generating, watching and comparing on tiny random stock pipelines that are saved to disk and loaded as users do."""

import json
from contextlib import contextmanager
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from attnsteer import record_maps
from attnsteer.cli import main
from attnsteer.compare import (
    ModelSource,
    Request,
    RequestError,
    comparison_sheet,
    find_model,
    generate,
    open_model,
    plan,
    resolve,
    run_variants,
)
from attnsteer.compare.maps import MAP_SIZE, choose_words, watched_run
from attnsteer.compare.run import NEGATIVE, OFF, STEERED, Variant
from attnsteer.pictures import read_settings
from tiny import build

PROMPT = "a red circle to the left of a blue square"
EXTRA = {
    "sd": {},
    "sdxl": {},
    "sd3": {"max_sequence_length": 24},
    "flux": {"max_sequence_length": 24},
    "wan": {"max_sequence_length": 24},
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Folders of saved tiny pipelines by name."""
    root = tmp_path_factory.mktemp("models")
    for name in EXTRA:
        build(name).save_pretrained(root / name)
    return {name: str(root / name) for name in EXTRA}


@pytest.fixture(scope="module")
def opened(folders):
    """The pipelines, each loaded once."""
    return {name: open_model(find_model(folder), progress=False) for name, folder in folders.items()}


def request_for(name: str, **changes) -> Request:
    frames = {"frames": 5} if name == "wan" else {}
    small = {"steps": 3, "width": 16, "height": 16, "extra": EXTRA[name], **frames}
    return Request(**{"prompt": PROMPT, "seed": 5, **small, **changes})


def plain(model, request: Request) -> Image.Image:
    call = {"num_frames": request.frames} if request.frames else {}
    generator = torch.Generator("cpu").manual_seed(request.seed)
    call |= {"width": request.width, "height": request.height, "num_inference_steps": request.steps}
    output = model.pipe(prompt=request.prompt, generator=generator, output_type="pil", **request.extra, **call)
    return output.images[0] if hasattr(output, "images") else output.frames[0]


@pytest.mark.parametrize("name", EXTRA)
def test_off_is_the_stock_pipeline(opened, name):
    model = opened[name]
    request = resolve(request_for(name), model)
    made = generate(request, model, OFF)
    expected = plain(model, request)
    if name == "wan":
        assert [frame.tobytes() for frame in made.frames] == [frame.tobytes() for frame in expected]
        assert made.image.size == (16 * 5 + 4, 16)  # a pixel between two frames
    else:
        assert made.image.tobytes() == expected.tobytes() and made.frames == ()


@pytest.mark.parametrize("name", EXTRA)
def test_watching_changes_no_pixel_and_finds_both_words(opened, name):
    model = opened[name]
    request = resolve(request_for(name, negative="green"), model)
    words = choose_words(request.text, ["red circle", "square"], [])
    for variant in (OFF, NEGATIVE):
        picture, maps = watched_run(request, model, variant, words, [0, 2])
        assert picture.image.tobytes() == generate(request, model, variant).image.tobytes()
        assert sorted(maps) == [0, 2]
        for pair in maps.values():
            assert [m.shape for m in pair] == [(MAP_SIZE, MAP_SIZE)] * 2
            assert all(np.isfinite(m).all() and (m >= 0).all() and m.max() > m.min() for m in pair)
            assert not np.array_equal(*pair)


def test_maps_are_those_of_the_conditional_rows(opened):
    """Oracle: record the whole batch [unconditional, conditional] during a stock run and take the second half."""
    model = opened["sd"]
    request = resolve(request_for("sd", steps=2), model)
    words = choose_words(request.text, ["circle"], [])
    _, maps = watched_run(request, model, OFF, words, [0])
    ids = model.pipe.tokenizer(PROMPT).input_ids
    (token,) = [i for i, token in enumerate(ids) if model.pipe.tokenizer.decode([token]).strip() == "circle"]
    seen = []
    with record_maps(model.pipe.unet, [[token]], size=MAP_SIZE) as recorder:
        hook = model.pipe.unet.register_forward_hook(lambda *_: seen.append(recorder.maps[0].clone()))
        try:
            plain(model, request)
        finally:
            hook.remove()
    assert seen[0].shape[0] == 2
    torch.testing.assert_close(torch.from_numpy(maps[0][0]), seen[0][1].mean(0))


def test_words_that_the_encoder_cuts_off_are_an_error(opened):
    model = opened["flux"]
    request = resolve(request_for("flux", extra={"max_sequence_length": 6}), model)
    words = choose_words(request.text, ["square"], [])
    with pytest.raises(RequestError, match="'square'"):
        watched_run(request, model, OFF, words, [0])


def test_steps_that_never_come_are_an_error(opened):
    model = opened["sd"]
    request = resolve(request_for("sd"), model)
    with pytest.raises(RequestError, match="never reached"):
        watched_run(request, model, OFF, choose_words(request.text, ["circle"], []), [7])


def test_the_pipeline_is_left_as_it_was(opened):
    model = opened["sd"]
    request = resolve(request_for("sd", negative="green"), model)
    before = [dict(vars(module)) for module in model.pipe.unet.modules()]
    run_variants(request, model, plan(request, None))
    for module, attributes in zip(model.pipe.unet.modules(), before, strict=True):
        assert vars(module).keys() == attributes.keys()
        assert all(vars(module)[name] is value for name, value in attributes.items())
        assert not module._forward_hooks and not module._forward_pre_hooks


@pytest.mark.parametrize("name", EXTRA)
def test_negative_guidance_changes_the_picture_and_its_settings_are_recorded(opened, name):
    model = opened[name]
    request = resolve(request_for(name, negative="green"), model)
    assert None not in (request.nag_scale, request.nag_tau, request.nag_alpha, request.nag_start, request.nag_end)
    strong = replace(request, nag_scale=9.0, nag_alpha=1.0)
    images = [np.asarray(generate(r, model, v).image, float) for r, v in ((request, OFF), (strong, NEGATIVE))]
    assert np.abs(images[0] - images[1]).max() >= 1


class Nudge:
    """A stand-in for learned steering: moves the latents before the first denoiser call."""

    kind = "steering"

    @contextmanager
    def session(self, pipe, denoiser, capture, call):
        from attnsteer.install import before_denoiser_call

        def move(module, args, arguments):
            return (), {**arguments, "sample": arguments["sample"] + 0.5}

        with before_denoiser_call(denoiser, move):
            yield


def test_a_comparison_has_a_column_per_method_and_maps_of_the_steered_latents(opened, monkeypatch):
    monkeypatch.setattr("attnsteer.compare.run.learned_steering", lambda request, model: Nudge())
    model = replace(opened["sd"], source=ModelSource("tiny", "tiny", "classifier"))
    request = resolve(request_for("sd", negative="green"), model)
    planned = plan(request, "classifier")
    pictures = run_variants(request, model, planned)
    assert [picture.variant.name for picture in pictures] == ["off", "nag", "steered", "both"]
    assert len({picture.image.tobytes() for picture in pictures}) == 4
    for picture in pictures:
        assert [heat.label for heat in picture.heats] == ["red circle", "blue square"]
    off, steered = pictures[0].heats[0].attention, pictures[2].heats[0].attention
    assert not np.allclose(off, steered)
    assert comparison_sheet(request, planned, pictures).width > 4 * 250


def test_one_picture_runs_only_what_is_planned(opened):
    model = opened["sd"]
    request = resolve(request_for("sd", negative="green"), model)
    planned = plan(request, None)
    (picture,) = run_variants(request, model, planned, compare=False)
    assert picture.variant == NEGATIVE == planned.variant and picture.heats == ()


def test_variants_are_the_four_combinations():
    from attnsteer.compare import run

    found = {(v.nag, v.steer) for v in vars(run).values() if isinstance(v, Variant)}
    assert found == {(False, False), (True, False), (False, True), (True, True)}


@pytest.mark.parametrize("name", ["sd", "sd3", "flux", "wan"])
def test_the_command_works_on_saved_pipelines_of_every_family(folders, tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    extra = [f"--set={key}={value}" for key, value in EXTRA[name].items()]
    frames = ["--frames", "5"] if name == "wan" else []
    arguments = ["generate", PROMPT, "--negative", "green", "--model", folders[name], "--steps", "2", "--width", "16",
                 "--height", "16", "--compare", "-o", "out.png", "--json", *extra, *frames]  # fmt: skip
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    made = json.loads(result.stdout)
    assert [column["name"] for column in made["sheets"][0]["columns"]] == ["off", "nag"]
    assert made["relations"][0]["relation"] == "to the left of" and "not steered" in made["warnings"][0]
    settings = read_settings("out.png")
    assert settings["nag_scale"] >= 1 and settings["model"] == folders[name]
    assert read_settings("out-compare.png") == settings
    again = CliRunner().invoke(main, ["generate", "--from", "out.png", "-o", "again.png", "--overwrite", "-q"])
    assert again.exit_code == 0, again.output
    with Image.open("out.png") as first, Image.open("again.png") as second:
        assert first.tobytes() == second.tobytes()
    animations = [made["pictures"][0].get("animation"), made["sheets"][0].get("animation")]
    assert animations == (["out.gif", "out-compare.gif"] if name == "wan" else [None, None])
    for animation in filter(None, animations):
        with Image.open(animation) as clip:
            assert clip.n_frames == 5


def test_an_animation_that_exists_is_found_before_any_work(folders, tmp_path):
    (tmp_path / "out.gif").touch()
    arguments = [
        "generate",
        "a dog",
        "--model",
        folders["wan"],
        "--frames",
        "5",
        "-o",
        str(tmp_path / "out.png"),
        "-q",
    ]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 2 and "out.gif' exists" in result.stderr
    assert not (tmp_path / "out.png").exists()


def test_maps_of_a_clip_lie_over_all_of_its_frames(folders, tmp_path):
    target = tmp_path / "maps.png"
    arguments = ["heatmap", PROMPT, "--words", "circle", "--at", "1", "--model", folders["wan"], "--steps", "2"]
    arguments += ["--width", "16", "--height", "16", "--frames", "5", "--set=max_sequence_length=24", "-q"]
    result = CliRunner().invoke(main, [*arguments, "-o", str(target)])
    assert result.exit_code == 0, result.output
    assert read_settings(target)["frames"] == 5


def test_the_heatmap_command_draws_and_lists_the_maps(folders, tmp_path):
    target = str(tmp_path / "maps.png")
    arguments = ["heatmap", PROMPT, "--words", "circle, square", "--at", "1,2", "--model", folders["sd"],
                 "--steps", "2", "--width", "16", "--height", "16", "-o", target, "--json"]  # fmt: skip
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    made = json.loads(result.stdout)
    rows = [(m["word"], m["step"]) for m in made["maps"]]
    assert rows == [("circle", 1), ("circle", 2), ("square", 1), ("square", 2)]
    assert all(0 < m["x"] < 1 and 0 < m["y"] < 1 and m["mean"] > 0 for m in made["maps"])
    assert read_settings(target)["prompt"] == PROMPT


def test_forced_steering_without_classifier_is_a_usage_error(folders):
    result = CliRunner().invoke(main, ["generate", PROMPT, "--steer", "--model", folders["sd"]])
    assert result.exit_code == 2 and "no relation classifier" in result.stderr
    result = CliRunner().invoke(main, ["generate", "a dog", "--steer", "--classifier", folders["sd"]])
    assert result.exit_code == 2
    result = CliRunner().invoke(main, ["generate", PROMPT, "--model", folders["sd"], "--classifier", "./missing.pth"])
    assert result.exit_code == 2 and "no relation classifier at" in result.stderr


def test_a_classifier_in_the_model_folder_is_found(tmp_path):
    (tmp_path / "model" / "steering").mkdir(parents=True)
    (tmp_path / "model" / "model_index.json").write_text("{}")
    folder = str(tmp_path / "model")
    assert find_model(folder).classifier is None
    (tmp_path / "model" / "steering" / "config.json").write_text("{}")
    (tmp_path / "model" / "attnsteer.json").write_text('{"defaults": {"steps": 9}}')
    assert find_model(folder).classifier == str(tmp_path / "model" / "steering")
    assert find_model(folder).defaults == {"steps": 9}
    (tmp_path / "model" / "attnsteer.json").write_text("[1]")
    assert find_model(folder).defaults == {}


def test_devices_that_are_not_here_are_refused():
    from attnsteer.compare.models import pick_device

    assert pick_device("cpu") == "cpu" and pick_device("auto") in ("cpu", "cuda", "mps")
    with pytest.raises(RequestError, match="not available here"):
        pick_device("abacus")


def test_models_that_cannot_be_loaded_say_what_to_check(tmp_path):
    (tmp_path / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline", "unet": ["x", "y"]}')
    source = find_model(str(tmp_path))
    with pytest.raises((OSError, ValueError, AttributeError, ImportError)):
        open_model(source, progress=False)


def test_output_without_pictures_is_an_error():
    from attnsteer.compare.run import pictures_of

    with pytest.raises(RequestError, match="no pictures"):
        pictures_of(SimpleNamespace(images=["text"]))


@pytest.fixture(scope="module")
def steerable(folders, tmp_path_factory):
    """A saved tiny pipeline with a random relation classifier for it in its folder."""
    from attnsteer import RelationClassifier
    from attnsteer.steering.classifier_settings import ClassifierSettings

    pipe = build("sd")
    with record_maps(pipe.unet, [[1]], size=16) as recorder:
        pipe(PROMPT, num_inference_steps=1, width=16, height=16, output_type="latent")
    relations = ("to the left of", "to the right of", "above", "below")
    folder = tmp_path_factory.mktemp("steerable") / "tiny"
    pipe.save_pretrained(folder)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        settings = ClassifierSettings(relations, channels=recorder.maps[0].shape[1], antisymmetric=True)
        RelationClassifier(settings).save_pretrained(folder / "steering")
    return str(folder)


def test_the_command_steers_with_the_classifier_of_the_model_folder(steerable, tmp_path):
    target = str(tmp_path / "out.png")
    arguments = ["generate", PROMPT, "--negative", "green", "--steer", "--model", steerable, "--steps", "4",
                 "--width", "16", "--height", "16", "--compare", "-o", target, "--json"]  # fmt: skip
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    made = json.loads(result.stdout)
    assert made["methods"] == {"nag": True, "steering": True} and made["warnings"] == []
    assert [column["name"] for column in made["sheets"][0]["columns"]] == ["off", "nag", "steered", "both"]
    steering = made["pictures"][0]["steering"]
    assert steering["iterations"] >= 1
    assert all(0 <= p <= 1 for step in steering["steps"] for p in (*step["before"], *step["after"]))
    again = CliRunner().invoke(main, ["generate", "--from", target, "-o", str(tmp_path / "again.png"), "-q"])
    assert again.exit_code == 0, again.output
    with Image.open(target) as first, Image.open(tmp_path / "again.png") as second:
        assert first.tobytes() == second.tobytes()


def test_watching_a_steered_run_changes_no_pixel(steerable):
    model = open_model(find_model(steerable), progress=False)
    request = resolve(request_for("sd", steps=4), model)
    words = choose_words(request.text, None, request.relations)
    picture, maps = watched_run(request, model, STEERED, words, [3])
    assert picture.image.tobytes() == generate(request, model, STEERED).image.tobytes()
    assert picture.image.tobytes() != generate(request, model, OFF).image.tobytes()
    assert picture.steering.iterations >= 1 and len(maps[3]) == 2


def test_markup_states_the_relation_and_is_not_read_by_the_model(steerable):
    model = open_model(find_model(steerable), progress=False)
    marked = resolve(request_for("sd", prompt="a [circle] {right of} a [square]"), model)
    assert marked.text == "a circle right of a square"
    assert [(r.subject.text, r.relation, r.object.text) for r in marked.relations] == [
        ("circle", "to the right of", "square")]  # fmt: skip
    worded = replace(marked, prompt="a circle right of a square")
    images = [generate(request, model, STEERED).image.tobytes() for request in (marked, worded)]
    assert images[0] == images[1]
    with pytest.raises(RequestError):
        plan(replace(marked, prompt="a [circle] {beyonder than} a [square]"), None)


def test_relations_the_classifier_does_not_know_are_left_alone_unless_insisted_on(steerable):
    model = open_model(find_model(steerable), progress=False)
    request = resolve(request_for("sd", prompt="a circle near a square"), model)
    assert generate(request, model, STEERED).image.tobytes() == generate(request, model, OFF).image.tobytes()
    with pytest.raises(ValueError, match="near"):
        generate(replace(request, steer="on"), model, STEERED)


def test_the_command_says_which_relation_was_not_steered(steerable, tmp_path):
    arguments = ["generate", "a circle near a square", "--model", steerable, "--steps", "2", "--width", "16",
                 "--height", "16", "-o", str(tmp_path / "out.png"), "--json"]  # fmt: skip
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    (warning,) = json.loads(result.stdout)["warnings"]
    assert "does not know 'near'" in warning
