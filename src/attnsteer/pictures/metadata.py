"""Settings inside PNG files: written with the picture, read back to make it again.

Two text chunks: `attnsteer` holds the settings as JSON, `parameters` the same for people and for the image browsers
that read the text of the Stable Diffusion web UI.
"""

import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image, PngImagePlugin, UnidentifiedImageError

CHUNK = "attnsteer"


def write_png(
    image: Image.Image,
    path: Path | str,
    settings: Mapping[str, Any],
    *,
    parameters: str | None = None,
    overwrite: bool = False,
) -> Path:
    """Write a picture with its settings, all or nothing: a reader never sees half a file.

    Args:
        image: The picture.
        path: Target, ending in .png. Missing folders are made.
        settings: JSON-able settings for `read_settings`.
        parameters: Readable text for the `parameters` chunk; left out by default.
        overwrite: Replace a file that exists.

    Returns: The path written.

    Raises:
        ValueError: The name does not end in .png (other formats would lose the settings).
        FileExistsError: The file exists and `overwrite` is false.
    """
    target = Path(path)
    check_target(target, overwrite=overwrite)
    chunks = PngImagePlugin.PngInfo()
    chunks.add_itxt(CHUNK, json.dumps(settings, ensure_ascii=False, sort_keys=True))
    if parameters is not None:
        chunks.add_text("parameters", parameters)
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        with draft.open("xb") as stream:
            image.save(stream, format="PNG", pnginfo=chunks, optimize=True)
        os.replace(draft, target)
    finally:
        draft.unlink(missing_ok=True)
    return target


def check_target(path: Path, *, overwrite: bool) -> None:
    """Tell now, before minutes of work, that a picture could not be written to `path`.

    Raises: ValueError for a name that does not end in .png or that is a folder, FileExistsError for a file that
        exists while `overwrite` is false.
    """
    if path.suffix.lower() != ".png":
        raise ValueError(f"the output must be a .png file (it carries the settings), got {str(path)!r}")
    if path.is_dir():
        raise ValueError(f"{str(path)!r} is a folder; give the name of a picture in it")
    if path.exists() and not overwrite:
        raise FileExistsError(f"{str(path)!r} exists; choose another name or pass --overwrite (overwrite=True)")


def read_settings(path: Path | str) -> dict[str, Any]:
    """Read the settings that `write_png` put into a picture.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: Not a PNG file, no settings inside, or settings that are not a JSON object.
    """
    source = Path(path)
    if not source.is_file():
        raise FileNotFoundError(f"no such picture: {str(source)!r}")
    try:
        with Image.open(source, formats=["PNG"]) as image:
            image.load()
            text = getattr(image, "text", {}).get(CHUNK)
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise ValueError(f"{str(source)!r} is not a readable PNG file") from error
    if text is None:
        raise ValueError(f"{str(source)!r} carries no attnsteer settings; only PNG files written by attnsteer do")
    try:
        settings = json.loads(text)
    except json.JSONDecodeError as error:
        raise ValueError(f"the settings in {str(source)!r} are damaged: {error}") from error
    if not isinstance(settings, dict):
        raise ValueError(f"the settings in {str(source)!r} are not a JSON object")
    return settings
