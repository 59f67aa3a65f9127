"""Labelled attention maps as a torch dataset, and its split by picture."""

import hashlib
import json
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float16
from safetensors import SafetensorError, safe_open
from torch import Tensor
from torch.utils.data import Dataset

from attnsteer.jobs.folder import sha256
from attnsteer.steering.shards import FIELDS, Manifest, MapBatch, ShardWriter, read_manifest

__all__ = [
    "Manifest",
    "MapBatch",
    "MapDataset",
    "ShardWriter",
    "read_manifest",
    "single",
    "split_by_source",
    "with_layers",
]


class MapDataset(Dataset[MapBatch]):  # type: ignore[misc]
    """All shards of one or several folders, read lazily from memory-mapped files.

    A list of indices gives one `MapBatch`, so it serves as dataset of a DataLoader with `collate_fn=single`.

    Args:
        folders: Sets of maps of the same model, layers, relations and size.
        layers: Names of the layers whose channels are read, in any order; None reads all.

    Raises:
        FileNotFoundError: if a folder or a listed shard is missing.
        ValueError: if the folders do not belong together or hold no samples, or a shard cannot be read.
    """

    def __init__(self, folders: Sequence[str | Path], layers: Sequence[str] | None = None) -> None:
        if not folders:
            raise ValueError("name at least one folder of maps")
        manifests = [read_manifest(folder) for folder in folders]
        for folder, manifest in zip(folders, manifests, strict=True):
            _require_alike(manifests[0], manifest, folder)
        self.manifest, self._channels = with_layers(manifests[0], layers)
        rows = [
            (Path(folder) / name, int(row["samples"]), str(row["sha256"]))
            for folder, manifest in zip(folders, manifests, strict=True)
            for name, row in sorted(manifest.shards.items())
        ]
        self._paths, self._hashes = [path for path, *_ in rows], [digest for *_, digest in rows]
        missing = [str(path) for path in self._paths if not path.is_file()]
        if missing:
            raise FileNotFoundError(f"the manifest lists {missing[0]}, which is missing; run the collection again")
        self._ends = list(accumulate(samples for _, samples, _ in rows))
        if not self._ends or not self._ends[-1]:
            raise ValueError(f"no samples in {[str(f) for f in folders]}; collect maps into them first")
        self._open: dict[int, Any] = {}
        columns = [self._columns(number) for number in range(len(self._paths))]
        self.label, self.prompt_relation, self.timestep, self.log_snr = (
            torch.cat([column[name] for column in columns]) for name in FIELDS[1:]
        )
        self.source = [source for number in range(len(self._paths)) for source in self._sources(number)]

    def __len__(self) -> int:
        return self._ends[-1]

    def verify(self) -> None:
        """Read every shard once, and compare its hash with the manifest's.

        Raises: ValueError if one differs.
        """
        for path, digest in zip(self._paths, self._hashes, strict=True):
            if sha256(path) != digest:
                raise _damaged(path, "its hash is not the manifest's")

    def __getitem__(self, index: int) -> MapBatch:
        """One sample, as a batch of one."""
        return self.__getitems__([index])

    def __getitems__(self, indices: list[int]) -> MapBatch:
        """The samples of some indices, in that order."""
        chosen = torch.tensor(indices, dtype=torch.int64)
        return MapBatch(
            maps=torch.stack([self._map(index) for index in indices]),
            label=self.label[chosen],
            prompt_relation=self.prompt_relation[chosen],
            timestep=self.timestep[chosen],
            log_snr=self.log_snr[chosen],
            source=[self.source[index] for index in indices],
        )

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_open": {}}

    def _map(self, index: int) -> Float16[Tensor, "2 channels height width"]:
        number = bisect_right(self._ends, index)
        start = self._ends[number - 1] if number else 0
        maps: Tensor = self._shard(number).get_slice("maps")[index - start]
        return maps if self._channels is None else maps[:, self._channels]

    def _shard(self, number: int) -> Any:
        if number not in self._open:
            try:
                self._open[number] = safe_open(self._paths[number], framework="pt")
            except SafetensorError as problem:
                raise _damaged(self._paths[number], str(problem)) from problem
        return self._open[number]

    def _columns(self, number: int) -> dict[str, Tensor]:
        shard = self._shard(number)
        return {name: shard.get_tensor(name) for name in FIELDS[1:]}

    def _sources(self, number: int) -> Iterator[str]:
        yield from json.loads(self._shard(number).metadata()["source"])


def _damaged(path: Path, problem: str) -> ValueError:
    return ValueError(f"{path} is damaged ({problem}): run the collection again, which makes this shard anew")


def single(batch: MapBatch) -> MapBatch:
    """Collate function for a `MapDataset`, which makes its batches itself."""
    return batch


def split_by_source(sources: Sequence[str], validation: float, seed: int = 0) -> tuple[list[int], list[int]]:
    """Indices for training and for validation; all samples of one picture fall on the same side.

    The side follows from a hash of the id, so it does not change when more pictures are collected.

    Args:
        sources: Source id of each sample.
        validation: Share of the pictures for validation, in (0, 1).
        seed: Another seed, another split.

    Raises:
        ValueError: if the share is out of range or one side would be empty.
    """
    if not 0.0 < validation < 1.0:
        raise ValueError(f"validation must be in (0, 1), got {validation}; 0.1 is the default")
    held: dict[str, bool] = {}
    for source in sources:
        if source not in held:
            digest = hashlib.sha256(f"{seed}:{source}".encode()).digest()
            held[source] = int.from_bytes(digest[:8], "big") < validation * 2**64
    train = [index for index, source in enumerate(sources) if not held[source]]
    test = [index for index, source in enumerate(sources) if held[source]]
    if not train or not test:
        raise ValueError(f"{len(held)} pictures are too few to hold out a share of {validation}; collect more maps")
    return train, test


def with_layers(manifest: Manifest, layers: Sequence[str] | None) -> tuple[Manifest, list[int] | None]:
    """The manifest of the same maps cut to some layers, and the channels that stay; None if all of them do.

    Raises: ValueError if the manifest does not tell which channels belong to which layer, or lacks a layer.
    """
    if layers is None or (manifest.layers is not None and set(layers) == set(manifest.layers)):
        return manifest, None
    told = manifest.settings.get("channel_layers")
    if told is None:
        raise ValueError(
            "these maps do not tell which channels belong to which layer (no channel_layers in manifest.json): "
            "collect them again with `attnsteer collect`"
        )
    if unknown := sorted(set(layers) - {name for name, *_ in told}):
        raise ValueError(f"no maps of the layers {unknown}; recorded are {', '.join(name for name, *_ in told)}")
    owner = [name for name, count, _ in told for _ in range(count)]
    channels = [number for number, name in enumerate(owner) if name in set(layers)]
    kept = [row for row in told if row[0] in set(layers)]
    settings = {**manifest.settings, "channel_layers": kept}
    names = tuple(row[0] for row in kept)
    return replace(manifest, channels=len(channels), layers=names, settings=settings), channels


def _require_alike(first: Manifest, other: Manifest, folder: str | Path) -> None:
    for name in ("model_id", "relations", "channels", "map_size", "layers", "normalise"):
        if getattr(first, name) != getattr(other, name):
            raise ValueError(
                f"{folder} does not go with the first folder: {name} is {getattr(other, name)!r}, "
                f"there {getattr(first, name)!r}; train on maps of one kind"
            )
