"""In few steps, CFG's negative prompt fails and NAG's works: six methods over their scales."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

from attnsteer.evaluate.statistics import Comparison
from attnsteer.world.claims.charts import quality_chart, trade_off_chart
from attnsteer.world.claims.claim import Claim, Finding, Result, absent, greater, more, no_more
from attnsteer.world.claims.curves import area_difference, curve_area
from attnsteer.world.claims.figure import Figure, Place
from attnsteer.world.claims.negatives import best_of, block_of, negative_task, of_base, read_negatives
from attnsteer.world.claims.pictures import grid_of
from attnsteer.world.claims.roster import FEW_STEPS, MANY_STEPS, WorldModel
from attnsteer.world.claims.runs import ABSENT, AREA, BOTH, DISTANCE, KEPT, Drawn, negative_figures
from attnsteer.world.claims.scope import Scope
from attnsteer.world.claims.task import EvaluationTask

SCALES: Final = {
    "cfg": (1.5, 2.5, 4.0, 6.0, 8.0),
    "nag": (3.0, 5.0, 7.0, 11.0, 15.0),
    "vsf": (0.5, 1.0, 2.0, 3.0, 4.0),
    "orthogonal": (0.5, 1.0, 2.0, 3.0, 4.0),
    "nasa": (0.05, 0.1, 0.2, 0.4, 0.6),
}
"""Five scales of each method, from weak to too strong."""
CONTROL: Final = ("cfg", "nag")
"""What models of many steps are tried with."""
CONTROL_STEPS: Final = 4


def sweep_of(scope: Scope, methods: Sequence[str]) -> list[str]:
    """The sweep over the scales of some methods; VSF's bias is zero, as FLUX's preset has it."""
    axes = [f"{name}.scale={scope.spread(SCALES[name])}" for name in methods]
    return [*axes, "vsf.bias=0"] if "vsf" in methods else axes


def _tasks(scope: Scope) -> list[tuple[EvaluationTask, WorldModel, bool]]:
    """Each run with its model, and whether that model was distilled for so few steps."""
    tasks = []
    for model in scope.of(*FEW_STEPS):
        names = ",".join(["none", *SCALES])
        tasks.append((negative_task(scope, model, "few-steps", names, sweep_of(scope, list(SCALES))), model, True))
    for model in scope.of(*MANY_STEPS):
        names = ",".join(["none", *CONTROL])
        for steps in (CONTROL_STEPS, model.steps):
            task = negative_task(scope, model, "few-steps", names, sweep_of(scope, CONTROL), steps=steps)
            tasks.append((task, model, False))
    return tasks


def plan(scope: Scope) -> list[EvaluationTask]:
    """One run for each model and number of steps."""
    return [task for task, _, _ in _tasks(scope)]


def read(scope: Scope) -> Result:
    """Figures of every method at every scale, the area under each curve, and who is ahead."""
    figures: list[Figure] = []
    findings: list[Finding] = []
    charts, grids = [], []
    for task, model, distilled in _tasks(scope):
        drawn = read_negatives(scope, task, block_of(model, task.evaluation.steps))
        bases = list(SCALES) if distilled else list(CONTROL)
        own = negative_figures(drawn)
        figures += own + [_area(drawn, base) for base in bases]
        findings += _distilled(drawn, own) if distilled else _control(drawn)
        charts += [trade_off_chart(drawn, bases), quality_chart(drawn, bases, own)]
        if distilled:
            best = [best_of(drawn, base) for base in bases]
            grids.append(grid_of(drawn, f"{drawn.block}: each method at its best scale", ["none", *best]))
    return Result(figures, findings + absent(scope.missing(*FEW_STEPS)), grids, charts)


def _area(drawn: Drawn, base: str) -> Figure:
    title = drawn.title(of_base(drawn, base)[0]).partition(",")[0]
    return Place(drawn.block, f"{title}, all scales", drawn.seeds).estimate(AREA, curve_area(*_curve(drawn, base)))


def _curve(drawn: Drawn, base: str) -> tuple[list[list[bool]], list[list[bool]]]:
    names = ["none", *of_base(drawn, base)]
    return [drawn.values(name, KEPT) for name in names], [drawn.values(name, ABSENT) for name in names]


def _distilled(drawn: Drawn, figures: Sequence[Figure]) -> list[Finding]:
    where = f"{drawn.block}: "
    cfg, nag = best_of(drawn, "cfg"), best_of(drawn, "nag")
    title = {name: drawn.title(name) for name in (cfg, nag)}
    found = [
        more(f"{where}NAG keeps unwanted things out, subjects kept", drawn.against("none", nag),
             f"{title[nag]}: {drawn.share(nag)} {BOTH}, off: {drawn.share('none')}"),
        no_more(f"{where}CFG's negative prompt does not, even at its best scale", drawn.against("none", cfg),
                f"{title[cfg]}: {drawn.share(cfg)} {BOTH}, off: {drawn.share('none')}"),
        more(f"{where}NAG does better than CFG, each at its best scale", drawn.against(cfg, nag),
             f"{title[nag]}: {drawn.share(nag)}, {title[cfg]}: {drawn.share(cfg)}"),
    ]  # fmt: skip
    distances = {f.row: f for f in figures if f.name == DISTANCE}
    statement = f"{where}CFG's pictures are farther from what they should show than NAG's, each at its best scale"
    found.append(greater(statement, distances[title[nag]], distances[title[cfg]]))
    areas = {base: curve_area(*_curve(drawn, base)).value for base in SCALES}
    for other in (base for base in SCALES if base not in ("nag", "cfg")):
        low, high = area_difference(_curve(drawn, other), _curve(drawn, "nag"))
        difference = areas["nag"] - areas[other]
        comparison = Comparison(difference, low, high, float("nan"), 0, 0)
        evidence = f"area {areas['nag']:.3f} against {areas[other]:.3f}"
        rival = drawn.title(of_base(drawn, other)[0]).partition(",")[0]
        found.append(more(f"{where}NAG has a better curve than {rival}", comparison, evidence))
    return found


def _control(drawn: Drawn) -> list[Finding]:
    cfg = best_of(drawn, "cfg")
    title = drawn.title(cfg)
    evidence = f"{title}: {drawn.share(cfg)} {BOTH}, off: {drawn.share('none')}"
    statement = f"Control, {drawn.block}, not distilled: CFG's negative prompt works"
    return [replace(more(statement, drawn.against("none", cfg), evidence), control=True)]


CLAIM: Final = Claim(
    "few-steps",
    "CFG's negative prompt fails in few steps, NAG's works",
    "Chen et al. 2025, arXiv:2505.21179; VSF, orthogonal guidance and NASA beside it",
    "A shape is asked for, and a colour, an outline or blur is unwanted. Every method runs over its scales, without"
    " CFG except for CFG itself. A picture counts if the shape is there and the unwanted thing is not. The area under"
    " a curve is the share of all combinations of kept and absent that the method's scales reach.",
    plan,
    read,
)
