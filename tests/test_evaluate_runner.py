"""Whole evaluations on tiny random stock pipelines: the same seeds, honest costs, resumable, readable."""

import io
import json
import math
import pickle
from dataclasses import replace

import pytest
import torch
from PIL import Image

from attnsteer.evaluate.heat_maps import read_heat_maps, record_heat_maps
from attnsteer.evaluate.methods import parse_methods
from attnsteer.evaluate.report import write_report
from attnsteer.evaluate.runner import SEED_STEP
from attnsteer.evaluate.settings import Evaluation
from attnsteer.evaluate.suites import SUITES, find_suite, items_of, suite_tasks, task_of
from attnsteer.jobs import read_records, run_job
from steered import save_classifier
from tiny import build


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny Stable Diffusion with a random relation classifier beside it."""
    path = tmp_path_factory.mktemp("models") / "tiny-sd"
    pipe = build("sd")
    pipe.save_pretrained(path)
    (path / "attnsteer.json").write_text(json.dumps({"defaults": {"steps": 3, "width": 16, "height": 16}}))
    save_classifier(pipe, path / "steering")
    return str(path)


def evaluation(folder: str, **changes) -> Evaluation:
    given = {"methods": "none,steer", "count": 4, "batch": 2, "guidance_scale": 3.0, "seed": 11}
    return Evaluation(**{"suite": "shapes-position", "model": folder, **given, **changes})


def records_of(evaluated: Evaluation, path, **job):
    run_job(evaluated.job(**job), path, progress=False)
    return list(read_records(path, files=True))


@pytest.fixture(scope="module")
def run(folder, tmp_path_factory):
    path = tmp_path_factory.mktemp("runs") / "all"
    methods = "best-of-equal,best-of-equal-by-classifier,none,nag,cfg,steer,both,best-of-2"
    return records_of(evaluation(folder, methods=methods, negative="blurry", count=2), path)


def without_times(record):
    methods = {name: {**result, "seconds": 0} for name, result in record.data["methods"].items()}
    return record.key, {**record.data, "methods": methods}, record.files


def test_every_method_runs_from_the_items_seed(run, folder):
    assert [record.data["item"]["seed"] for record in run] == [11, 12]
    for record in run:
        methods = record.data["methods"]
        equal = {"best-of-equal", "best-of-equal-by-classifier"}
        assert set(methods) == {"none", "nag", "cfg", "steer", "both", "best-of-2", *equal}
        assert {methods[name]["seed"] for name in ("none", "nag", "cfg", "steer", "both")} == {
            record.data["item"]["seed"]
        }
        pictures = {name: Image.open(io.BytesIO(record.files[f"{name}.png"])).tobytes() for name in methods}
        assert len({pictures[name] for name in ("none", "nag", "cfg", "steer", "both")}) == 5
        assert methods["steer"]["iterations"] > 0 == methods["none"]["iterations"]


def test_none_is_the_stock_pipeline(run, folder):
    from diffusers import StableDiffusionPipeline

    pipe = StableDiffusionPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    prompts = [record.data["item"]["prompt"] for record in run[:2]]
    generators = [torch.Generator().manual_seed(seed) for seed in (11, 12)]
    images = pipe(prompts, num_inference_steps=3, width=16, height=16, guidance_scale=3.0, generator=generators).images
    for record, image in zip(run, images, strict=False):
        assert Image.open(io.BytesIO(record.files["none.png"])).tobytes() == image.tobytes()


def test_steering_in_several_attempts(folder, tmp_path):
    """A random classifier passes nothing: both attempts are made, and the first ends where it is judged."""
    one, two = records_of(evaluation(folder, methods="steer,steer-2", count=2, batch=1, steps=4), tmp_path)
    for record in (one, two):
        once, twice = (record.data["methods"][name] for name in ("steer", "steer-2"))
        assert once["evaluations"] + 2 < twice["evaluations"] and once["iterations"] < twice["iterations"]


def test_costs_are_counted(run):
    for record in run:
        methods = record.data["methods"]
        # Three steps; classifier-free guidance doubles the rows.
        assert (methods["none"]["calls"], methods["none"]["evaluations"]) == (3, 6)
        assert methods["cfg"]["evaluations"] == 6 < methods["nag"]["evaluations"] < 7
        assert methods["cfg"]["flops"] == methods["none"]["flops"] < methods["nag"]["flops"]
        steered = methods["steer"]
        assert steered["calls"] == 3 + steered["iterations"]
        assert steered["evaluations"] > 6 + steered["iterations"]
        assert (methods["best-of-2"]["evaluations"], methods["best-of-2"]["tried"]) == (12, 2)
        assert methods["best-of-2"]["flops"] == 2 * methods["none"]["flops"]
        equal = methods["best-of-equal"]
        dearest = max(steered["evaluations"], methods["both"]["evaluations"])
        assert equal["evaluations"] - 6 < dearest <= equal["evaluations"] == 6 * equal["tried"]
        # Judged after two of three steps, by one more pass: a seed costs as much as a plain picture.
        judged = methods["best-of-equal-by-classifier"]
        assert judged["tried"] == max(2, math.ceil(dearest / 6 - 1))
        assert methods["best-of-2"]["seed"] in (record.data["item"]["seed"], record.data["item"]["seed"] + SEED_STEP)


@pytest.mark.parametrize(("budget", "tried"), [(None, 2), (2.5, 3), (1.0, 1)])
def test_best_of_equal_needs_no_other_method(folder, tmp_path, budget, tried):
    alone = evaluation(folder, methods="none,best-of-equal", count=1, batch=1, budget=budget)
    (record,) = records_of(alone, tmp_path / "run")
    none, best = (record.data["methods"][name] for name in ("none", "best-of-equal"))
    assert best["tried"] == tried and best["evaluations"] == tried * none["evaluations"]
    words = "2 plain pictures each" if budget is None else f"{budget:g} plain pictures each"
    assert words in write_report([tmp_path / "run"], tmp_path / "report")[0].read_text() or tried == 1


def test_the_models_card_fills_in_what_is_left_open(tmp_path):
    """Steps, sizes, NAG's settings and further keywords, for a pipeline other than Stable Diffusion's."""
    build("flux").save_pretrained(tmp_path / "tiny-flux")
    extra = {"max_sequence_length": 12, "true_cfg_scale": 1.5, "negative_prompt": ""}
    card = {"defaults": {"steps": 2, "width": 16, "height": 16, "nag_scale": 7.0, "nag_tau": 2.0, "extra": extra}}
    (tmp_path / "tiny-flux" / "attnsteer.json").write_text(json.dumps(card))
    own = evaluation(
        str(tmp_path / "tiny-flux"), methods="none,nag,cfg,best-of-2", sweep=("cfg.scale=4",), count=2,
        guidance_scale=None, nag_tau=3.0,
    )  # fmt: skip
    records = records_of(own, tmp_path / "run")
    resolved = records[0].data["resolved"]
    assert (resolved["steps"], resolved["width"], resolved["nag_scale"], resolved["nag_tau"]) == (2, 16, 7.0, 3.0)
    assert resolved["extra"] == extra
    pictures = {name: records[0].files[f"{name}.png"] for name in ("none", "nag", "cfg-scale-4")}
    assert len(set(pictures.values())) == 3
    # Guided by CFG, each of two steps runs the denoiser twice.
    assert records[0].data["methods"]["none"]["calls"] == records[0].data["methods"]["cfg-scale-4"]["calls"] == 4
    assert json.loads((tmp_path / "run" / "run.json").read_text())["fixed"]["settings"]["negative"] == "blurry"
    card["defaults"]["extra"] = {"max_sequence_length": 12}
    (tmp_path / "tiny-flux" / "attnsteer.json").write_text(json.dumps(card))
    with pytest.raises(ValueError, match=r"nothing at true_cfg_scale 1: set a scale above 1 \(--sweep cfg.scale=4\)"):
        run_job(evaluation(own.model, methods="cfg", guidance_scale=None).job(), tmp_path / "off", progress=False)


def test_a_sweep_makes_a_column_of_each_value(folder, tmp_path):
    swept = evaluation(
        folder, methods="none,nag", sweep=("nag.scale=1,4", "none.steps=2,3"), negative="blurry", count=2
    )
    for record in records_of(swept, tmp_path / "run"):
        methods = record.data["methods"]
        assert set(methods) == {"none-steps-2", "none-steps-3", "nag-scale-1", "nag-scale-4"}
        assert (methods["none-steps-2"]["calls"], methods["none-steps-3"]["calls"]) == (2, 3)
        # Scale 1 is off.
        plain, off, on = (record.files[f"{name}.png"] for name in ("none-steps-3", "nag-scale-1", "nag-scale-4"))
        assert plain == off != on
    with pytest.raises(ValueError, match="no setting taste"):
        run_job(evaluation(folder, methods="steer", sweep=("steer.taste=1",)).job(), tmp_path / "none", progress=False)


def test_results_do_not_depend_on_sharding_or_interruption(folder, tmp_path):
    own = evaluation(folder, methods="none,nag", negative="red", count=2, batch=1)
    once = records_of(own, tmp_path / "a", shard_size=2)
    job = own.job(shard_size=1)
    run_job(job, tmp_path / "b", progress=False)
    (tmp_path / "b" / "shard-00001-of-00002.tar").write_bytes(b"gone")
    assert run_job(job, tmp_path / "b", progress=False).done == 1
    again = list(read_records(tmp_path / "b", files=True))
    assert [without_times(record) for record in once] == [without_times(record) for record in again]


def test_clips_are_judged_frame_by_frame(tmp_path):
    build("wan").save_pretrained(tmp_path / "tiny-wan")
    size = {"steps": 2, "width": 16, "height": 16, "frames": 5, "extra": {"max_sequence_length": 16}}
    own = Evaluation(
        "shapes-negatives", model=str(tmp_path / "tiny-wan"), methods="none,nag", count=1, batch=6, judged_frames=3,
        extractor="pixels:2", guidance_scale=1.0, **size,
    )  # fmt: skip
    records = records_of(own, tmp_path / "run")
    assert len(records) == 6
    for record in records:
        with Image.open(io.BytesIO(record.files["nag.webp"])) as clip:
            assert clip.n_frames == 5 and clip.size == (16, 16)
        found = record.data["methods"]["nag"]
        assert found["details"]["frames_right"] in (0, 1 / 3, 2 / 3, 1)
        assert 0 <= found["scores"]["steadiness"] <= 1 and set(found["scores"]) == {
            "steadiness", "consistency [pixels-2x2]",
        }  # fmt: skip
    assert "data:image/webp" in write_report([tmp_path / "run"], tmp_path / "report")[0].read_text()


def test_heat_maps_of_a_runs_items_are_recorded_once(folder, tmp_path):
    records = records_of(evaluation(folder, count=2), tmp_path / "run")
    keys = [records[1].key]
    assert record_heat_maps(tmp_path / "run", keys) == 2
    assert record_heat_maps(tmp_path / "run", keys) == 0
    maps = read_heat_maps(tmp_path / "run", keys[0], "steer")
    assert list(maps) == records[1].data["item"]["labels"]
    assert all(values.shape == (32, 32) and values.min() >= 0 < values.max() for values in maps.values())
    assert read_heat_maps(tmp_path / "run", records[0].key, "steer") == {}


@pytest.mark.parametrize("suite", [name for name, suite in SUITES.items() if suite.detector == "shapes"])
def test_every_shapes_suite_runs(suite, folder, tmp_path):
    methods = "none,steer" if suite == "shapes-position" else "none,best-of-2"
    few = evaluation(folder, suite=suite, methods=methods, count=1, samples=1, batch=4)
    records = records_of(few, tmp_path / "run")
    for record in records:
        assert set(record.data["methods"]["none"]) >= {"correct", "score", "failure", "details", "boxes"}
    assert find_suite(suite).detector == "shapes" and records


def test_items_have_seeds_of_their_own_and_give_their_task_back():
    suite = find_suite("visor")
    tasks = suite_tasks(suite, None, 5, 0)
    items = items_of(suite, tasks, 4, 100)
    assert [item["seed"] for item in items] == list(range(100, 120))
    assert [item["group"] for item in items[:5]] == [0, 0, 0, 0, 1]
    assert task_of(json.loads(json.dumps(items[4]))) == replace(tasks[1], asked=dict(tasks[1].asked))


def test_prompt_files_are_used_where_there_are_any(tmp_path):
    path = tmp_path / "spatial_val.txt"
    path.write_text("a giraffe next to a lamp\na girl on the top of a frog\n")
    suite = find_suite("t2i-compbench-spatial")
    assert len(suite_tasks(suite, path, 1, 0)) == 1
    with pytest.raises(ValueError, match="in this file, not the 9000 asked for"):
        suite_tasks(suite, path, 9000, 0)
    with pytest.raises(ValueError, match="has 30 prompts, not the 31 asked for"):
        suite_tasks(find_suite("negatives"), None, 31, 0)
    with pytest.raises(ValueError, match="--prompts"):
        suite_tasks(suite, None, None, 0)
    with pytest.raises(ValueError, match="leave the prompt file out"):
        suite_tasks(find_suite("chains"), path, None, 0)


def test_a_job_can_be_sent_to_another_process(folder):
    job = pickle.loads(pickle.dumps(evaluation(folder).job()))
    assert job.items == evaluation(folder).job().items and callable(job.make)


def test_requests_that_cannot_be_met_are_refused_early(folder, tmp_path):
    with pytest.raises(ValueError, match="suite must be one of"):
        Evaluation("geneval")
    with pytest.raises(ValueError, match="nag needs a negative prompt"):
        Evaluation("sweep", methods="none,nag")
    with pytest.raises(ValueError, match="shapes-unet draws coloured shapes: use shapes-visor"):
        Evaluation("visor")
    with pytest.raises(ValueError, match="budget must be > 0"):
        Evaluation("shapes-position", budget=0)
    with pytest.raises(ValueError, match="detector must be one of .* got 'yolo'"):
        Evaluation("shapes-position", detector="yolo")
    for suite, name, value in [
        ("shapes-position", "patches", "tiled:8"), ("shapes-position", "budget", 2.0),
        ("shapes-fidelity", "samples", 2), ("shapes-fidelity", "prompts", "a.jsonl"),
        ("fidelity", "detector", "owlv2"), ("negatives", "negative", "red"),
    ]:  # fmt: skip
        with pytest.raises(ValueError, match=f"does not read {name}: leave --{name} out"):
            Evaluation(suite, "owner/model", methods="none,nag", **{name: value})
    for name, value in [("scores", "pickscore,aesthetics"), ("extractor", "resnet"), ("extractor", "pixels:x")]:
        with pytest.raises(ValueError, match=f"got '{value.rpartition(',')[2]}'"):
            Evaluation("shapes-position", methods="none", **{name: value}).job()
    with pytest.raises(ValueError, match="these are pictures: leave it out"):
        pictures = evaluation(folder, methods="none", count=1, extractor="pixels")
        run_job(pictures.job(), tmp_path / "pictures", progress=False)
    with pytest.raises(ValueError, match="batch must be >= 1"):
        Evaluation("shapes-position", batch=0)
    with pytest.raises(ValueError, match="does nothing at guidance_scale 1"):
        unguided = evaluation(folder, methods="none,cfg", negative="red", guidance_scale=1.0)
        run_job(unguided.job(), tmp_path / "unguided", progress=False)
    build("sd").save_pretrained(tmp_path / "bare")
    with pytest.raises(ValueError, match="no relation classifier"):
        run_job(evaluation(str(tmp_path / "bare")).job(), tmp_path / "run", progress=False)


def test_suites_without_a_negative_prompt_have_a_default():
    assert Evaluation("shapes-position", methods="none,nag").unwanted == "blurry"
    assert Evaluation("visor", "owner/model", methods="none,cfg").unwanted == "blurry, low quality"
    assert Evaluation("shapes-position", methods="none,nag", negative="red").unwanted == "red"
    assert Evaluation("shapes-position", methods="none,steer").unwanted is None
    assert Evaluation("shapes-negatives", methods="none,nag").unwanted is None


def test_methods_by_name():
    assert [method.name for method in parse_methods("best-of-equal, none,steer")] == ["none", "steer", "best-of-equal"]
    assert parse_methods("best-of-8")[0].best_of == 8 and parse_methods("best-of-8-by-classifier")[0].candidates == 8
    (equal, plain) = parse_methods("none,best-of-equal-by-classifier")[::-1]
    assert equal.equal and equal.picks and not equal.guided and not plain.guided
    for names, message in [
        ("none,none", "once each"), ("magic", "method must be"), ("best-of-1", "N >= 2"),
        ("", "method must be"),
    ]:  # fmt: skip
        with pytest.raises(ValueError, match=message):
            parse_methods(names)
