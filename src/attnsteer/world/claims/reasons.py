"""Why a claim does not hold here, as far as it was looked into: written by hand beside the figures it explains."""

from __future__ import annotations

import tomllib
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Final

REASONS: Final = "reasons.toml"


def read_reasons(folder: Path, claims: Collection[str]) -> Mapping[str, str]:
    """Reasons by the name of the claim; none if there is no such file.

    Args:
        folder: That of the committed results.
        claims: The names that there are.

    Raises: ValueError if the file is not TOML of such names and texts.
    """
    path = folder / REASONS
    if not path.is_file():
        return {}
    try:
        reasons = tomllib.loads(path.read_text(encoding="utf-8"))
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{path} is no TOML: {error}") from None
    wrong = [name for name, text in reasons.items() if name not in claims or not isinstance(text, str)]
    if wrong:
        raise ValueError(f"{path}: {wrong[0]!r} is no claim with a text; claims are {', '.join(claims)}")
    return {name: " ".join(text.split()) for name, text in reasons.items()}
