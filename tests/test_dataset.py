import json
import pickle
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from attnsteer.steering.dataset import Manifest, MapDataset, ShardWriter, read_manifest, split_by_source
from blobs import RELATIONS, blob_maps, write_blobs

MANIFEST = Manifest(
    model_id="blobs", relations=RELATIONS, channels=6, map_size=8, layers=("down", "up"), settings={"steps": 20}
)


def test_reads_back_what_was_written(tmp_path: Path):
    first, second = blob_maps(5, seed=1), blob_maps(7, seed=2)
    dataset = MapDataset([write_blobs(tmp_path, first, second)])
    assert len(dataset) == 12
    batch = dataset.__getitems__([11, 0, 5, 4])
    assert batch.source == ["2-6", "1-0", "2-0", "1-4"]
    for name in ("maps", "label", "prompt_relation", "timestep", "log_snr"):
        expected = [
            getattr(second, name)[6],
            getattr(first, name)[0],
            getattr(second, name)[0],
            getattr(first, name)[4],
        ]
        assert torch.equal(getattr(batch, name), torch.stack(expected))
    assert torch.equal(dataset[3].maps[0], first.maps[3])
    assert torch.equal(pickle.loads(pickle.dumps(dataset))[3].maps, dataset[3].maps)


def test_resumes_with_verified_shards_only(tmp_path: Path):
    writer = ShardWriter(tmp_path, MANIFEST)
    for number in (0, 1, 3):
        writer.write(number, blob_maps(4, seed=number))
    assert read_manifest(tmp_path).settings == {"steps": 20} and writer.finished() == [0, 1, 3]
    spoilt = tmp_path / "shard-00001.safetensors"
    spoilt.write_bytes(spoilt.read_bytes()[:-1] + b"\x01")
    (tmp_path / "shard-00003.safetensors").unlink()
    (tmp_path / "shard-00004.safetensors").write_bytes(b"written, but the run stopped ahead of the manifest")
    again = ShardWriter(tmp_path, MANIFEST)
    assert again.finished() == [0]
    assert len(MapDataset([tmp_path])) == 4
    again.write(1, blob_maps(4, seed=1))
    assert ShardWriter(tmp_path, MANIFEST).finished() == [0, 1]
    assert not list(tmp_path.glob(".*"))


def test_folders_do_not_mix_kinds(tmp_path: Path):
    ShardWriter(tmp_path / "a", MANIFEST).write(0, blob_maps(4))
    with pytest.raises(ValueError, match="layers differ"):
        ShardWriter(tmp_path / "a", replace(MANIFEST, layers=("up",)))
    ShardWriter(tmp_path / "b", replace(MANIFEST, model_id="other")).write(0, blob_maps(4))
    with pytest.raises(ValueError, match="model_id"):
        MapDataset([tmp_path / "a", tmp_path / "b"])
    ShardWriter(tmp_path / "c", MANIFEST).write(0, blob_maps(3))
    assert len(MapDataset([tmp_path / "a", tmp_path / "c"])) == 7


def test_errors(tmp_path: Path):
    writer, batch = ShardWriter(tmp_path, MANIFEST), blob_maps(4)
    for changes, message in (
        ({"maps": batch.maps.float()}, "float16"),
        ({"maps": batch.maps[:, :, :5]}, "float16 of shape"),
        ({"maps": batch.maps * torch.inf}, "infinite or missing"),
        ({"label": batch.label + 4}, "label must be in"),
        ({"prompt_relation": batch.label - 9}, "prompt_relation must be in"),
        ({"timestep": batch.timestep[:2]}, "timestep must have shape"),
    ):
        with pytest.raises(ValueError, match=message):
            writer.write(0, replace(batch, **changes))
    with pytest.raises(ValueError, match="no samples"):
        MapDataset([tmp_path])
    with pytest.raises(FileNotFoundError, match=r"manifest\.json is missing"):
        MapDataset([tmp_path / "absent"])
    writer.write(0, batch)
    (tmp_path / "shard-00000.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match="run the collection again"):
        MapDataset([tmp_path])
    data = json.loads((tmp_path / "manifest.json").read_text())
    (tmp_path / "manifest.json").write_text(json.dumps({**data, "schema": 99}))
    with pytest.raises(ValueError, match="schema 99"):
        read_manifest(tmp_path)


def test_damaged_files_are_named(tmp_path: Path):
    write_blobs(tmp_path, blob_maps(4), blob_maps(5))
    first, second = sorted(tmp_path.glob("*.safetensors"))
    MapDataset([tmp_path]).verify()
    whole = second.read_bytes()
    second.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
    spoilt = MapDataset([tmp_path])
    with pytest.raises(ValueError, match=f"{second} is damaged .its hash is not the manifest's.: run the collection"):
        spoilt.verify()
    first.write_bytes(first.read_bytes()[:100])
    with pytest.raises(ValueError, match=f"{first} is damaged .*: run the collection again"):
        MapDataset([tmp_path])
    for text in ("{", "[]", '{"schema": 1}', '{"schema": 1, "relations": [], "layers": null, "novelty": 1}'):
        (tmp_path / "manifest.json").write_text(text)
        with pytest.raises(ValueError, match=r"manifest\.json is damaged"):
            read_manifest(tmp_path)


def test_split_keeps_pictures_together_and_is_stable():
    sources = [f"picture {n // 3}" for n in range(3000)]
    train, held = split_by_source(sources, 0.2)
    assert sorted(train + held) == list(range(3000))
    assert not {sources[i] for i in train} & {sources[i] for i in held}
    assert 0.16 < len(held) / 3000 < 0.24
    _, later = split_by_source([*sources, "another"], 0.2)
    assert set(held) <= set(later)
    assert split_by_source(sources, 0.2, seed=1)[1] != held
    with pytest.raises(ValueError, match="too few"):
        split_by_source(["one"], 0.5)
    with pytest.raises(ValueError, match=r"in \(0, 1\)"):
        split_by_source(sources, 0)
