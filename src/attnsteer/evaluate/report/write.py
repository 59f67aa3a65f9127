"""Writes a report folder: report.html (self-contained), report.md, figures.csv and table.tex."""

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from attnsteer import __version__
from attnsteer.evaluate.report import tables
from attnsteer.evaluate.report.across import across_runs
from attnsteer.evaluate.report.charts import adherence_chart, colour, interval_chart, trade_off_chart
from attnsteer.evaluate.report.examples import example_groups
from attnsteer.evaluate.report.fidelity import FidelityRun, fidelity_markdown, is_fidelity, read_fidelity
from attnsteer.evaluate.report.figures import RunFigures, read_run
from attnsteer.evaluate.scoring.boxes import FAILURES, RIGHT


def write_report(runs: Sequence[str | Path], output: str | Path) -> list[Path]:
    """Write the report of one or more runs.

    Args:
        runs: Folders of `attnsteer evaluate`; unfinished ones are reported as far as they got.
        output: Folder for the report's files, made if needed.

    Returns: The files, the page first.

    Raises: FileNotFoundError or ValueError if a folder holds no evaluation with finished items; see `read_run`.
    """
    if not runs:
        raise ValueError("a report needs at least one run")
    figures = [read_run(path) for path in runs if not is_fidelity(path)]
    fidelity = [read_fidelity(path) for path in runs if is_fidelity(path)]
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
        fidelity=[_plain_section(run) for run in fidelity],
        version=__version__,
        written=written,
    )


def _section(run: RunFigures) -> dict[str, Any]:
    return {
        "intervals": Markup(interval_chart(run)),
        "charts": _charts(run),
        "summary": summary(run),
        "groups": example_groups(run),
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


def _charts(run: RunFigures) -> list[tuple[str, Markup]]:
    """Titles and drawings beside the failures, where there is something to see."""
    charts = []
    if max(m.relative for m in run.methods) > 1.1 * min(m.relative for m in run.methods):
        charts.append(("What it costs", Markup(trade_off_chart(run))))
    if all("subject kept" in m.further for m in run.methods):
        charts.append(("Obeying, without losing the subject", Markup(adherence_chart(run))))
    return charts


def _plain_section(run: RunFigures | FidelityRun) -> dict[str, Any]:
    """What every section has: the run, and how to repeat it."""
    settings = {name: value for name, value in run.settings.items() if value not in (None, {})}
    return {
        "run": run,
        "settings": json.dumps(settings, indent=2, ensure_ascii=False),
        "versions": ", ".join(f"{name} {number}" for name, number in run.description["versions"].items()),
        "command": repeat_command(run.settings),
    }


def repeat_command(settings: Mapping[str, Any]) -> str:
    """The command that makes the same run again."""
    words = ["attnsteer evaluate", settings["suite"]]
    for name, value in settings.items():
        if name in ("suite", "extra") or value is None:
            continue
        text = str(value)
        words.append(f"--{name.replace('_', '-')} {json.dumps(text) if ' ' in text else text}")
    words += [f"--set {name}={value}" for name, value in settings.get("extra", {}).items()]
    return " ".join(words)
