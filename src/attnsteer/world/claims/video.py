"""NAG on video: what is unwanted stays out of whole clips, and their objects stay what they are."""

from __future__ import annotations

from dataclasses import replace
from typing import Final

from attnsteer.evaluate.detectors.shapes_clips import ShapesClipExaminer
from attnsteer.evaluate.prompts.shapes_clips import KINDS
from attnsteer.evaluate.scores import STEADY
from attnsteer.evaluate.statistics import compare
from attnsteer.world.claims.charts import quality_chart, trade_off_chart
from attnsteer.world.claims.claim import Claim, Finding, Result, absent, more, no_less
from attnsteer.world.claims.figure import Figure
from attnsteer.world.claims.negatives import best_of, block_of, negative_task, read_negatives, variant
from attnsteer.world.claims.pictures import grid_of
from attnsteer.world.claims.roster import VIDEO, WorldModel
from attnsteer.world.claims.runs import ABSENT, BOTH, KEPT, Drawn, negative_figures
from attnsteer.world.claims.scope import Scope
from attnsteer.world.claims.task import EvaluationTask

METHODS: Final = "none,cfg,nag"
CFG_SCALES: Final = (2.0, 4.0)
WEAK, STRONG = 3.0, 9.0
"""Scales of NAG on both sides of the one that the model's card advises."""
CONSISTENCY: Final = ShapesClipExaminer.quality_name


def _sweep(scope: Scope, model: WorldModel) -> list[str]:
    """Few scales: a clip costs as much as many pictures."""
    scales = sorted({WEAK, model.nag_scale, STRONG}) if scope.size.points > 3 else [model.nag_scale]
    cfg = CFG_SCALES if scope.size.points > 3 else CFG_SCALES[:1]
    return [f"{name}.scale={','.join(f'{v:g}' for v in values)}" for name, values in (("cfg", cfg), ("nag", scales))]


def _task(scope: Scope, model: WorldModel) -> EvaluationTask:
    return negative_task(scope, model, "video", METHODS, _sweep(scope, model))


def plan(scope: Scope) -> list[EvaluationTask]:
    """One run for each video model."""
    return [_task(scope, model) for model in scope.of(*VIDEO)]


def read(scope: Scope) -> Result:
    """Figures of whole clips; the statements are about NAG at the scale that the card advises, chosen beforehand."""
    figures: list[Figure] = []
    findings: list[Finding] = []
    charts, grids = [], []
    for model in scope.of(*VIDEO):
        drawn = read_negatives(scope, _task(scope, model), block_of(model))
        own = negative_figures(drawn)
        figures += own + [figure for name in drawn.names for figure in _figures(drawn, name)]
        nag = variant(METHODS, _sweep(scope, model), "nag", scale=model.nag_scale)
        cfg = best_of(drawn, "cfg")
        findings += _findings(drawn, nag, cfg)
        charts += [trade_off_chart(drawn, ["cfg", "nag"]), quality_chart(drawn, ["cfg", "nag"], own)]
        grids.append(grid_of(drawn, drawn.block, ["none", cfg, nag]))
    return Result(figures, findings + absent(scope.missing(*VIDEO)), grids, charts)


def _figures(drawn: Drawn, method: str) -> list[Figure]:
    """What the still models' claims do not have: steadiness, consistency, and adherence for each kind of trait."""
    place, kinds = drawn.place(method), [data["item"]["kind"] for data in drawn.run.records]
    values = drawn.values(method, ABSENT)
    by_kind = {kind: [value for value, own in zip(values, kinds, strict=True) if own == kind] for kind in KINDS}
    return [
        *(place.mean(name, _scores(drawn, method, name)) for name in (CONSISTENCY, STEADY)),
        *(place.share(f"{ABSENT}: {kind}", own) for kind, own in by_kind.items()),
    ]


def _findings(drawn: Drawn, nag: str, cfg: str) -> list[Finding]:
    where, title = f"{drawn.block}: ", {name: drawn.title(name) for name in (nag, cfg)}

    def evidence(first: str, second: str, what: str) -> str:
        return f"{title[second]}: {drawn.share(second, what)} {what}, {drawn.title(first)}: {drawn.share(first, what)}"

    plain, guided = (_scores(drawn, name, CONSISTENCY) for name in ("none", nag))
    means = [sum(values) / len(values) for values in (plain, guided)]
    against_cfg = no_less(
        f"{where}NAG does at least as well as CFG's negative prompt at its best scale",
        drawn.against(cfg, nag), evidence(cfg, nag, BOTH),
    )  # fmt: skip
    return [
        more(f"{where}NAG keeps unwanted things out of clips", drawn.against("none", nag, ABSENT),
             evidence("none", nag, ABSENT)),
        no_less(f"{where}and keeps shape, colour and motion of the prompt", drawn.against("none", nag, KEPT),
                evidence("none", nag, KEPT)),
        no_less(f"{where}objects stay what they are through the clip", compare(plain, guided),
                f"{CONSISTENCY}: {means[1]:.3f} against {means[0]:.3f}"),
        replace(against_cfg, control=True),
    ]  # fmt: skip


def _scores(drawn: Drawn, method: str, name: str) -> list[float]:
    return [float(data["methods"][method]["scores"][name]) for data in drawn.run.records]


CLAIM: Final = Claim(
    "video",
    "NAG works on video",
    "Chen et al. 2025, arXiv:2505.21179",
    "Clips of a shape, in which a colour, an outline or blur, motion, or flickering is unwanted and left open by the"
    " prompt. A detector follows the objects of the whole clip: it counts if nothing in it is or does what is"
    " unwanted, and if the shape, colour and motion that the prompt names are there. Consistency is the share of"
    " frames in which an object is there and looks as it does in most; steadiness says how little changes from frame"
    " to frame.",
    plan,
    read,
)
