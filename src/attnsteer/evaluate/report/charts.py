"""The report's charts as inline SVG; text stays text, and colours come from the page."""

import math
from collections.abc import Callable, Sequence
from typing import Final

from attnsteer.evaluate.report.figures import MethodFigures, RunFigures
from attnsteer.evaluate.report.tables import percent, times

COLOURS: Final = {
    "none": "#6b7280", "cfg": "#b02878", "nag": "#185fd8", "steer": "#0e7d78", "both": "#5d35b1",
}  # fmt: skip
BEST_OF: Final = "#cf5c0a"
WIDE: Final = 980
NARROW: Final = 470
"""Widths of the drawings, near the width at which the page shows them."""


def colour(name: str) -> str:
    """The colour of a method."""
    return COLOURS.get(name, BEST_OF)


def interval_chart(run: RunFigures) -> str:
    """One row for each method: a dot at its figure, a line over its interval, on an axis from 0 to 100 %."""
    left, right, row = 150, 96, 36
    wide, height = WIDE - left - right, row * len(run.methods) + 30

    def x(value: float) -> float:
        return left + value * wide

    parts = [
        f'<line x1="{x(v):.1f}" x2="{x(v):.1f}" y1="4" y2="{height - 22}" class="grid"/>'
        f'<text x="{x(v):.1f}" y="{height - 6}" class="tick" text-anchor="middle">{round(100 * v)}</text>'
        for v in (0, 0.25, 0.5, 0.75, 1)
    ]
    for number, m in enumerate(run.methods):
        y, ink = row * number + 22, colour(m.method.name)
        parts.append(f'<text x="{left - 14}" y="{y + 5}" text-anchor="end" class="name">{m.method.title}</text>')
        for end in (m.headline.low, m.headline.high):
            parts.append(f'<line x1="{x(end):.1f}" x2="{x(end):.1f}" y1="{y - 5}" y2="{y + 5}" stroke="{ink}"/>')
        parts.append(
            f'<line x1="{x(m.headline.low):.1f}" x2="{x(m.headline.high):.1f}" y1="{y}" y2="{y}" stroke="{ink}"/>'
            f'<circle cx="{x(m.headline.value):.1f}" cy="{y}" r="6" fill="{ink}"/>'
            f'<text x="{WIDE}" y="{y + 6}" text-anchor="end" class="figure">{percent(m.headline.value)}</text>'
        )
    return _svg(parts, WIDE, height, f"{run.suite.headline} by method with 95 % intervals")


def trade_off_chart(run: RunFigures) -> str:
    """Figure against cost; up and to the left is better. The cost axis is logarithmic."""
    left, top, height, foot = 38, 14, 300, 48
    wide, tall = NARROW - left - 12, height - top - foot
    costs = [max(m.relative, 1e-6) for m in run.methods]
    low, high = math.log2(min(*costs, 1.0)) - 0.25, math.log2(max(*costs, 2.0)) + 0.6

    def x(cost: float) -> float:
        return left + (math.log2(cost) - low) / (high - low) * wide

    def y(value: float) -> float:
        return top + (1 - value) * tall

    parts = [
        f'<line x1="{left}" x2="{left + wide}" y1="{y(v):.1f}" y2="{y(v):.1f}" class="grid"/>'
        f'<text x="{left - 8}" y="{y(v) + 4:.1f}" class="tick" text-anchor="end">{round(100 * v)}</text>'
        for v in (0, 0.25, 0.5, 0.75, 1)
    ]
    for power in range(math.ceil(low), math.floor(high) + 1):
        px = x(2.0**power)
        parts.append(f'<text x="{px:.1f}" y="{height - 26}" class="tick" text-anchor="middle">{2.0**power:g} ×</text>')
    parts.append(
        f'<text x="{left + wide / 2}" y="{height - 4}" class="tick" text-anchor="middle">'
        f"denoiser evaluations per picture, relative to {run.methods[0].method.title}</text>"
    )
    for m, cost, place in zip(run.methods, costs, _label_places(run.methods, y), strict=True):
        ink, px = colour(m.method.name), x(cost)
        anchor, shift = ("end", -11) if px > left + 0.72 * wide else ("start", 11)
        parts.append(
            f'<line x1="{px:.1f}" x2="{px:.1f}" y1="{y(m.headline.low):.1f}" y2="{y(m.headline.high):.1f}"'
            f' stroke="{ink}"/><circle cx="{px:.1f}" cy="{y(m.headline.value):.1f}" r="6" fill="{ink}"/>'
            f'<text x="{px + shift:.1f}" y="{place + 4:.1f}" text-anchor="{anchor}" class="name">'
            f"{m.method.title}, {times(m.relative)}</text>"
        )
    return _svg(parts, NARROW, height, "figure against cost")


def _label_places(methods: Sequence[MethodFigures], y: Callable[[float], float]) -> list[float]:
    """Heights of the labels, moved apart where they would meet."""
    order = sorted(range(len(methods)), key=lambda i: -methods[i].headline.value)
    places, last = [0.0] * len(methods), -math.inf
    for index in order:
        last = places[index] = max(y(methods[index].headline.value), last + 16)
    return places


def _svg(parts: Sequence[str], width: int, height: float, title: str) -> str:
    return (
        f'<svg viewBox="0 0 {width} {height}" role="img" aria-label="{title}" xmlns="http://www.w3.org/2000/svg">'
        + "".join(parts)
        + "</svg>"
    )


def adherence_chart(run: RunFigures) -> str:
    """Unwanted things absent against subjects kept, for suites of negative prompts; up and to the right is better."""
    left, top, height, foot = 38, 14, 300, 48
    wide, tall = NARROW - left - 12, height - top - foot
    names = ("subject kept", "unwanted thing absent")
    shares = [[m.further[name] for name in names] for m in run.methods]
    least = max(0.0, math.floor(min(min(pair) for pair in shares) * 10 - 1e-9) / 10)

    def x(value: float) -> float:
        return left + 14 + (value - least) / (1 - least + 1e-9) * (wide - 28)

    def y(value: float) -> float:
        return top + (1 - value) / (1 - least + 1e-9) * tall

    parts = []
    for number in range(5):
        value = least + (1 - least) * number / 4
        parts.append(
            f'<line x1="{left}" x2="{left + wide}" y1="{y(value):.1f}" y2="{y(value):.1f}" class="grid"/>'
            f'<text x="{left - 8}" y="{y(value) + 4:.1f}" class="tick" text-anchor="end">{100 * value:.3g}</text>'
            f'<text x="{x(value):.1f}" y="{height - 26}" class="tick" text-anchor="middle">{100 * value:.3g}</text>'
        )
    parts.append(
        f'<text x="{left + wide / 2}" y="{height - 4}" class="tick" text-anchor="middle">'
        "across: subject kept, up: unwanted thing absent, in per cent</text>"
    )
    for m, (kept, absent) in zip(run.methods, shares, strict=True):
        anchor, shift = ("end", -11) if x(kept) > left + 0.6 * wide else ("start", 11)
        parts.append(
            f'<circle cx="{x(kept):.1f}" cy="{y(absent):.1f}" r="6" fill="{colour(m.method.name)}"/>'
            f'<text x="{x(kept) + shift:.1f}" y="{y(absent) + 5:.1f}" text-anchor="{anchor}" class="name">'
            f"{m.method.title}</text>"
        )
    return _svg(parts, NARROW, height, "unwanted things absent against subjects kept")
