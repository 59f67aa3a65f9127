"""From finished pictures to the sheets that people look at."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from attnsteer import __version__
from attnsteer.compare.maps import object_spans, watched_run
from attnsteer.compare.models import OpenModel
from attnsteer.compare.request import Request
from attnsteer.compare.run import Picture, Plan
from attnsteer.pictures import Badge, Highlight, MapTable, Panel, Sheet, render_map_table, render_sheet
from attnsteer.steering.relations import Relation, Span

# Widths in points of a picture and of a strip of video frames on a comparison sheet.
COLUMN: Final = 250
STRIP: Final = 900


def comparison_sheet(
    request: Request,
    plan: Plan,
    pictures: Sequence[Picture],
    *,
    badges: Mapping[str, Sequence[Badge]] | None = None,
    note: str = "",
) -> Image.Image:
    """Draw the pictures of a request, one column per variant (videos: one row), with captions and heat maps.

    Args:
        request: The resolved request.
        plan: What was planned for it; its relations are marked in the title.
        pictures: In the order of `plan.variants`.
        badges: Verdicts by variant name, e.g. of a detector.
        note: Put at the front of the footer.

    Returns: RGB picture.
    """
    sheet = build_sheet(request, plan, pictures, badges=badges, note=note)
    return render_sheet(sheet, cell=STRIP if sheet.rows else COLUMN)


def comparison_animation(request: Request, plan: Plan, pictures: Sequence[Picture]) -> list[Image.Image]:
    """Draw the same clips as moving pictures: for each frame a sheet with one column per variant, without heat maps.

    Args:
        request: The resolved request.
        plan: What was planned for it.
        pictures: Clips of one length, in the order of `plan.variants`.

    Returns: RGB pictures of one size.
    """
    sheets = []
    for shown in zip(*(picture.frames for picture in pictures), strict=True):
        still = [replace(p, image=frame, frames=(), heats=()) for p, frame in zip(pictures, shown, strict=True)]
        sheets.append(render_sheet(build_sheet(request, plan, still), cell=COLUMN, scale=1))
    return sheets


def build_sheet(
    request: Request,
    plan: Plan,
    pictures: Sequence[Picture],
    *,
    badges: Mapping[str, Sequence[Badge]] | None = None,
    note: str = "",
) -> Sheet:
    """Return the contents of a comparison sheet; see `comparison_sheet`."""
    panels = tuple(
        Panel(
            title=picture.variant.title,
            caption=caption(request, plan, picture),
            image=picture.image,
            heats=picture.heats,
            badges=tuple((badges or {}).get(picture.variant.name, ())),
            backdrop=picture.still,
        )
        for picture in pictures
    )
    strips = any(picture.frames for picture in pictures)
    return Sheet(
        prompt=request.text,
        panels=panels[:1] if strips else panels,
        rows=tuple((panel,) for panel in panels[1:]) if strips else (),
        highlights=highlights(request.text, plan.relations),
        negative=request.negative_text or None,
        footer=" · ".join(part for part in (note, settings_line(request)) if part),
    )


def caption(request: Request, plan: Plan, picture: Picture) -> str:
    """Say what was done for one picture, and how long it took."""
    parts = []
    if picture.variant.nag:
        given = [f"{name} {value:g}" for name, value in request.nag.items() if (name, value) not in _WHOLE]
        parts.append(("NAG " if picture.variant.steer else "") + ", ".join(given))
    if picture.variant.steer:
        count = len(plan.relations)
        parts.append(f"{count} relation{'s' if count > 1 else ''} steered")
    return " · ".join([*(parts or ["the pipeline as it is"]), duration(picture.seconds)])


# Settings that mean "all steps" and need no words.
_WHOLE = (("start", 0.0), ("end", 1.0))


def duration(seconds: float) -> str:
    """Say a time for people: 0.42 s, 4.2 s, 12 s, 3 min 5 s."""
    if seconds < 9.95:
        return f"{seconds:.{2 if seconds < 0.995 else 1}f} s"
    whole = round(seconds)
    return f"{whole} s" if whole < 60 else f"{whole // 60} min {whole % 60} s"


def settings_line(request: Request) -> str:
    """Say the settings that all pictures of a request share, on one line."""
    parts = [
        Path(request.model).name if Path(request.model).is_dir() else request.model,
        f"seed {request.seed}",
        f"{request.steps} steps" if request.steps else "",
        f"guidance {request.guidance_scale:g}" if request.guidance_scale is not None else "",
        f"true CFG {request.extra['true_cfg_scale']}" if "true_cfg_scale" in request.extra else "",
        f"{request.width}x{request.height} px" if request.width and request.height else "",
        f"{request.frames} frames" if request.frames else "",
        f"attnsteer {__version__}",
    ]
    return " · ".join(part for part in parts if part)


def highlights(prompt: str, relations: Sequence[Relation]) -> tuple[Highlight, ...]:
    """Mark the objects of relations, each in its colour, and the relation words between them."""
    spans = object_spans(relations)
    roles = {(span.start, span.end): role for role, span in enumerate(spans)}
    marks = [Highlight(start, end, role) for (start, end), role in roles.items()]
    for relation in relations:
        words = relation_words(prompt, relation)
        if words is not None:
            marks.append(Highlight(*words))
    return tuple(marks)


def relation_words(prompt: str, relation: Relation) -> tuple[int, int] | None:
    """Return where the words of a relation stand, if they stand between its objects: characters, half-open."""
    first, second = sorted((relation.subject, relation.object), key=lambda span: int(span.start))
    between = re.sub(r"(?:\s+(?:an?|the|one|its|his|her|their))?\s*$", "", prompt[first.end : second.start])
    words = between.strip(" ")
    if not words or len(words.split()) > 7 or re.search(r"[,.;:]", words):
        return None
    start = first.end + between.index(words)
    return start, start + len(words)


def map_sheet(
    request: Request,
    plan: Plan,
    model: OpenModel,
    words: Sequence[Span],
    steps: Sequence[int],
    *,
    common_scale: bool = False,
) -> tuple[Image.Image, list[dict[str, Any]]]:
    """Generate a picture and draw where words are read at several steps.

    Args:
        request: A resolved request.
        plan: What was planned for it.
        model: The loaded pipeline.
        words: From `choose_words`.
        steps: From `choose_steps`.
        common_scale: Colour all maps of a word on one scale.

    Returns: The sheet, and for every word and step a record of the map: centre of mass (x and y as fractions of the
        picture) and mean.
    """
    picture, maps = watched_run(request, model, plan.variant, words, steps)
    ordered = tuple(tuple(maps[step][number] for step in steps) for number in range(len(words)))
    table = MapTable(
        prompt=request.text,
        image=picture.still,
        words=tuple(word.text for word in words),
        columns=tuple(f"step {step + 1} of {request.steps}" for step in steps),
        attention=ordered,
        highlights=tuple(Highlight(word.start, word.end, number) for number, word in enumerate(words)),
        footer=settings_line(request),
        common_scale=common_scale,
        label="all frames" if picture.frames else "picture",
    )
    records = [
        {"word": word.text, "step": step + 1, **centre(attention)}
        for word, row in zip(words, ordered, strict=True)
        for step, attention in zip(steps, row, strict=True)
    ]
    return render_map_table(table), records


def centre(attention: NDArray[np.float32]) -> dict[str, float]:
    """Return the centre of mass of a map and its mean.

    x counts from the left and y from the top, as fractions of the picture; a map without mass has its centre in the
    middle.
    """
    total = float(attention.sum())
    height, width = attention.shape
    if total <= 0:
        return {"x": 0.5, "y": 0.5, "mean": 0.0}
    x = float(attention.sum(0) @ (np.arange(width) + 0.5)) / (total * width)
    y = float(attention.sum(1) @ (np.arange(height) + 0.5)) / (total * height)
    return {"x": round(x, 4), "y": round(y, 4), "mean": float(attention.mean())}
