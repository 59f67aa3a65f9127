"""NAG's norm bound and its refinement: scales from 1 to 20 with and without each."""

from __future__ import annotations

import math
from itertools import product
from typing import Final

from attnsteer.world.claims.charts import lines_chart
from attnsteer.world.claims.claim import Claim, Finding, Result, absent, more
from attnsteer.world.claims.figure import Figure
from attnsteer.world.claims.negatives import (
    block_of,
    negative_task,
    published_settings,
    read_negatives,
    settings_of,
    variant,
)
from attnsteer.world.claims.pictures import grid_of
from attnsteer.world.claims.roster import FEW, Kind, WorldModel
from attnsteer.world.claims.runs import ABSENT, KEPT, Drawn, negative_figures
from attnsteer.world.claims.scope import Scope
from attnsteer.world.claims.task import EvaluationTask

SCALES: Final = (3.0, 7.0, 11.0, 15.0, 20.0)
KINDS: Final = (Kind("U-Net", 3, FEW), Kind("MMDiT", 3, FEW))
TAU: Final = 2.5
TAUS: Final = (1.25, 1.75, 2.5, 5.0, 10.0)
SHARES: Final = (0.125, 0.25, 0.5, 0.75, 1.0)


def grid_sweep(scope: Scope, model: WorldModel) -> list[str]:
    """Scales by norm bound (on, off) by refinement (on, off)."""
    alpha = published_settings(model)["alpha"]
    return [f"nag.scale={scope.spread(SCALES)}", f"nag.tau={TAU:g},inf", f"nag.alpha={alpha:g},1"]


def _tasks(scope: Scope, model: WorldModel) -> list[EvaluationTask]:
    at = f"nag.scale={model.nag_scale:g}"
    return [
        negative_task(scope, model, "normalisation", "none,nag", grid_sweep(scope, model)),
        negative_task(scope, model, "normalisation-tau", "none,nag", [at, f"nag.tau={scope.spread(TAUS)}"]),
        negative_task(scope, model, "normalisation-alpha", "none,nag", [at, f"nag.alpha={scope.spread(SHARES)}"]),
    ]


def plan(scope: Scope) -> list[EvaluationTask]:
    """Three runs for each model of four steps: the grid, the bounds, the shares of the guided features."""
    return [task for model in scope.of(*KINDS) for task in _tasks(scope, model)]


def read(scope: Scope) -> Result:
    """Figures of the grid and of both sweeps; the statements are about the greatest scale."""
    figures: list[Figure] = []
    findings: list[Finding] = []
    charts, grids = [], []
    for model in scope.of(*KINDS):
        drawn, taus, alphas = (
            read_negatives(scope, task, f"{block_of(model)}{part}")
            for task, part in zip(_tasks(scope, model), ("", ", bound", ", refinement"), strict=True)
        )
        own = negative_figures(drawn)
        figures += own + negative_figures(taus) + negative_figures(alphas)
        findings += _findings(scope, model, drawn)
        lines = {title: _line(drawn, own, tau, alpha) for title, (tau, alpha) in _variants(model).items()}
        charts.append(lines_chart(f"{drawn.block}: {KEPT} over the scale", "scale of NAG", KEPT, lines))
        lines = {title: _line(drawn, own, tau, alpha, ABSENT) for title, (tau, alpha) in _variants(model).items()}
        charts.append(lines_chart(f"{drawn.block}: {ABSENT} over the scale", "scale of NAG", ABSENT, lines))
        columns = ["none", *(_at(scope, model, *one) for one in _variants(model).values())]
        grids.append(grid_of(drawn, f"{drawn.block}: scale {SCALES[-1]:g}", columns))
    return Result(figures, findings + absent(scope.missing(*KINDS)), grids, charts)


def _variants(model: WorldModel) -> dict[str, tuple[float, float]]:
    taus, alphas = (
        {"bound": TAU, "no bound": math.inf},
        {"refined": published_settings(model)["alpha"], "not refined": 1.0},
    )
    return {f"{bound}, {refined}": (taus[bound], alphas[refined]) for bound, refined in product(taus, alphas)}


def _at(scope: Scope, model: WorldModel, tau: float, alpha: float) -> str:
    sweep = grid_sweep(scope, model)
    return variant("none,nag", sweep, "nag", scale=SCALES[-1], tau=tau, alpha=alpha)


def _line(
    drawn: Drawn, figures: list[Figure], tau: float, alpha: float, name: str = KEPT
) -> list[tuple[float, Figure]]:
    """Off, which is scale 1, and the scales."""
    by_row = {figure.row: figure for figure in figures if figure.name == name}
    line = [(1.0, by_row[drawn.title("none")])]
    for method in drawn.names[1:]:
        own = settings_of(drawn, method)
        if (own["tau"], own["alpha"]) == (tau, alpha):
            line.append((own["scale"], by_row[drawn.title(method)]))
    return line


def _findings(scope: Scope, model: WorldModel, drawn: Drawn) -> list[Finding]:
    names = {title: _at(scope, model, *settings) for title, settings in _variants(model).items()}
    bare = names["no bound, not refined"]
    found = []
    for title, words in (
        ("bound, not refined", "the bound alone"),
        ("no bound, refined", "refinement alone"),
        ("bound, refined", "both"),
    ):
        evidence = f"{KEPT}: {drawn.share(names[title], KEPT)} against {drawn.share(bare, KEPT)} with neither"
        statement = f"{drawn.block}, scale {SCALES[-1]:g}: {words} keeps more subjects than neither"
        found.append(more(statement, drawn.against(bare, names[title], KEPT), evidence))
    return found


CLAIM: Final = Claim(
    "normalisation",
    "Normalisation and refinement keep strong guidance from breaking the picture",
    "Chen et al. 2025, arXiv:2505.21179, figure 8 and ablations",
    "NAG at scales from 1 (off) to 20, with the norm bound (tau 2.5) and without (tau infinite), with refinement"
    " (alpha as published for such models) and without (alpha 1). Both settings are also swept at the scale that the"
    " model's card advises.",
    plan,
    read,
)
