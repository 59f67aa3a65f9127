"""The demo: `python -m attnsteer.world.demo --output demo` draws a sheet with the embedded model and counts.

The sheet shows prompts that the stock pipeline gets wrong, beside the same seed with steering or with a negative
prompt. The exact detector's verdicts stand above the pictures. The examples were chosen to show something; the figures
that are printed are counted over prompts that were not.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from attnsteer.compare import Request, comparison_sheet, find_model, open_model, plan, resolve, run_variants
from attnsteer.compare.run import Picture, Plan
from attnsteer.evaluate.statistics import Share
from attnsteer.pictures import Badge, write_png
from attnsteer.world.detect import Detection, detect
from attnsteer.world.measure import negative_figures, pairs, pictures, relation_figures, shows_unwanted
from attnsteer.world.models import DEFAULT_MODEL, FEW_STEP_MODEL
from attnsteer.world.scene import ATTRIBUTES, COLOURS, relations_between

BEST_CFG = 6.0
"""Where CFG's negative prompt does best in four steps: see results/table.md."""


@dataclass(frozen=True)
class Example:
    """One prompt with one seed; the negative prompt may be empty. Of the default model, or of a few-step one."""

    prompt: str
    negative: str
    seed: int
    model: str = DEFAULT_MODEL


EXAMPLES = (
    (Example("a red circle to the left of a blue square", "", 5), Example("a circle", "red", 2, FEW_STEP_MODEL)),
    (Example("a green triangle above a yellow circle and a blue square", "", 8), Example("a square", "blurry", 29)),
)


def verdicts(picture: Picture, planned: Plan, negative: str) -> list[Badge]:
    """The detector's verdicts on one picture: its relations, and whether it shows what it should not."""
    pixels = torch.frombuffer(bytearray(picture.image.convert("RGB").tobytes()), dtype=torch.uint8)
    found = detect(pixels.view(picture.image.height, picture.image.width, 3).permute(2, 0, 1)[None] / 255)[0]
    badges = []
    for relation in planned.relations:
        first, second = (_named(span.text, found) for span in (relation.subject, relation.object))
        if first is None or second is None:
            missing = relation.subject.text if first is None else relation.object.text
            badges.append(Badge(f"no {missing}", False))
        else:
            right = relation.relation in relations_between(first.shape, second.shape)
            badges.append(Badge(relation.relation if right else f"not {relation.relation}", right))
    if negative in (*COLOURS, *ATTRIBUTES):
        shows = any(shows_unwanted(d, negative) for d in found)
        badges.append(Badge(f"shows {negative}" if shows else f"nothing {negative}", not shows))
    return badges


def _named(words: str, found: Sequence[Detection]) -> Detection | None:
    wanted = words.split()
    return next((d for d in found if d.recognised and d.shape.shape in wanted and d.shape.colour in wanted), None)


def sheet(model: Any, example: Example) -> Image.Image:
    """One example: off beside NAG, steered, or both, with heat maps and verdicts."""
    request = Request(example.prompt, negative=example.negative or None, seed=example.seed, model=example.model)
    planned = plan(request, model.source.classifier)
    request = resolve(request, model)
    shown = run_variants(request, model, planned)
    badges = {picture.variant.name: verdicts(picture, planned, example.negative) for picture in shown}
    return comparison_sheet(request, planned, shown, badges=badges)


def joined(rows: Sequence[Sequence[Image.Image]]) -> Image.Image:
    """Sheets in rows and columns on one paper."""
    widths = [sum(one.width for one in row) for row in rows]
    heights = [max(one.height for one in row) for row in rows]
    paper = Image.new("RGB", (max(widths), sum(heights)), rows[0][0].getpixel((0, 0)))
    top = 0
    for row, height in zip(rows, heights, strict=True):
        left = 0
        for one in row:
            paper.paste(one, (left, top))
            left += one.width
        top += height
    return paper


def figures(model: Any, student: Any, count: int) -> list[Share]:
    """Relations with and without steering, and NAG on one attribute in few steps, counted over held-out prompts."""
    from attnsteer import NAG, LearnedSteering, guide

    steps, scale = model.source.defaults["steps"], model.source.defaults["guidance_scale"]
    asked = pairs(count)
    plain = detect(pictures(model.pipe, asked.prompts, steps, scale))
    guided = guide(model.pipe, LearnedSteering.from_pretrained(model.source.classifier))
    steered = detect(pictures(guided, asked.prompts, steps, scale))
    shares = [relation_figures(asked, plain, "unsteered")[1], relation_figures(asked, steered, "steered")[1]]
    few = student.source.defaults["steps"]
    nag = NAG(scale=student.source.defaults["nag_scale"])
    return shares + negative_figures(student.pipe, count, few, BEST_CFG, nag, attributes=("red",))


def main() -> None:
    """Command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=Path("demo"), help="folder for the sheet")
    parser.add_argument("--count", type=int, default=24, help="held-out prompts behind each figure")
    given = parser.parse_args()
    start = time.perf_counter()
    models = {name: open_model(find_model(name), progress=False) for name in (DEFAULT_MODEL, FEW_STEP_MODEL)}
    for model in models.values():
        model.pipe.set_progress_bar_config(disable=True)
    given.output.mkdir(parents=True, exist_ok=True)
    path = given.output / "sheet.png"
    sheets = [[sheet(models[example.model], example) for example in row] for row in EXAMPLES]
    write_png(joined(sheets), path, {}, overwrite=True)
    sys.stdout.write(f"{path}: prompts that come out wrong, and the same seeds steered, or with a negative prompt\n\n")
    sys.stdout.write(f"Counted over {given.count} held-out prompts (95 % intervals):\n")
    for share in figures(models[DEFAULT_MODEL], models[FEW_STEP_MODEL], given.count):
        sys.stdout.write(f"  {share}\n")
    sys.stdout.write(f"\n{time.perf_counter() - start:.0f} s\n")


if __name__ == "__main__":
    main()
