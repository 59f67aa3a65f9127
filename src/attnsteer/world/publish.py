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
from pathlib import Path
from typing import Any

from attnsteer.world.captions import WRONG
from attnsteer.world.models import WEIGHTS
from attnsteer.world.scene import ATTRIBUTES, COLOURS, SHAPES

MOST_BYTES = 8_000_000
DESCRIPTION = "Coloured shapes at 24 x 24 pixels: a U-Net trained from scratch on a CPU, for StableDiffusionPipeline"


def publish(run: Path, name: str) -> Path:
    """Copy a run's model and log into the package, keeping a classifier that is already there.

    Raises: ValueError if the model is larger than 8 MB.
    """
    size = sum(file.stat().st_size for file in (run / "model").rglob("*.safetensors"))
    if size > MOST_BYTES:
        raise ValueError(f"the weights take {size} bytes, more than {MOST_BYTES}: choose fewer channels")
    target, fresh = WEIGHTS / name, WEIGHTS / f".{name}.tmp"
    shutil.rmtree(fresh, ignore_errors=True)
    shutil.copytree(run / "model", fresh)
    (fresh / "training").mkdir()
    shutil.copy(run / "log.jsonl", fresh / "training" / "log.jsonl")
    for kept in ("steering", "attnsteer.json", "README.md"):
        if (target / kept).exists():
            os.replace(target / kept, fresh / kept)
    shutil.rmtree(target, ignore_errors=True)
    os.replace(fresh, target)
    return target


def write_card(folder: Path, figures: list[Any], defaults: dict[str, Any]) -> None:
    """Write README.md and attnsteer.json of a model from the rows that the measuring command wrote."""
    shares = [row for row in figures if isinstance(row, dict)]
    remarks = [row for row in figures if isinstance(row, str)]
    values = {row["name"]: f"{row['right'] / row['of']:.1%}" for row in shares if row["of"]}
    card = {"description": DESCRIPTION, "defaults": defaults, "figures": {**values, "cost": "; ".join(remarks)}}
    (folder / "attnsteer.json").write_text(json.dumps(card, indent=2) + "\n")
    rows = [
        f"| {row['name']} | {row['right'] / row['of']:.1%} | {row['interval'][0]:.1%} to {row['interval'][1]:.1%} "
        f"| {row['right']} of {row['of']} |"
        for row in shares
        if row["of"]
    ]
    (folder / "README.md").write_text(CARD.format(rows="\n".join([*rows, *(f"\n{line}" for line in remarks)])))


CARD = f"""---
license: apache-2.0
library_name: diffusers
pipeline_tag: text-to-image
---
# shapes-unet

A text-to-image model of the colours {", ".join(COLOURS)} and the shapes {", ".join(SHAPES)},
some of them {" or ".join(ATTRIBUTES)}, on a plain background at 24 x 24 pixels. It loads without attnsteer:

```python
from diffusers import StableDiffusionPipeline

pipe = StableDiffusionPipeline.from_pretrained(folder)
image = pipe("a red circle to the left of a blue square", num_inference_steps=20, guidance_scale=1.5).images[0]
```

**Data.** Drawn on the fly by `attnsteer.world.render`, captioned by `attnsteer.world.captions`. Captions name colours
and shapes truly. Relation words between two objects are drawn without a look at the picture, and made wrong on
purpose in {WRONG:.0%} of the cases, so the model knows objects but not relations: the weakness that steering repairs.

**Training.** `python -m attnsteer.world.train --output RUN`; seed, settings and losses: `training/log.jsonl`. The
run was stopped and resumed with another number of threads, and the tokenizer was not deterministic then (its order of
rare tokens; the one in this folder is the one it ended with), so a repetition will not agree bit for
bit. The autoencoder is set by hand to pass pixels through; the latents are the picture.

**Measured** by `python -m attnsteer.world.measure` with prompts and seeds that were not used for training (Wilson 95 %
intervals). They are not untouched: the guidance scale was chosen on 48 of these prompts, and the negative figures were
taken three ways on them (NAG alpha 0.375 with CFG, 0.5 with CFG, 0.375 without CFG); the last is shown. The steered
steps were chosen on the held-out maps that the classifier's card reports. Times are from a busy machine.

| figure | share | interval | count |
|---|---|---|---|
{{rows}}
"""


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, help="folder of a training run")
    parser.add_argument("--name", default="shapes-unet")
    parser.add_argument("--figures", type=Path, help="JSON written by attnsteer.world.measure")
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--guidance-scale", type=float, default=1.5)
    given = parser.parse_args()
    folder = publish(given.run, given.name) if given.run else WEIGHTS / given.name
    if given.figures:
        defaults = {"steps": given.steps, "guidance_scale": given.guidance_scale, "width": 24, "height": 24}
        write_card(folder, json.loads(given.figures.read_text()), defaults)
    sys.stdout.write(f"{folder}\n")


if __name__ == "__main__":
    main()
