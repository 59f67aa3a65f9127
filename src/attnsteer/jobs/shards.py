"""One shard as bytes: a WebDataset tar with `KEY.json` for each record, and its files as `KEY.NAME`.

The bytes depend on nothing but the records, so the same work gives the same shard whoever does it and whenever.
"""

import io
import json
import re
import tarfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import IO, Any, Final

HEADER: Final = "__shard__"
"""Member that describes the shard; readers of WebDataset skip names of this form."""
_KEY: Final = re.compile(r"[A-Za-z0-9_-]+")
_FILE: Final = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*")


@dataclass(frozen=True)
class Record:
    """The result for one item.

    Attributes:
        key: Unique in the run; letters, digits, "_" and "-".
        data: JSON object.
        files: Name to content, e.g. {"steer.png": ...}; letters, digits, "_", "-" and inner dots, not "json".

    Raises: ValueError for a key or name that does not fit.
    """

    key: str
    data: Mapping[str, Any]
    files: Mapping[str, bytes] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not _KEY.fullmatch(self.key):
            raise ValueError(f"a record's key holds letters, digits, '_' and '-' only, got {self.key!r}")
        for name in self.files:
            if not _FILE.fullmatch(name) or name == "json":
                raise ValueError(f"a record's file must be named like 'picture.png', got {name!r}")


def pack(records: Iterable[Record], header: Mapping[str, Any]) -> bytes:
    """Write records into the bytes of a tar.

    Args:
        records: In order; keys must differ.
        header: Describes the shard, plain JSON types.

    Raises: ValueError if two records share a key.
    """
    buffer, seen = io.BytesIO(), set[str]()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        _add(tar, HEADER, _json(header))
        for record in records:
            if record.key in seen:
                raise ValueError(f"two records of one shard have the key {record.key!r}")
            seen.add(record.key)
            _add(tar, f"{record.key}.json", _json(record.data))
            for name, content in sorted(record.files.items()):
                _add(tar, f"{record.key}.{name}", content)
    return buffer.getvalue()


def unpack(file: IO[bytes], *, files: bool | str = True) -> Iterator[Record]:
    """Read the records of a shard in order, with all their files, none, or those whose names end in `files`."""
    key, data, content = "", dict[str, Any](), dict[str, bytes]()
    with tarfile.open(fileobj=file, mode="r:") as tar:
        for member in tar:
            if member.name == HEADER:
                continue
            base, _, name = member.name.partition(".")
            if base != key and key:
                yield Record(key, data, content)
            if base != key:
                key, data, content = base, {}, {}
            if name == "json":
                data = json.loads(_content(tar, member))
            elif files is True or (files and name.endswith(files)):
                content[name] = _content(tar, member)
    if key:
        yield Record(key, data, content)


def header_of(file: IO[bytes]) -> dict[str, Any]:
    """Read the description that `pack` was given."""
    with tarfile.open(fileobj=file, mode="r:") as tar:
        return dict(json.loads(_content(tar, tar.getmember(HEADER))))


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    opened = tar.extractfile(member)
    if opened is None:
        raise ValueError(f"{member.name!r} is no file: not a shard of this program")
    return opened.read()


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size, member.mode = len(content), 0o644
    tar.addfile(member, io.BytesIO(content))


def _json(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, ensure_ascii=False, sort_keys=True, allow_nan=False).encode()
