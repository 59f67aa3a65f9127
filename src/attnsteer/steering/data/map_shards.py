"""Shards of a collection job as safetensors files, and the manifest of the folder they end up in.

The bytes of a shard depend on its maps alone, so they carry one metadata entry (their order is not fixed): the source
ids. What the maps are stands in a tensor of bytes, `about`.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import safe_open
from safetensors.torch import save

from attnsteer.steering.shards import FIELDS, MANIFEST, Manifest, MapBatch, read_manifest

SUFFIX: Final = ".safetensors"
_OWN: Final = ("versions", "text_length")
"""Settings in which shards of one folder may differ: a job may go on after an upgrade, and some pipelines pad to the
longest prompt. A text length that differs is none."""


def pack_maps(content: tuple[MapBatch, Manifest], header: Mapping[str, Any]) -> bytes:
    """The bytes of a shard.

    Args:
        content: Maps, and what they are.
        header: Of the job; its versions are kept.
    """
    batch, manifest = content
    about = manifest.description()
    about["settings"] = {**about["settings"], "versions": header.get("versions", {})}
    tensors = {name: getattr(batch, name).contiguous().cpu() for name in FIELDS}
    text = json.dumps(about, sort_keys=True, ensure_ascii=False).encode()
    tensors["about"] = torch.frombuffer(bytearray(text), dtype=torch.uint8)
    return bytes(save(tensors, {"source": json.dumps(batch.source)}))


def read_about(path: Path) -> dict[str, Any]:
    """What the maps of a shard are: a manifest's fields without the shards."""
    with safe_open(path, framework="pt") as shard:
        about: dict[str, Any] = json.loads(bytes(shard.get_tensor("about").tolist()))
        return about


def write_manifest(folder: str | Path) -> Manifest | None:
    """Write `manifest.json` over the finished shards of a collection job; None if there is none yet.

    Raises: ValueError if shards of different kinds are in the folder.
    """
    root = Path(folder)
    rows: dict[str, dict[str, Any]] = {}
    about: dict[str, Any] = {}
    for seal in sorted(root.glob(f"shard-*{SUFFIX}.sha256")):
        path = root / seal.name.removesuffix(".sha256")
        if not path.is_file():
            continue
        own = read_about(path)
        if about and _kind(own) != _kind(about):
            raise ValueError(
                f"{path} holds maps of another kind than the shards before it: the model or the library has changed "
                "since the job began; collect into a new folder"
            )
        about = about or own
        if own["settings"].get("text_length") != about["settings"].get("text_length"):
            about["settings"]["text_length"] = None
        with safe_open(path, framework="pt") as shard:
            samples = shard.get_slice("label").get_shape()[0]
        rows[path.name] = {"sha256": seal.read_text("utf-8").split()[0], "samples": samples}
    if not rows:
        return None
    temporary = root / f".{MANIFEST}.{os.getpid()}.tmp"
    temporary.write_text(json.dumps({**about, "shards": rows}, indent=2, ensure_ascii=False) + "\n", "utf-8")
    temporary.replace(root / MANIFEST)
    return read_manifest(root)


def _kind(about: Mapping[str, Any]) -> dict[str, Any]:
    settings = {name: value for name, value in about["settings"].items() if name not in _OWN}
    return {**about, "settings": settings}
