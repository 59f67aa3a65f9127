"""The table of supported models, made from the rows of `attnsteer.families`: `python -m attnsteer.support FILE`.

It prints the table, or replaces the one in a Markdown file, between the lines `<!-- models -->` and
`<!-- end of models -->`.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from attnsteer.families import FAMILIES, Family
from attnsteer.presets import PRESETS

BEGIN, END = "<!-- models -->\n", "<!-- end of models -->\n"
_READS = {
    "cross": "cross-attention",
    "joint": "joint attention",
    "hybrid": "image reads both at once",
    "text": "text refiner",
}


def support_table() -> str:
    """The table in Markdown, sorted by class name, with a line break at its end."""
    head = ["| denoiser class | makes | reads text by | attention maps | preset |", "|---|---|---|---|---|"]
    rows = [_row(FAMILIES[name]) for name in sorted(FAMILIES, key=str.lower)]
    return "\n".join([*head, *rows]) + "\n"


def _row(family: Family) -> str:
    reads = dict.fromkeys(_READS[entry.role] for entry in family.attention)
    presets = [preset.model for preset in PRESETS if preset.denoiser == family.denoiser]
    cells = (
        f"`{family.denoiser}`",
        "video" if family.video else "pictures",
        ", ".join(reads),
        "" if family.grid == "none" else "yes",
        ", ".join(presets),
    )
    return f"| {' | '.join(cells)} |"


def with_table(text: str) -> str:
    """A Markdown text with its table replaced by the current one.

    Raises: ValueError if the two marking lines are not there.
    """
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (begin and end):
        raise ValueError(f"the text lacks the lines {BEGIN.strip()} and {END.strip()}, between which the table goes")
    return f"{before}{BEGIN}\n{support_table()}\n{END}{after}"


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(prog="python -m attnsteer.support", description=__doc__)
    parser.add_argument("file", type=Path, nargs="?", help="Markdown file whose table is replaced")
    given = parser.parse_args()
    if given.file is None:
        sys.stdout.write(support_table())
    else:
        given.file.write_text(with_table(given.file.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
