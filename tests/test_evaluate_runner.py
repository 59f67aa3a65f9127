"""Whole evaluations on tiny random stock pipelines: the same seeds, honest costs, resumable, readable."""

import io
import json
import pickle
from dataclasses import replace

import pytest
import torch
from PIL import Image

from attnsteer.attention import text_layers
from attnsteer.evaluate.cost import measured, operations
from attnsteer.evaluate.methods import parse_methods
from attnsteer.evaluate.runner import SEED_STEP, Evaluation
from attnsteer.evaluate.suites import SUITES, find_suite, items_of, suite_tasks, task_of
from attnsteer.families import family_of
from attnsteer.jobs import read_records, run_job
from attnsteer.steering.classifier import RelationClassifier
from attnsteer.steering.dataset import Manifest
from attnsteer.steering.train import default_classifier
from attnsteer.world.scene import RELATIONS
from tiny import build


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny Stable Diffusion with a random relation classifier beside it."""
    path = tmp_path_factory.mktemp("models") / "tiny-sd"
    pipe = build("sd")
    pipe.save_pretrained(path)
    (path / "attnsteer.json").write_text(json.dumps({"defaults": {"steps": 3, "width": 16, "height": 16}}))
    channels = sum(layer.module.heads for layer in text_layers(pipe.unet, family_of(pipe.unet)))
    torch.manual_seed(0)
    classifier = RelationClassifier(default_classifier(Manifest("tiny", RELATIONS, channels, 4)))
    classifier.save_pretrained(path / "steering")
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
    methods = "best-of-equal,none,nag,cfg,steer,both,best-of-2"
    return records_of(evaluation(folder, methods=methods, negative="blurry"), path)


def without_times(record):
    methods = {name: {**result, "seconds": 0} for name, result in record.data["methods"].items()}
    return record.key, {**record.data, "methods": methods}, record.files


def test_every_method_runs_from_the_items_seed(run, folder):
    assert [record.data["item"]["seed"] for record in run] == [11, 12, 13, 14]
    for record in run:
        methods = record.data["methods"]
        assert set(methods) == {"none", "nag", "cfg", "steer", "both", "best-of-2", "best-of-equal"}
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


def test_costs_are_counted(run):
    for record in run:
        methods = record.data["methods"]
        # Three steps; classifier-free guidance doubles the rows.
        assert (methods["none"]["calls"], methods["none"]["evaluations"]) == (3, 6)
        assert methods["cfg"]["evaluations"] == methods["nag"]["evaluations"] == 6
        steered = methods["steer"]
        assert steered["calls"] == 3 + steered["iterations"]
        # Each iteration runs the conditional row forward and backward.
        assert steered["evaluations"] == 6 + 2 * steered["iterations"]
        assert (methods["best-of-2"]["evaluations"], methods["best-of-2"]["tried"]) == (12, 2)
        equal = methods["best-of-equal"]
        dearest = max(steered["evaluations"], methods["both"]["evaluations"])
        assert equal["evaluations"] - 6 < dearest <= equal["evaluations"] == 6 * equal["tried"]
        if record is not run[0]:
            assert steered["flops"] is None
        assert methods["best-of-2"]["seed"] in (record.data["item"]["seed"], record.data["item"]["seed"] + SEED_STEP)


def test_operations_are_counted_on_the_first_item(run):
    flops = {name: result["flops"] for name, result in run[0].data["methods"].items()}
    assert flops["none"] == flops["cfg"] < flops["nag"] < 1.1 * flops["none"] + 1e6
    assert flops["best-of-2"] == 2 * flops["none"]
    assert flops["steer"] > flops["none"]


def test_results_do_not_depend_on_sharding_or_interruption(folder, tmp_path):
    once = records_of(evaluation(folder), tmp_path / "a", shard_size=4)
    job = evaluation(folder).job(shard_size=2)
    run_job(job, tmp_path / "b", progress=False)
    (tmp_path / "b" / "shard-00001-of-00002.tar").write_bytes(b"gone")
    assert run_job(job, tmp_path / "b", progress=False).done == 1
    again = list(read_records(tmp_path / "b", files=True))
    assert [without_times(record) for record in once] == [without_times(record) for record in again]


@pytest.mark.parametrize("suite", [name for name in SUITES if name.startswith("shapes")])
def test_every_shapes_suite_runs(suite, folder, tmp_path):
    # The tiny text encoder reads 24 tokens, too few to steer a chain.
    methods = "none,best-of-2" if suite == "shapes-chains" else "none,steer"
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
        Evaluation("shapes-position", methods="none,nag")
    with pytest.raises(ValueError, match="batch must be >= 1"):
        Evaluation("shapes-position", batch=0)
    with pytest.raises(ValueError, match="does nothing at guidance_scale 1"):
        unguided = evaluation(folder, methods="none,cfg", negative="red", guidance_scale=1.0)
        run_job(unguided.job(), tmp_path / "unguided", progress=False)
    build("sd").save_pretrained(tmp_path / "bare")
    with pytest.raises(ValueError, match="no relation classifier"):
        run_job(evaluation(str(tmp_path / "bare")).job(), tmp_path / "run", progress=False)


def test_methods_by_name():
    assert [method.name for method in parse_methods("best-of-equal, none,steer")] == ["none", "steer", "best-of-equal"]
    assert parse_methods("best-of-8")[0].best_of == 8
    for names, message in [
        ("none,none", "once each"), ("magic", "method must be"), ("best-of-1", "N >= 2"),
        ("none,best-of-equal", "name none and steer"), ("", "method must be"),
    ]:  # fmt: skip
        with pytest.raises(ValueError, match=message):
            parse_methods(names)


def test_operations_by_hand():
    layer, x = torch.nn.Linear(3, 5), torch.zeros(7, 3, requires_grad=True)
    assert operations(lambda: layer(x)) == 2 * 7 * 3 * 5
    # Backward to the input and to the weight.
    assert operations(lambda: layer(x).sum().backward()) == 3 * 2 * 7 * 3 * 5
    assert operations(lambda: torch.autograd.grad(layer(x).sum(), x)) == 2 * 2 * 7 * 3 * 5
    q, k = torch.zeros(1, 2, 6, 8), torch.zeros(1, 2, 4, 8)
    attention = torch.nn.functional.scaled_dot_product_attention
    assert operations(lambda: attention(q, k, k)) == 2 * (2 * 2 * 6 * 4 * 8)


def test_cost_counts_backward_passes_twice_and_cut_off_calls_not_at_all():
    layer = torch.nn.Linear(3, 3)
    with measured(layer) as cost, torch.no_grad():
        layer(torch.zeros(5, 3))
        layer(torch.zeros(5, 3))
    assert (cost.calls, cost.evaluations) == (2, 10) and cost.seconds > 0

    def stop(module, args):
        raise InterruptedError

    with measured(layer) as cost:
        layer(torch.zeros(4, 3))
        handle = layer.register_forward_pre_hook(stop)
        with torch.no_grad(), pytest.raises(InterruptedError):
            layer(torch.zeros(4, 3))
        handle.remove()
    assert (cost.calls, cost.evaluations) == (1, 8)
    assert not layer._forward_hooks and not layer._forward_pre_hooks
