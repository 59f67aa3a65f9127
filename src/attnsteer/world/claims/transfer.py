"""The same settings across architectures: NAG's published presets, and one setting for all."""

from __future__ import annotations

from typing import Final

from attnsteer.world.claims.claim import Claim, Finding, Result, absent, more, no_less
from attnsteer.world.claims.figure import Figure
from attnsteer.world.claims.negatives import block_of, negative_task, published_settings, read_negatives
from attnsteer.world.claims.pictures import grid_of
from attnsteer.world.claims.roster import Kind, WorldModel
from attnsteer.world.claims.runs import ABSENT, KEPT, negative_figures
from attnsteer.world.claims.scope import Scope
from attnsteer.world.claims.task import EvaluationTask

ARCHITECTURES: Final = (Kind("U-Net", 3), Kind("MMDiT", 3), Kind("video"))
COMMON: Final = ("nag.scale=5", "nag.tau=2.5", "nag.alpha=0.25")
"""One setting for all: the paper's for FLUX and Wan."""
PRESET: Final = "preset of the architecture"


def _tasks(scope: Scope, model: WorldModel) -> dict[str, EvaluationTask]:
    """Runs by their settings in words; where the preset is the common setting, there is one."""
    preset = [f"nag.{name}={value:g}" for name, value in published_settings(model).items()]
    common = negative_task(scope, model, "transfer-common", "none,nag", COMMON)
    if set(preset) == set(COMMON):
        return {"one setting, also the preset": common}
    return {PRESET: negative_task(scope, model, "transfer-preset", "none,nag", preset), "one setting": common}


def plan(scope: Scope) -> list[EvaluationTask]:
    """One or two runs for each model of more than two steps, whatever it is."""
    return [task for model in scope.of(*ARCHITECTURES) for task in _tasks(scope, model).values()]


def read(scope: Scope) -> Result:
    """Figures under both settings."""
    figures: list[Figure] = []
    findings: list[Finding] = []
    grids = []
    for model in scope.of(*ARCHITECTURES):
        for words, task in _tasks(scope, model).items():
            drawn = read_negatives(scope, task, f"{block_of(model)}, {words}")
            name = drawn.names[1]
            figures += negative_figures(drawn)
            evidence = f"{ABSENT}: {drawn.share(name, ABSENT)} against {drawn.share('none', ABSENT)}"
            findings.append(
                more(f"{drawn.block}: NAG keeps unwanted things out", drawn.against("none", name, ABSENT), evidence)
            )
            evidence = f"{KEPT}: {drawn.share(name, KEPT)} against {drawn.share('none', KEPT)}"
            findings.append(no_less(f"{drawn.block}: and keeps subjects", drawn.against("none", name, KEPT), evidence))
            if words != PRESET:
                grids.append(grid_of(drawn, drawn.block, drawn.names))
    return Result(figures, findings + absent(scope.missing(*ARCHITECTURES)), grids)


CLAIM: Final = Claim(
    "transfer",
    "The same settings transfer across architectures",
    "Chen et al. 2025, arXiv:2505.21179, Table 5",
    "Each model with NAG's published preset of its architecture, and with one setting for all (scale 5, tau 2.5, alpha"
    " .25), against the same model without guidance.",
    plan,
    read,
)
