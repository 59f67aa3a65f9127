"""The table of supported models, made from the rows of `attnsteer.families`: `python -m attnsteer.support FILE`.

It prints the table, or replaces the one in a Markdown file, between the lines `<!-- models -->` and
`<!-- end of models -->`. With `--pipelines` it prints one more column: the pipelines of the installed diffusers.
"""

from __future__ import annotations

import argparse
import importlib.util
import re
import sys
from pathlib import Path

from attnsteer.families import FAMILIES, Family
from attnsteer.presets import PRESETS

BEGIN, END = "<!-- models -->\n", "<!-- end of models -->\n"
_PIPELINE = re.compile(r"^class (?P<name>\w+Pipeline)\(.*?def __init__\((?P<arguments>.*?)\n    \)", re.S | re.M)
_READS = {
    "cross": "cross-attention",
    "joint": "joint attention",
    "hybrid": "image reads both at once",
    "text": "text refiner",
}


def support_table(pipelines: bool = False) -> str:
    """The table in Markdown, sorted by class name, with a line break at its end."""
    head = ["denoiser class", "makes", "reads text by", "mechanism", "attention maps", "preset"]
    rows = [_row(FAMILIES[name]) for name in sorted(FAMILIES, key=str.lower)]
    if pipelines:
        head.append("pipelines")
        users = pipelines_by_denoiser()
        rows = [[*row, ", ".join(users.get(row[0].strip("`"), []))] for row in rows]
    lines = [head, ["---"] * len(head), *rows]
    return "".join(f"| {' | '.join(cells)} |\n" for cells in lines)


def mechanism(family: Family) -> str:
    """How the negative text gets in, in words."""
    if family.blocks:
        return "side-car, row by row" if family.rowwise else "side-car"
    extra = ["key and value probe"] if any(entry.probe for entry in family.attention) else []
    extra += ["split-run"] if family.split else []
    return ", ".join(["joined at the input", *extra])


def pipelines_by_denoiser() -> dict[str, list[str]]:
    """Names of the pipelines of the installed diffusers whose constructor takes each denoiser class.

    They are read from the sources: importing 250 pipelines would take a minute.
    """
    package = importlib.util.find_spec("diffusers")
    folders = [] if package is None else [Path(place) for place in package.submodule_search_locations or ()]
    users: dict[str, list[str]] = {}
    for file in sorted(path for folder in folders for path in (folder / "pipelines").rglob("pipeline_*.py")):
        for found in _PIPELINE.finditer(file.read_text(encoding="utf-8")):
            for denoiser in set(re.findall(r"\w+", found["arguments"])) & set(FAMILIES):
                users.setdefault(denoiser, []).append(found["name"])
    return {denoiser: sorted(names) for denoiser, names in users.items()}


def _row(family: Family) -> list[str]:
    reads = dict.fromkeys(_READS[entry.role] for entry in family.attention)
    presets = [preset.model for preset in PRESETS if preset.denoiser == family.denoiser]
    return [
        f"`{family.denoiser}`",
        "video" if family.video else "pictures",
        ", ".join(reads),
        mechanism(family),
        "" if family.grid == "none" else "yes",
        ", ".join(presets),
    ]


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
    parser.add_argument("--pipelines", action="store_true", help="print a column of pipelines too")
    given = parser.parse_args()
    if given.file is None:
        sys.stdout.write(support_table(given.pipelines))
    else:
        given.file.write_text(with_table(given.file.read_text(encoding="utf-8")), encoding="utf-8")


if __name__ == "__main__":
    main()
