"""Sets of labelled attention maps on disk: a folder of safetensors shards and a manifest.

    manifest.json              what the maps are, and the SHA-256 and length of every finished shard
    shard-00000.safetensors    maps, label, prompt_relation, timestep, log_snr; source ids in the header

A shard counts as finished when the manifest lists it and its hash agrees, so a job that was stopped anywhere resumes
by writing the shards that are not finished. One process writes a folder.
"""

import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Float16, Int64
from safetensors.torch import save_file
from torch import Tensor

from attnsteer.jobs.folder import sha256

SCHEMA = 1
MANIFEST = "manifest.json"
FIELDS = ("maps", "label", "prompt_relation", "timestep", "log_snr")


@dataclass(frozen=True)
class MapBatch:
    """Labelled maps of some pairs of objects.

    Attributes:
        maps: Maps of subject and object, in [0, 65504]; kept in float16.
        label: True relation in the picture, index into the manifest's relations.
        prompt_relation: Relation that the prompt named, right or wrong, as an index; -1 if it named none of them.
        timestep: Step index the maps were recorded at.
        log_snr: log(signal power / noise power) there, in nats.
        source: Id of the picture each row came from. Rows of one picture share it and stay in one split.
    """

    maps: Float16[Tensor, "batch 2 channels height width"]
    label: Int64[Tensor, " batch"]
    prompt_relation: Int64[Tensor, " batch"]
    timestep: Int64[Tensor, " batch"]
    log_snr: Float[Tensor, " batch"]
    source: list[str]

    def __len__(self) -> int:
        return len(self.source)


@dataclass(frozen=True)
class Manifest:
    """What a folder of maps holds.

    Attributes:
        model_id: Hub id or folder of the model whose attention was recorded.
        relations: Vocabulary of labels and prompt relations.
        channels: Map channels.
        map_size: Side of the maps in cells.
        layers: Recorded layers in channel order; None means all of them.
        normalise: Whether each map was divided by its sum.
        settings: Anything else worth keeping (scheduler, steps, guidance, versions), plain JSON types.
        shards: File name to {"sha256": ..., "samples": ...}.
    """

    model_id: str
    relations: tuple[str, ...]
    channels: int
    map_size: int
    layers: tuple[str, ...] | None = None
    normalise: bool = False
    settings: Mapping[str, Any] = field(default_factory=dict)
    shards: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)

    def description(self) -> dict[str, Any]:
        """All but the shards, as it reads after a round trip through JSON."""
        plain: dict[str, Any] = json.loads(json.dumps({"schema": SCHEMA, **asdict(self)}))
        del plain["shards"]
        return plain


def read_manifest(folder: str | Path) -> Manifest:
    """Read a folder's manifest.

    Raises:
        FileNotFoundError: if there is none.
        ValueError: if it was written by a newer version, or is damaged.
    """
    path = Path(folder) / MANIFEST
    if not path.is_file():
        raise FileNotFoundError(f"{folder} is no set of maps: {MANIFEST} is missing; collect maps into it first")
    try:
        data = json.loads(path.read_text("utf-8"))
        schema = data.pop("schema", None)
        if schema == SCHEMA:
            layers = data["layers"]
            data["relations"], data["layers"] = tuple(data["relations"]), None if layers is None else tuple(layers)
            return Manifest(**data)
    except (ValueError, TypeError, KeyError, AttributeError) as problem:
        raise ValueError(
            f"{path} is damaged ({type(problem).__name__}: {problem}): run the collection again, it keeps its shards"
        ) from problem
    raise ValueError(f"{path} has schema {schema}, this version reads schema {SCHEMA}; collect the maps again")


class ShardWriter:
    """Writes shards into a folder, resuming where an earlier run stopped.

    Args:
        folder: Made if needed.
        manifest: Description; its `shards` are ignored.

    Raises:
        ValueError: if the folder already holds maps of another description.
    """

    def __init__(self, folder: str | Path, manifest: Manifest) -> None:
        self.folder = Path(folder)
        self.description = manifest.description()
        self._shards: dict[str, dict[str, Any]] = {}
        self.folder.mkdir(parents=True, exist_ok=True)
        if (self.folder / MANIFEST).exists():
            earlier = read_manifest(self.folder)
            there = earlier.description()
            differing = [key for key, value in self.description.items() if there[key] != value]
            if differing:
                raise ValueError(
                    f"{folder} holds maps of another kind ({', '.join(differing)} differ); use an empty folder"
                )
            self._shards = {name: dict(row) for name, row in earlier.shards.items() if self._verified(name, row)}
        self._write_manifest()

    def finished(self) -> list[int]:
        """Numbers of the shards that are complete and verified, ascending."""
        return sorted(int(name.removeprefix("shard-").removesuffix(".safetensors")) for name in self._shards)

    def write(self, number: int, batch: MapBatch) -> None:
        """Write one shard: to a temporary name, then renamed, then entered in the manifest.

        Raises:
            ValueError: if the batch does not fit the manifest.
        """
        self._check(batch)
        name = f"shard-{number:05d}.safetensors"
        temporary = self.folder / f".{name}.{os.getpid()}.tmp"
        tensors = {field: getattr(batch, field).contiguous().cpu() for field in FIELDS}
        save_file(tensors, temporary, metadata={"source": json.dumps(batch.source)})
        digest = sha256(temporary)
        temporary.replace(self.folder / name)
        self._shards[name] = {"sha256": digest, "samples": len(batch)}
        self._write_manifest()

    def _verified(self, name: str, row: Mapping[str, Any]) -> bool:
        path = self.folder / name
        return path.is_file() and sha256(path) == row["sha256"]

    def _write_manifest(self) -> None:
        text = json.dumps({**self.description, "shards": dict(sorted(self._shards.items()))}, indent=2)
        temporary = self.folder / f".{MANIFEST}.{os.getpid()}.tmp"
        temporary.write_text(text + "\n", "utf-8")
        temporary.replace(self.folder / MANIFEST)

    def _check(self, batch: MapBatch) -> None:
        side, relations = self.description["map_size"], len(self.description["relations"])
        shape = (len(batch), 2, self.description["channels"], side, side)
        if tuple(batch.maps.shape) != shape or batch.maps.dtype != torch.float16:
            raise ValueError(
                f"maps must be float16 of shape {shape}, got {batch.maps.dtype} {tuple(batch.maps.shape)}"
            )
        if not bool(batch.maps.isfinite().all()):
            raise ValueError("maps hold infinite or missing values; record them in float32 before they become float16")
        for name in FIELDS[1:]:
            if tuple(getattr(batch, name).shape) != (len(batch),):
                raise ValueError(f"{name} must have shape ({len(batch)},), got {tuple(getattr(batch, name).shape)}")
        for name, least in (("label", 0), ("prompt_relation", -1)):
            values = getattr(batch, name)
            if len(batch) and not bool(((values >= least) & (values < relations)).all()):
                raise ValueError(f"{name} must be in [{least}, {relations - 1}]")
