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
from attnsteer.evaluate.report.examples import chosen_examples, example_groups
from attnsteer.evaluate.report.fidelity import FidelityRun, fidelity_markdown, is_fidelity, read_fidelity
from attnsteer.evaluate.report.figures import RunFigures, read_run
from attnsteer.evaluate.report.trade_offs import fidelity_charts, trade_off_charts
from attnsteer.evaluate.scoring.boxes import FAILURES, RIGHT
from attnsteer.evaluate.settings import Evaluation


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
    folder = Path(output)
    folder.mkdir(parents=True, exist_ok=True)
    contents = {
        "report.html": page(figures, fidelity),
        "report.md": "\n".join([tables.markdown(figures), *map(fidelity_markdown, fidelity)]),
        "figures.csv": tables.comma_separated(figures),
        "table.tex": tables.latex(figures),
    }
    for name, content in contents.items():
        (folder / name).write_text(content, encoding="utf-8")
    return [folder / name for name in contents]


def page(runs: Sequence[RunFigures], fidelity: Sequence[FidelityRun] = ()) -> str:
    """The report as one HTML page without references to anything outside it."""
    environment = Environment(
        loader=PackageLoader("attnsteer.evaluate.report", "."), autoescape=True, undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )  # fmt: skip
    for name in ("percent", "spread", "points", "probability", "times", "seconds", "operations", "caption"):
        environment.filters[name] = getattr(tables, name)
    environment.globals |= {"colour": colour, "outcomes": (RIGHT, *FAILURES)}
    written = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    return environment.get_template("page.html.j2").render(
        sections=[_section(run) for run in runs],
        across=across_runs(runs),
        fidelity=[{"charts": fidelity_charts(run), **_plain_section(run)} for run in fidelity],
        version=__version__,
        written=written,
    )


def _section(run: RunFigures) -> dict[str, Any]:
    groups = example_groups(run)
    return {
        "charts": trade_off_charts(run),
        "further": tables.further_rows(run),
        "summary": summary(run),
        "groups": groups,
        "heats": any(panel.heats for group in groups for example in group.examples for panel in example.panels),
        "outcomes": [name for name in (RIGHT, *FAILURES) if any(name in m.failures for m in run.methods)],
        **_plain_section(run),
    }


def summary(run: RunFigures) -> str:
    """The comparison that matters most, in a sentence: the best guided method against the baseline."""
    guided = [m for m in run.methods[1:] if m.method.best_of == 1]
    if not guided:
        return ""
    best, base = max(guided, key=lambda m: m.headline.value), run.methods[0]
    if best.against is None:
        return ""
    verdict = "a difference that chance explains" if best.against.p_value > 0.05 else "more than chance explains"
    return (
        f"{best.method.title}: {tables.percent(best.headline.value)} {run.suite.headline}, {base.method.title}:"
        f" {tables.percent(base.headline.value)}; {tables.points(best.against)} points,"
        f" {verdict} (p {tables.equals(best.against)}), at {tables.times(best.relative)} the compute."
    )


def _plain_section(run: RunFigures | FidelityRun) -> dict[str, Any]:
    """What every section has: the run, and how to repeat it."""
    settings = {name: value for name, value in run.settings.items() if value not in (None, {}, [])}
    return {
        "run": run,
        "settings": json.dumps(settings, indent=2, ensure_ascii=False),
        "versions": ", ".join(f"{name} {number}" for name, number in run.description["versions"].items()),
        "command": repeat_command(run.description),
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
