"""Put a trained model into the package: `python -m attnsteer.world.publish --run RUN --name shapes-unet`.

Copies the diffusers folder of a training run, and its log. With `--figures FILE` it writes the model card and
`attnsteer.json`, which `attnsteer models` shows and `attnsteer generate` takes its defaults from. The file comes from
`python -m attnsteer.world.measure --output FILE`, for models of clips from `attnsteer.world.clip_measure`. A new model
gets a card without figures when none are given. `--into FOLDER` tries all that outside the package.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from attnsteer.world.cards import CARDS, card_text
from attnsteer.world.models import WEIGHTS

MOST_BYTES = 8_000_000


def publish(run: Path, name: str, earlier: Sequence[Path] = (), into: Path | None = None) -> Path:
    """Copy a run's model and log into the package, keeping a classifier and a card that are already there.

    Args:
        run: Folder of a training run.
        name: Of the model.
        earlier: Logs of the stages that the run started from, in their order.
        into: Parent folder of the model; None is the package's.

    Raises: FileNotFoundError if the run holds no model; ValueError if it is larger than 8 MB.
    """
    if not (run / "model" / "model_index.json").is_file():
        raise FileNotFoundError(f"{run / 'model'} is no diffusers folder; --run takes the folder of a training run")
    parent = into or WEIGHTS
    size = sum(file.stat().st_size for file in (run / "model").rglob("*.safetensors"))
    if size > MOST_BYTES:
        raise ValueError(f"the weights take {size} bytes, more than {MOST_BYTES}: choose fewer channels")
    target, fresh = parent / name, parent / f".{name}.tmp"
    shutil.rmtree(fresh, ignore_errors=True)
    shutil.copytree(run / "model", fresh)
    for file in fresh.rglob("*.json"):  # diffusers notes the folder of the weights that training started from
        file.write_text(re.sub(r'\n\s*"_name_or_path": "[^"]*",', "", file.read_text()))
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
    """Write README.md and attnsteer.json of the model `name`.

    Args:
        folder: The model's.
        figures: Rows that the measuring command wrote: shares, means, and costs in words. There may be none.
        name: In `CARDS`.
    """
    rows = [row for row in figures if isinstance(row, dict) and row["of"]]
    remarks = [row for row in figures if isinstance(row, str)]
    values = {row["name"]: _shown(row)[0] for row in rows}
    if remarks:
        values["cost"] = "; ".join(remarks)
    own = CARDS[name]
    card: dict[str, Any] = {"description": own.description, "defaults": dict(own.defaults)}
    if own.step_counts:
        card["step_counts"] = list(own.step_counts)
    card["figures"] = values
    (folder / "attnsteer.json").write_text(json.dumps(card, indent=2) + "\n")
    means = any("right" not in row for row in rows)
    table = [f"| {row['name']} | {' | '.join(_shown(row))} |" for row in rows]
    (folder / "README.md").write_text(card_text(name, table, remarks, means=means))


def _shown(row: Mapping[str, Any]) -> tuple[str, str, str]:
    """Value, interval and count of a share or a mean."""
    low, high = row["interval"]
    if "right" in row:
        return f"{row['right'] / row['of']:.1%}", f"{low:.1%} to {high:.1%}", f"{row['right']} of {row['of']}"
    return f"{row['value']:.3f}", f"{low:.3f} to {high:.3f}", str(row["of"])


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, help="folder of a training run")
    parser.add_argument("--earlier", type=Path, nargs="*", default=(), help="logs of the stages before")
    parser.add_argument("--name", choices=CARDS, default="shapes-unet")
    parser.add_argument("--figures", type=Path, nargs="*", default=(), help="JSON files of the measuring command")
    parser.add_argument("--into", type=Path, help="parent folder instead of the package's")
    given = parser.parse_args(arguments)
    folder = (given.into or WEIGHTS) / given.name
    if given.run:
        publish(given.run, given.name, given.earlier, given.into)
    elif not folder.is_dir():
        parser.error(f"there is no {folder}; pass --run with the folder of its training run")
    if given.figures or not (folder / "attnsteer.json").is_file():
        write_card(folder, [row for path in given.figures for row in json.loads(path.read_text())], given.name)
    sys.stdout.write(f"{folder}\n")


if __name__ == "__main__":
    main()
