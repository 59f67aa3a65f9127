"""From options to a request: settings of an earlier picture first, given options over them."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from attnsteer.compare.request import Request, RequestError
from attnsteer.pictures.metadata import check_target, read_settings


def build_request(
    options: Mapping[str, Any], *, steer: bool | None = None, extra: Sequence[str] = (), source: Path | None = None
) -> Request:
    """Merge options into a request.

    Args:
        options: By the names of `Request`; None means not given. "negative" holds the words of every --negative.
        steer: --steer (True), --no-steer (False), or neither.
        extra: Items "name=value" of --set; a value that is no JSON is taken as text.
        source: A picture whose settings are the starting point.

    Raises: RequestError if there is no prompt or a value is bad.
    """
    settings: dict[str, Any] = {}
    if source is not None:
        try:
            settings = read_settings(source)
        except (FileNotFoundError, ValueError) as error:
            raise RequestError(str(error)) from error
        settings = Request.from_dict(settings).to_dict()
    settings = {name: value for name, value in settings.items() if name not in ("schema", "attnsteer")}
    settings |= {name: value for name, value in options.items() if value is not None}
    if options.get("negative") is not None:
        from attnsteer.negative.prompt import from_words

        settings["negative"] = from_words(options["negative"])
    if steer is not None:
        settings["steer"] = "on" if steer else "off"
    if extra:
        settings["extra"] = {**settings.get("extra", {}), **dict(_pair(item) for item in extra)}
    if "prompt" not in settings:
        raise RequestError("give a prompt, or a picture with --from")
    return Request(**settings)


def _pair(item: str) -> tuple[str, Any]:
    name, equals, text = item.partition("=")
    if not equals or not name.isidentifier():
        raise RequestError(f"--set takes NAME=VALUE, got {item!r}")
    try:
        return name, json.loads(text)
    except json.JSONDecodeError:
        return name, text


def picture_paths(output: Path | None, request: Request, *, overwrite: bool) -> list[Path]:
    """Choose the files of the pictures, and check before any work that they can be written.

    A file given with --output is never replaced unasked; several pictures are numbered out-1.png, out-2.png, ... .
    Without --output the next free name attnsteer-SEED.png, attnsteer-SEED-v2.png, ... is taken.

    Raises: RequestError if a file exists (and `overwrite` is false) or its name does not end in .png.
    """
    if output is None:
        names = [free_name(f"attnsteer-{request.seed + number}", overwrite) for number in range(request.num_images)]
        return [Path(name) for name in names]
    several = request.num_images > 1
    paths = [
        output.with_name(f"{output.stem}-{number + 1}{output.suffix}") if several else output
        for number in range(request.num_images)
    ]
    for path in paths:
        check_output(path, overwrite=overwrite)
    return paths


def check_output(path: Path, *, overwrite: bool) -> None:
    """Raise a RequestError if a picture could not be written to `path`."""
    try:
        check_target(path, overwrite=overwrite)
    except (ValueError, FileExistsError) as error:
        raise RequestError(str(error)) from error


def sheet_path(picture: Path) -> Path:
    """Return the name of the comparison sheet that goes with a picture: out.png -> out-compare.png."""
    return picture.with_name(f"{picture.stem}-compare{picture.suffix}")


def free_name(stem: str, overwrite: bool) -> str:
    """Return STEM.png, or STEM-v2.png, ... if that exists and must not be replaced."""
    name, version = f"{stem}.png", 1
    while Path(name).exists() and not overwrite:
        version += 1
        name = f"{stem}-v{version}.png"
    return name
