"""The table of claims as files: JSON with everything, CSV with every figure, Markdown and HTML for people."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Final

from attnsteer.evaluate.report.tables import pipes
from attnsteer.jobs.job import versions
from attnsteer.jobs.texts import write_texts
from attnsteer.world.claims.agreement import Agreement
from attnsteer.world.claims.claim import Claim, Finding, Outcome, Result
from attnsteer.world.claims.figure import Figure
from attnsteer.world.claims.scope import Scope

RESULTS: Final = "results.json"
SCHEMA: Final = 1
COLUMNS: Final = (
    "claim", "block", "row", "figure", "value", "low", "high", "of", "unit", "first_seed", "last_seed", "timed",
)  # fmt: skip


@dataclass(frozen=True)
class Table:
    """All claims with their results.

    Attributes:
        scope: What they were tried on.
        rows: Each claim with its result; one without findings was not run.
        reasons: Why claims do not hold, by name.
    """

    scope: Scope
    rows: Sequence[tuple[Claim, Result]]
    reasons: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def of(cls, scope: Scope, claims: Sequence[Claim], reasons: Mapping[str, str] | None = None) -> Table:
        """Read the results of all claims whose tasks are finished; the others count as not run."""
        rows = []
        for claim in claims:
            finished = all(task.done(scope.work) >= 1 for task in claim.plan(scope))
            rows.append((claim, claim.read(scope) if finished else Result()))
        return cls(scope, rows, reasons or {})

    @property
    def complete(self) -> bool:
        """Whether all claims were run."""
        return all(result.findings for _, result in self.rows)

    def reason(self, claim: Claim, result: Result) -> str:
        """Why a claim does not wholly hold, as far as known; empty if it does or was not run."""
        return "" if result.outcome in (Outcome.HOLDS, Outcome.UNTRIED) else self.reasons.get(claim.name, "")

    @property
    def figures(self) -> dict[tuple[str, str, str, str], Figure]:
        """All figures by claim, block, row and name."""
        return {(claim.name, *figure.key): figure for claim, result in self.rows for figure in result.figures}

    def summary(self) -> str:
        """One line for each claim."""
        lines = [f"{result.outcome.value:18s} {claim.title} ({result.tally})" for claim, result in self.rows]
        return "\n".join(line.removesuffix(" ()") for line in lines)

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; no times of day, so that the same figures give the same file."""
        return {
            "schema": SCHEMA,
            "size": asdict(self.scope.size),
            "models": [asdict(model) for model in self.scope.models],
            "versions": versions(),
            "claims": [
                _claim(self.scope, claim, result) | {"reason": self.reason(claim, result)}
                for claim, result in self.rows
            ],
        }


def write_results(table: Table, compared: Agreement, output: Path) -> list[Path]:
    """Write results.json, figures.csv, table.md and report.html into a folder; returns their paths."""
    from attnsteer.world.claims.page import page

    contents = {
        RESULTS: json.dumps(table.to_dict(), indent=1, ensure_ascii=False) + "\n",
        "figures.csv": comma_separated(table),
        "table.md": markdown(table),
        "report.html": page(table, compared),
    }
    return write_texts(output, contents)


def command_of(scope: Scope, claim: Claim) -> str:
    """The command that repeats a claim."""
    quick = " --quick" if scope.size.name == "quick" else ""
    return f"python -m attnsteer.world.claims{quick} --claims {claim.name}"


def comma_separated(table: Table) -> str:
    """One row for each figure."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(COLUMNS)
    for (claim, *_), f in table.figures.items():
        numbers = [f"{value:.6g}" for value in (f.value, f.low, f.high)]
        writer.writerow([claim, f.block, f.row, f.name, *numbers, f.of, f.unit, *f.seeds, int(f.timed)])
    return buffer.getvalue()


def markdown(table: Table) -> str:
    """The summary, then each claim with its statements and figures."""
    rows = [
        [claim.title, result.outcome.value, result.tally, f"`{command_of(table.scope, claim)}`"]
        for claim, result in table.rows
    ]
    parts = ["# Claims\n", pipes(["claim", "outcome", "statements", "command"], rows)]
    for claim, result in table.rows:
        parts.append(f"\n## {claim.title}\n\n{result.outcome.value.capitalize()}. {claim.source}. {claim.how}\n")
        parts += [f"{note}\n" for note in result.notes]
        found = [[f.statement, f.outcome.value, f.evidence] for f in result.findings]
        if found:
            parts.append(pipes(["statement", "outcome", "evidence"], found))
        if reason := table.reason(claim, result):
            parts.append(f"\nLooked into: {reason}\n")
        for block, figures in blocks(result.figures).items():
            head, *lines = pivot(figures)
            parts.append(f"\n{block}: {sample(figures)}\n\n{pipes(head, lines)}")
    return "\n".join(parts)


def blocks(figures: Sequence[Figure]) -> dict[str, list[Figure]]:
    """Figures by what is compared with each other."""
    found: dict[str, list[Figure]] = {}
    for figure in figures:
        found.setdefault(figure.block, []).append(figure)
    return found


def pivot(figures: Sequence[Figure]) -> list[list[str]]:
    """A header and a line for each row of a block, with intervals behind the values."""
    names, rows = cells(figures)
    lines = [[row, *(_cell(found.get(name)) for name in names)] for row, found in rows.items()]
    return [["", *names], *lines]


def cells(figures: Sequence[Figure]) -> tuple[list[str], dict[str, Mapping[str, Figure]]]:
    """Names of the figures of a block, and for each row its figures by name."""
    names = list(dict.fromkeys(figure.name for figure in figures))
    rows = list(dict.fromkeys(figure.row for figure in figures))
    return names, {row: {f.name: f for f in figures if f.row == row} for row in rows}


def sample(figures: Sequence[Figure]) -> str:
    """Sample sizes and seeds of a block, e.g. "192 pictures a row, seeds 6000000 to 6000191"."""
    counts = sorted({figure.of for figure in figures})
    seeds = [seed for figure in figures for seed in figure.seeds]
    many = str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    return f"{many} a figure, seeds {min(seeds)} to {max(seeds)}"


def _cell(figure: Figure | None) -> str:
    if figure is None:
        return ""
    return f"{figure.text} [{figure.interval}]" if figure.interval else figure.text


def _claim(scope: Scope, claim: Claim, result: Result) -> dict[str, Any]:
    return {
        "name": claim.name,
        "title": claim.title,
        "source": claim.source,
        "outcome": result.outcome.value,
        "tally": result.tally,
        "command": command_of(scope, claim),
        "findings": [_finding(finding) for finding in result.findings],
        "notes": list(result.notes),
        "figures": [figure.to_dict() for figure in result.figures],
    }


def _finding(finding: Finding) -> dict[str, str]:
    return {"statement": finding.statement, "outcome": Outcome(finding.outcome).value, "evidence": finding.evidence}
