"""Writing the files of a report, so that a crash leaves the earlier ones whole."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path


def write_texts(folder: Path, contents: Mapping[str, str]) -> list[Path]:
    """Write text files as UTF-8 into a folder, which is made if needed: all drafts first, then they are renamed.

    Args:
        folder: Where.
        contents: Text by file name.

    Returns: The paths, in the order given.
    """
    folder.mkdir(parents=True, exist_ok=True)
    drafts = {folder / name: folder / f".{name}.{os.getpid()}.tmp" for name in contents}
    try:
        for draft, content in zip(drafts.values(), contents.values(), strict=True):
            draft.write_text(content, encoding="utf-8")
        for path, draft in drafts.items():
            os.replace(draft, path)
    finally:
        for draft in drafts.values():
            draft.unlink(missing_ok=True)
    return list(drafts)
