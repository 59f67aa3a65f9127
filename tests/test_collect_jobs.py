"""Collections as resumable jobs, on tiny stock pipelines saved to disk and small data sets in their own formats."""

import hashlib
import json
import os
import pickle
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from attnsteer.cli import main
from attnsteer.cli.collect import settings_of
from attnsteer.compare.request import RequestError
from attnsteer.steering.data import collection
from attnsteer.steering.data.collection import collect, collection_job, load_picture
from attnsteer.steering.data.items import items_of
from attnsteer.steering.data.map_shards import pack_maps, write_manifest
from attnsteer.steering.data.settings import DATA_PRESETS, CollectionSettings
from attnsteer.steering.dataset import Manifest, MapDataset, read_manifest, with_layers
from attnsteer.world.scene import RELATIONS as SHAPES_RELATIONS
from attnsteer.world.steering import COLLECTED, MAP_SIZE
from attnsteer.world.text import build_text_encoder, build_tokenizer
from attnsteer.world.unet import UNetSize, assemble_pipeline, build_unet
from blobs import RELATIONS as BLOB_RELATIONS
from blobs import blob_maps
from datasets_on_disk import graph, thing, write_gqa, write_orm
from tiny import build

pytestmark = pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")

LEFT, RIGHT = "to the left of", "to the right of"
HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Tiny pipelines, a small GQA and a small reward-model set."""
    root = tmp_path_factory.mktemp("collect")
    for name in ("sd", "flux"):
        build(name).save_pretrained(root / name)
    graphs = {}
    for number in range(16):
        first, second = ((10, 40), (70, 40)) if number % 2 else ((40, 10), (40, 70))
        words = (LEFT, RIGHT) if number % 2 else ("above", "below")
        graphs[str(number)] = graph(
            {
                "1": thing("dog", *first, 20, 20, {"2": words[0]}, ["white"]),
                "2": thing("red ball", *second, 20, 20, {"1": words[1]}),
            }
        )
    write_gqa(root / "gqa", graphs)
    write_orm(root / "orm", [(f"a photo of a dog {word} a cat", "yes") for word in ("left of", "above") * 6])
    return root


def settings(folder, **changes):
    given = {
        "source": "gqa", "model": str(folder / "sd"), "data": str(folder / "gqa"), "count": 2, "image_size": 16,
        "num_inference_steps": 4, "record": (1, 2), "map_size": 4, "batch": 3,
    }  # fmt: skip
    return CollectionSettings(**{**given, **changes})


def hashes(path):
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in path.glob("*.safetensors")}


@pytest.fixture(scope="module")
def collected(folder):
    outcome = collect(settings(folder), folder / "maps", shard_size=3, progress=False)
    assert outcome.complete and outcome.shards == 3
    return folder / "maps"


def test_a_collection_can_be_trained_on(collected, folder):
    dataset = MapDataset([collected])
    assert len(dataset) == 8 * 2 * 2  # two triplets of four relations, two prompts, two steps
    assert set(dataset.source) <= {str(number) for number in range(16)}
    manifest = dataset.manifest
    told = manifest.settings
    assert manifest.relations == (LEFT, RIGHT, "above", "below") and manifest.model_id == str(folder / "sd")
    assert manifest.channels == sum(count for _, count, _ in told["channel_layers"]) == dataset[0].maps.shape[2]
    assert (told["steps"], told["num_inference_steps"], told["scheduler"]) == ([1, 2], 4, "DDIMScheduler")
    assert (told["method"], told["text_length"], told["pipeline"]) == ("noise", 24, "StableDiffusionPipeline")
    assert {"python", "torch", "diffusers"} <= set(told["versions"]) and told["revision"] is None
    items = [json.loads(line) for line in (collected / "items.jsonl").read_text("utf-8").splitlines()]
    assert told["prompts"] == "those of each picture are in items.jsonl" and len(items) == 8
    for item in items:
        names = (item["subject"], item["object"])
        true, wrong = (
            prompt.removeprefix(f"A {names[0]} ").removesuffix(f" a {names[1]}") for prompt in item["prompts"]
        )
        assert true == item["relation"] != wrong and wrong in manifest.relations
    counts = torch.bincount(dataset.label)
    assert counts.tolist() == [8, 8, 8, 8]
    right = dataset.label == dataset.prompt_relation
    assert right.double().mean() == 0.5  # dual prompts


def test_channels_are_those_of_their_layers(collected, folder):
    """A layer's channels, cut out of all, are what recording this layer alone gives."""
    told = read_manifest(collected).settings["channel_layers"]
    name = told[-1][0]
    collect(settings(folder, layers=(name,)), folder / "one layer", shard_size=3, progress=False)
    alone, cut = MapDataset([folder / "one layer"]), MapDataset([collected], [name])
    assert cut.manifest.channels == alone.manifest.channels == told[-1][1] < read_manifest(collected).channels
    assert cut.manifest.layers == alone.manifest.layers == (name,)
    rows = list(range(len(alone)))
    torch.testing.assert_close(
        cut.__getitems__(rows).maps.float(), alone.__getitems__(rows).maps.float(), rtol=2e-3, atol=1e-4
    )
    with pytest.raises(ValueError, match="no maps of the layers"):
        with_layers(read_manifest(collected), ["nowhere"])


def test_a_stopped_collection_goes_on_with_the_same_bytes(collected, folder, monkeypatch):
    stock, seen = collection._Bench.shard, []

    def failing(self, items):
        seen.append(items[0]["id"])
        if len(seen) == 2:
            raise RuntimeError("out of memory")
        return stock(self, items)

    monkeypatch.setattr(collection._Bench, "shard", failing)
    with pytest.raises(RuntimeError, match="out of memory"):
        collect(settings(folder), folder / "stopped", shard_size=3, progress=False)
    assert list(read_manifest(folder / "stopped").shards) == ["shard-00000-of-00003.safetensors"]
    outcome = collect(settings(folder), folder / "stopped", shard_size=3, progress=False)
    assert outcome.complete and outcome.done == 2
    assert hashes(folder / "stopped") == hashes(collected)
    assert read_manifest(folder / "stopped") == read_manifest(collected)
    with pytest.raises(ValueError, match="a run with other .*settings"):
        collect(settings(folder, seed=1), folder / "stopped", shard_size=3, progress=False)


def test_two_processes_give_the_same_shards_and_the_same_classifier(collected, folder):
    """Collection over torchrun ranks; then training on both with gradients averaged, against one process."""
    torchrun = Path(sys.executable).with_name("torchrun")
    program = [str(torchrun), "--standalone", "--nproc-per-node", "2", str(HERE / "collect_program.py")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([*program, str(folder)], check=True, timeout=300, env=environment)
    assert hashes(folder / "ranks" / "maps") == hashes(collected)
    assert read_manifest(folder / "ranks" / "maps") == read_manifest(collected)
    from attnsteer.steering.classifier import RelationClassifier
    from collect_program import trained

    alone = trained(collected, folder / "alone")
    both = RelationClassifier.from_pretrained(folder / "ranks" / "classifier")
    for (name, one), two in zip(alone.state_dict().items(), both.state_dict().values(), strict=True):
        torch.testing.assert_close(one, two, rtol=1e-3, atol=1e-4, msg=name)
    assert alone.metrics["confusion"] == both.metrics["confusion"]


@pytest.mark.parametrize(
    ("changes", "length"),
    [
        ({"source": "orm", "data": "orm", "method": "ddim", "relations": (LEFT, "above"), "count": 1}, 24),
        ({"model": "flux", "method": "rf", "text_length": 16, "guidance_scale": 0.0, "squash": True}, 16),
    ],
)
def test_other_sources_and_methods(folder, changes, length, tmp_path, monkeypatch):
    monkeypatch.setattr(collection, "_method", lambda name, stock=collection._method: replace(stock(name), min_psnr=0))
    changes = {name: str(folder / value) if name in ("data", "model") else value for name, value in changes.items()}
    collect(settings(folder, **changes), tmp_path / "maps", progress=False)
    dataset = MapDataset([tmp_path / "maps"])
    assert dataset.manifest.settings["text_length"] == length
    assert dataset.manifest.settings["method"] == changes["method"] and len(dataset) >= 4


def test_samples_are_labelled_by_a_detector(folder, tmp_path):
    nouns = ("red circle", "blue square", "green triangle")
    given = settings(
        folder, source="samples", data=None, nouns=nouns, detector="shapes", relations=(LEFT, "above", "none"),
        count=5, batch=2, image_size=16,
    )  # fmt: skip
    collect(given, tmp_path / "maps", progress=False)
    dataset = MapDataset([tmp_path / "maps"])
    assert dataset.manifest.settings["detector"] == "shapes (exact)" and len(dataset) == 5 * 2
    assert len(read_manifest(tmp_path / "maps").shards) == 3
    assert set(dataset.prompt_relation.tolist()) <= {-1, 0, 1}


def test_the_shapes_world_needs_no_data(tmp_path):
    torch.manual_seed(0)
    tokenizer = build_tokenizer()
    encoder = build_text_encoder(tokenizer, width=16).eval()
    unet = build_unet(UNetSize(channels=(8, 8, 16), heads=2), 16).eval()
    assemble_pipeline(unet, tokenizer, encoder).save_pretrained(tmp_path / "model")
    given = settings_of("shapes", None, {"model": str(tmp_path / "model"), "count": 6, "batch": 2}, [])
    collect(given, tmp_path / "maps", progress=False)
    dataset = MapDataset([tmp_path / "maps"])
    manifest = dataset.manifest
    assert len(manifest.shards) == 3 and manifest.relations == SHAPES_RELATIONS and manifest.map_size == MAP_SIZE
    rendered = [source for source in dataset.source if source.startswith("r")]
    assert len(set(rendered)) == 2 and len(rendered) == 2 * 2 * len(COLLECTED[1::2])
    assert sum(count for _, count, _ in manifest.settings["channel_layers"]) == manifest.channels
    held_out = items_of(replace(given, split="test"))
    assert {item["part"] for item in held_out} == {"sampled"}
    assert not {item["seed"] for item in held_out} & {item["seed"] for item in items_of(given)}


def test_a_collection_travels_to_other_processes(folder):
    job = collection_job(settings(folder))
    again = pickle.loads(pickle.dumps(job))
    assert again.items == job.items and again.make == job.make and again.packing is job.packing


def test_shards_of_one_folder_are_of_one_kind(tmp_path):
    """They may differ in versions, and in text length, which then is none."""
    batch = blob_maps(3)
    told = {"channel_layers": [["a", 6, 0]], "text_length": 12}
    first = Manifest("m", BLOB_RELATIONS, 6, 8, settings=told)

    def write(number, manifest, versions):
        content = pack_maps((batch, manifest), {"versions": versions})
        (tmp_path / f"shard-0000{number}-of-00002.safetensors").write_bytes(content)
        seal = f"{hashlib.sha256(content).hexdigest()}  x\n"
        (tmp_path / f"shard-0000{number}-of-00002.safetensors.sha256").write_text(seal)

    assert write_manifest(tmp_path) is None
    write(0, first, {"torch": "1"})
    assert write_manifest(tmp_path).settings["text_length"] == 12
    write(1, replace(first, settings={**told, "text_length": 14}), {"torch": "2"})
    merged = write_manifest(tmp_path)
    assert merged == read_manifest(tmp_path) and merged.settings["text_length"] is None
    assert merged.settings["versions"] == {"torch": "1"} and len(MapDataset([tmp_path])) == 6
    write(1, replace(first, channels=5), {})
    with pytest.raises(ValueError, match="maps of another kind"):
        write_manifest(tmp_path)


def test_pictures_are_cut_or_squashed(tmp_path):
    wide = Image.new("RGB", (60, 20), (255, 0, 0))
    wide.paste((0, 0, 255), (20, 0, 40, 20))
    wide.save(tmp_path / "wide.png")
    cut = load_picture(tmp_path / "wide.png", 10, squash=False)
    squashed = load_picture(tmp_path / "wide.png", 12, squash=True)
    assert cut.shape == (3, 10, 10) and bool((cut[0] < 0.2).all()) and bool((cut[2] > 0.8).all())
    assert squashed[0, 6, 1] > 0.9 and squashed[2, 6, 6] > 0.9 and squashed[0, 6, 10] > 0.9


def test_presets_are_the_published_collections():
    rows = {
        name: (p.settings["method"], p.settings["num_inference_steps"], p.settings["record"], p.settings["image_size"])
        for name, p in DATA_PRESETS.items()
    }
    later = (5, 10, 15, 20, 25, 49)
    assert rows == {
        "sd14": ("ddim", 50, later, 512), "sd2": ("ddim", 50, later, 512), "flux-schnell": ("rf", 4, (1, 3), 256),
        "flux-dev": ("rf", 50, later, 512),
    }  # fmt: skip
    given = settings_of("gqa", "flux-dev", {"data": "x", "wordnet": "y", "seed": 3}, [])
    assert (given.text_length, given.guidance_scale, given.squash, given.normalise) == (512, 0.0, True, True)
    assert given.relations == ("above", "below", "is", LEFT, RIGHT) and given.published and given.seed == 3
    sampled = settings_of("samples", "sd2", {}, [])
    assert sampled.guidance_scale is None and sampled.image_size == 512
    assert not sampled.published and sampled.method == "noise" and "is" not in sampled.relations


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"source": "coco"}, "source must be one of gqa, orm, samples, shapes"),
        ({"data": None}, "pass --data FOLDER"),
        ({"method": "magic"}, "method must be one of noise, ddim, rf"),
        ({"published": True}, "pass --wordnet FOLDER"),
        ({"batch": 0}, "batch must be >= 1"),
        ({"relations": (LEFT,)}, "at least two relations"),
    ],
)
def test_settings_that_do_not_fit_are_errors(folder, given, message):
    with pytest.raises(ValueError, match=message):
        settings(folder, **given)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"record": (4,)}, r"steps to record must be in \[0, 3\]"),
        ({"text_length": 5}, "takes no max_sequence_length"),
        ({"count": 50}, "take fewer with --count"),
        ({"data": "nowhere"}, "there is no folder nowhere"),
        ({"relations": ("near", "behind")}, "no triplets with behind, near: leave them out"),
    ],
)
def test_collections_that_cannot_be_are_errors(folder, given, message, tmp_path):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        collect(settings(folder, **given), tmp_path / "maps", progress=False)


def test_the_command(folder, tmp_path):
    line = [
        "collect", "gqa", "--model", str(folder / "sd"), "--data", str(folder / "gqa"), "--count", "1", "--size", "16",
        "--steps", "4", "--record", "1,2", "--map-size", "4", "--batch", "4", "-o", str(tmp_path / "maps"), "--json",
    ]  # fmt: skip
    result = CliRunner().invoke(main, line)
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout) == {
        "maps": str(tmp_path / "maps"), "shards": 1, "finished": 1, "samples": 16,
    }  # fmt: skip
    for change, message in (
        (["--preset", "sd9"], "preset must be one of sd14, sd2, flux-schnell, flux-dev"),
        (["--record", "one"], "--record takes step numbers"),
        (["--split", "half"], "split must be one of train, val, test"),
    ):
        refused = CliRunner().invoke(main, [*line[:-3], "-o", str(tmp_path / "other"), *change])
        assert refused.exit_code == 2 and message in refused.stderr
    with pytest.raises(RequestError):
        settings_of("gqa", None, {}, [])
