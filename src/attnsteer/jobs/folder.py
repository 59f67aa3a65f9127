"""The folder of a run: what was asked (`run.json`, `items.jsonl`) and the finished shards with their SHA-256.

    run.json                            name, settings, versions, number of items, shard size
    items.jsonl                         the items in order
    shard-00003-of-00020.tar            a finished shard; `tar xf` shows its pictures
    shard-00003-of-00020.tar.sha256     its hash, as `sha256sum --check` reads it; the shard is finished with it

Every file appears at once under its final name, so that whoever is killed leaves no half file behind.
"""

import hashlib
import json
import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

from attnsteer.jobs.shards import Record, unpack

SCHEMA: Final = 1
RUN: Final = "run.json"
ITEMS: Final = "items.jsonl"


class RunFolder:
    """A run's folder.

    Args:
        path: The folder; need not exist yet.
        suffix: Of the shards' file names.
    """

    def __init__(self, path: str | Path, suffix: str = ".tar") -> None:
        self.path, self.suffix = Path(path), suffix

    def open(self, description: Mapping[str, Any], items: Sequence[Mapping[str, Any]]) -> None:
        """Begin a run, or go on with it.

        Args:
            description: What is run, plain JSON types; "fixed" is the part that must agree with an earlier beginning.
            items: The items in order.

        Raises: ValueError if the folder holds a run of something else, or files that are no run.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        target = self.path / RUN
        if not target.exists():
            there = [file.name for file in self.path.iterdir() if not file.name.startswith(".") and file.name != ITEMS]
            if there and not target.exists():
                raise ValueError(f"{self.path} is no run but holds {there[0]!r}; choose an empty or new folder")
            lines = "".join(json.dumps(item, ensure_ascii=False, sort_keys=True) + "\n" for item in items)
            self._write(ITEMS, lines.encode())
            # Of several processes that begin at once, the first one to link its description wins.
            temporary = self._temporary(RUN)
            temporary.write_text(json.dumps({"schema": SCHEMA, **description}, indent=2, ensure_ascii=False) + "\n")
            try:
                os.link(temporary, target)
            except FileExistsError:
                pass
            finally:
                temporary.unlink()
        there, wanted = self.description()["fixed"], json.loads(json.dumps(description["fixed"]))
        differing = sorted(name for name in {*there, *wanted} if there.get(name) != wanted.get(name))
        if differing:
            raise ValueError(
                f"{self.path} holds a run with other {', '.join(differing)}; repeat its settings to go on with it,"
                " or choose another folder"
            )

    def description(self) -> dict[str, Any]:
        """Read `run.json`.

        Raises:
            FileNotFoundError: if the folder is no run.
            ValueError: if a newer version wrote it.
        """
        path = self.path / RUN
        if not path.is_file():
            raise FileNotFoundError(f"{self.path} is no run: {RUN} is missing")
        described: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if described.get("schema") != SCHEMA:
            raise ValueError(f"{path} has schema {described.get('schema')}, this version reads {SCHEMA}")
        return described

    def items(self) -> list[dict[str, Any]]:
        """Read the items in order."""
        with (self.path / ITEMS).open(encoding="utf-8") as lines:
            return [json.loads(line) for line in lines]

    def shard(self, number: int, of: int) -> Path:
        """The file of a shard, numbered from 0."""
        return self.path / f"shard-{number:05d}-of-{of:05d}{self.suffix}"

    def finished(self, of: int, *, verify: bool = True) -> list[int]:
        """Numbers of the finished shards, ascending; with `verify`, those whose content still has its hash."""
        return [number for number in range(of) if self.intact(self.shard(number, of), verify=verify)]

    def intact(self, shard: Path, *, verify: bool = True) -> bool:
        """Whether a shard is finished; with `verify`, whether its content still has its hash."""
        try:
            recorded = _seal(shard).read_text(encoding="utf-8").split()
        except (FileNotFoundError, UnicodeDecodeError):
            return False
        if not shard.is_file() or len(recorded) != 2:
            return False
        return not verify or sha256(shard) == recorded[0]

    def write(self, number: int, of: int, content: bytes) -> None:
        """Finish a shard: its content first, then the hash that declares it finished."""
        path = self.shard(number, of)
        digest = hashlib.sha256(content).hexdigest()
        _seal(path).unlink(missing_ok=True)
        self._write(path.name, content)
        self._write(_seal(path).name, f"{digest}  {path.name}\n".encode())
        for stale in self.path.glob(f".{path.name}*.tmp"):
            stale.unlink(missing_ok=True)

    def _write(self, name: str, content: bytes) -> None:
        temporary = self._temporary(name)
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(self.path / name)

    def _temporary(self, name: str) -> Path:
        return self.path / f".{name}.{socket.gethostname()}.{os.getpid()}.tmp"


def read_records(path: str | Path, *, files: bool | str = False) -> Iterator[Record]:
    """Read the records of a run's finished shards in the order of its items; a run may be incomplete.

    Args:
        path: Folder of the run.
        files: Also read the records' files (pictures), or those whose names end so, e.g. ".npy".

    Raises:
        FileNotFoundError: if the folder is no run.
        ValueError: if a shard is damaged; running the job again redoes it.
    """
    folder = RunFolder(path)
    of = folder.description()["shards"]
    for number in folder.finished(of, verify=False):
        shard = folder.shard(number, of)
        if not folder.intact(shard):
            raise ValueError(f"{shard} is damaged (its hash differs); run the job again to have it redone")
        with shard.open("rb") as file:
            yield from unpack(file, files=files)


def sha256(path: Path) -> str:
    """Hash of a file's content, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _seal(path: Path) -> Path:
    return path.with_name(path.name + ".sha256")
