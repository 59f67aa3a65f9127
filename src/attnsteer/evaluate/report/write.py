"""Writes a report folder: report.html (self-contained), report.md, figures.csv and table.tex."""

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from attnsteer import __version__
from attnsteer.evaluate.heat_maps import record_heat_maps
from attnsteer.evaluate.report import tables
from attnsteer.evaluate.report.across import across_runs
from attnsteer.evaluate.report.charts import colour
from attnsteer.evaluate.report.examples import chosen_examples, example_groups, first_examples
from attnsteer.evaluate.report.fidelity import (
    FidelityRun,
    fidelity_latex,
    fidelity_markdown,
    fidelity_rows,
    is_fidelity,
    read_fidelity,
)
from attnsteer.evaluate.report.figures import RunFigures, best_guided, read_run
from attnsteer.evaluate.report.trade_offs import fidelity_charts, trade_off_charts
from attnsteer.evaluate.scoring.boxes import EXPLAINED, FAILURES, RIGHT
from attnsteer.evaluate.settings import BUDGET, Evaluation
from attnsteer.evaluate.sweep import Swept
from attnsteer.jobs.texts import write_texts


def write_report(
    runs: Sequence[str | Path], output: str | Path, *, heat_maps: int = 0, device: str = "auto"
) -> list[Path]:
    """Write the report of one or more runs.

    Args:
        runs: Folders of `attnsteer evaluate`; unfinished ones are reported as far as they got.
        output: Folder for the report's files, made if needed.
        heat_maps: Examples of each kind that are generated again to record attention maps, which the run then keeps.
            Maps that a run has are shown in any case.
        device: For that.

    Returns: The files, the page first.

    Raises: FileNotFoundError or ValueError if a folder holds no evaluation with finished items; see `read_run`.
    """
    if not runs:
        raise ValueError("a report needs at least one run")
    figures = [read_run(path) for path in runs if not is_fidelity(path)]
    fidelity = [read_fidelity(path) for path in runs if is_fidelity(path)]
    for run in figures if heat_maps else ():
        chosen = chosen_examples(run, heat_maps).values()
        record_heat_maps(run.path, [key for _, keys in chosen for key in keys], device)
    contents = {
        "report.html": page(figures, fidelity),
        "report.md": "\n".join([tables.markdown(figures), *map(fidelity_markdown, fidelity)]),
        "figures.csv": tables.comma_separated(figures, [row for run in fidelity for row in fidelity_rows(run)]),
        "table.tex": "\n".join([*([tables.latex(figures)] if figures else []), *map(fidelity_latex, fidelity)]),
    }
    return write_texts(Path(output), contents)


def page(runs: Sequence[RunFigures], fidelity: Sequence[FidelityRun] = ()) -> str:
    """The report as one HTML page without references to anything outside it."""
    environment = Environment(
        loader=PackageLoader("attnsteer.evaluate.report", "."), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    for name in ("percent", "spread", "points", "probability", "times", "seconds", "operations", "caption"):
        environment.filters[name] = getattr(tables, name)
    environment.globals |= {"colour": colour, "outcomes": (RIGHT, *FAILURES), "explained": EXPLAINED}
    written = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    return environment.get_template("page.html.j2").render(
        sections=[_section(run) for run in runs],
        across=across_runs(runs),
        fidelity=[_fidelity_section(run) for run in fidelity],
        version=__version__,
        written=written,
    )


def _section(run: RunFigures) -> dict[str, Any]:
    groups = example_groups(run)
    return {
        "charts": trade_off_charts(run),
        "further": tables.further_rows(run),
        "summary": summary(run),
        "budget": budget(run),
        "groups": groups,
        "heats": any(panel.heats for group in groups for example in group.examples for panel in example.panels),
        "outcomes": [name for name in (RIGHT, *FAILURES) if any(name in m.failures for m in run.methods)],
        **_plain_section(run),
    }


def _fidelity_section(run: FidelityRun) -> dict[str, Any]:
    examples = first_examples(run.path, [m.method for m in run.methods])
    return {"charts": fidelity_charts(run), "examples": examples, **_plain_section(run)}


def summary(run: RunFigures) -> str:
    """The comparison that matters most, in a sentence: the best guided method against the baseline."""
    best, base = best_guided(run), run.methods[0]
    if best is None or best.against is None:
        return ""
    verdict = "which chance may explain" if best.against.p_value > 0.05 else "more than chance explains"
    sentence = (
        f"{best.method.title}: {tables.percent(best.headline.value)} {run.suite.headline}, {base.method.title}:"
        f" {tables.percent(base.headline.value)}; {tables.points(best.against)} points,"
        f" {verdict} (p {tables.equals(best.against)}), at {tables.times(best.relative)} the compute."
    )
    tried = sum(isinstance(m.method, Swept) and m.method.guided for m in run.methods)
    if tried > 1 and isinstance(best.method, Swept):
        sentence += (
            f" It is the best of {tried} settings tried on these seeds, which flatters it: measure it once more"
            " on others (--seed)."
        )
    return sentence


def budget(run: RunFigures) -> str:
    """What best-of-equal could spend, in words; empty if it did not run."""
    if not any(m.method.equal for m in run.methods):
        return ""
    given, guided = run.settings.get("budget"), [m for m in run.methods if m.method.guided]
    if given is None and guided:
        dearest = max(guided, key=lambda m: m.evaluations)
        return f"what {dearest.method.title} costs, in whole seeds, rounded up"
    return f"{BUDGET if given is None else given:g} plain pictures each, in whole seeds, rounded up"


def _plain_section(run: RunFigures | FidelityRun) -> dict[str, Any]:
    """What every section has: the run, and how to repeat it."""
    given = {name: value for name, value in run.settings.items() if value not in (None, {}, [])}
    settings = {**given, **run.resolved}
    return {
        "run": run,
        "settings": json.dumps(settings, indent=2, ensure_ascii=False),
        "versions": ", ".join(f"{name} {number}" for name, number in run.description["versions"].items()),
        "command": f"{repeat_command(run.description)} -o {shlex.quote(str(run.path))}",
        "host": ", ".join(str(value) for value in run.description.get("host", {}).values()),
    }


def repeat_command(description: Mapping[str, Any]) -> str:
    """The command that makes the same run again, or goes on with it; what is at its default is left out."""
    fixed = description["fixed"]
    settings = fixed["settings"]
    defaults = {item.name: item.default for item in fields(Evaluation)}
    words = ["attnsteer", "evaluate", settings["suite"]]
    for name, value in settings.items():
        if name in ("suite", "extra", "sweep") or value is None or value == defaults.get(name):
            continue
        words += [f"--{name.replace('_', '-')}", str(value)]
    for axis in settings.get("sweep", ()):
        words += ["--sweep", axis]
    for name, value in settings.get("extra", {}).items():
        words += ["--set", f"{name}={value if isinstance(value, str) else json.dumps(value)}"]
    if fixed["shard_size"] != settings.get("batch"):
        words += ["--shard-size", str(fixed["shard_size"])]
    return shlex.join(words)
