"""Put a trained model into the package: `python -m attnsteer.world.publish --run RUN --name shapes-unet`.

Copies the diffusers folder of a training run, and its log. With `--figures FILE` (written by
`python -m attnsteer.world.measure --output FILE`) it writes the model card and `attnsteer.json`, which
`attnsteer models` shows and `attnsteer generate` takes its defaults from.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from attnsteer.world.cards import CARDS, card_text
from attnsteer.world.models import WEIGHTS

MOST_BYTES = 8_000_000


def publish(run: Path, name: str, earlier: Sequence[Path] = ()) -> Path:
    """Copy a run's model and log into the package, keeping a classifier that is already there.

    `earlier` are the logs of the stages that the run started from, in their order.

    Raises: ValueError if the model is larger than 8 MB.
    """
    size = sum(file.stat().st_size for file in (run / "model").rglob("*.safetensors"))
    if size > MOST_BYTES:
        raise ValueError(f"the weights take {size} bytes, more than {MOST_BYTES}: choose fewer channels")
    target, fresh = WEIGHTS / name, WEIGHTS / f".{name}.tmp"
    shutil.rmtree(fresh, ignore_errors=True)
    shutil.copytree(run / "model", fresh)
    (fresh / "training").mkdir()
    for stage, log in enumerate([*earlier, run / "log.jsonl"], start=1):
        shutil.copy(log, fresh / "training" / f"log-{stage}.jsonl")
    for kept in ("steering", "attnsteer.json", "README.md"):
        if (target / kept).exists():
            os.replace(target / kept, fresh / kept)
    shutil.rmtree(target, ignore_errors=True)
    os.replace(fresh, target)
    return target


def write_card(folder: Path, figures: list[Any], name: str) -> None:
    """Write README.md and attnsteer.json of the model `name` from the rows that the measuring command wrote."""
    shares = [row for row in figures if isinstance(row, dict)]
    remarks = [row for row in figures if isinstance(row, str)]
    values = {row["name"]: f"{row['right'] / row['of']:.1%}" for row in shares if row["of"]}
    if remarks:
        values["cost"] = "; ".join(remarks)
    card = {"description": CARDS[name].description, "defaults": dict(CARDS[name].defaults), "figures": values}
    (folder / "attnsteer.json").write_text(json.dumps(card, indent=2) + "\n")
    rows = [
        f"| {row['name']} | {row['right'] / row['of']:.1%} | {row['interval'][0]:.1%} to {row['interval'][1]:.1%} "
        f"| {row['right']} of {row['of']} |"
        for row in shares
        if row["of"]
    ]
    (folder / "README.md").write_text(card_text(name, "\n".join([*rows, *(f"\n{line}" for line in remarks)])))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, help="folder of a training run")
    parser.add_argument("--earlier", type=Path, nargs="*", default=(), help="logs of the stages before")
    parser.add_argument("--name", choices=CARDS, default="shapes-unet")
    parser.add_argument("--figures", type=Path, nargs="*", default=(), help="JSON written by attnsteer.world.measure")
    given = parser.parse_args()
    folder = publish(given.run, given.name, given.earlier) if given.run else WEIGHTS / given.name
    if given.figures:
        figures = [row for path in given.figures for row in json.loads(path.read_text())]
        write_card(folder, figures, given.name)
    sys.stdout.write(f"{folder}\n")


if __name__ == "__main__":
    main()
