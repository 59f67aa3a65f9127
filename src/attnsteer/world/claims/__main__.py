"""The table of claims on the embedded models: `python -m attnsteer.world.claims`, or `make evaluate`.

Draws everything with every model that lies in the package, measures it, writes results.json, figures.csv, table.md
and report.html, and compares with the figures of an earlier run. Work that is finished is kept, so the command goes
on where it was stopped. The whole table takes at most three hours of two cores, `--quick` fifteen minutes.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from attnsteer.world.claims.agreement import agreement, read_reference
from attnsteer.world.claims.reasons import read_reasons
from attnsteer.world.claims.registry import CLAIMS, chosen_claims
from attnsteer.world.claims.results import Table, write_results
from attnsteer.world.claims.roster import world_models
from attnsteer.world.claims.scope import FULL, QUICK, Scope
from attnsteer.world.claims.work import all_tasks, do_all

RESULTS = Path("results")
"""Where the committed figures lie, in the repository."""


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; 1 if `--check` finds figures that differ."""
    given = _parser().parse_args(arguments)
    size = QUICK if given.quick else FULL
    scope = Scope(size, world_models(given.models), given.work / size.name)
    claims = chosen_claims(given.claims.split(",") if given.claims else None)
    if not given.report_only:
        do_all(all_tasks([claim.plan(scope) for claim in claims]), scope.work, given.workers)
    reference = given.reference or RESULTS
    reasons = {} if given.quick else read_reasons(reference, CLAIMS)  # they explain the figures of the whole table
    table = Table.of(scope, list(CLAIMS.values()), reasons)
    whole = table.complete and not given.models and not given.quick
    output = given.output or (RESULTS if whole else scope.work.with_name(f"{size.name}-results"))
    compared = agreement(table.figures, read_reference(reference), partial=given.quick)
    for path in write_results(table, compared, output):
        sys.stdout.write(f"{path}\n")
    sys.stdout.write(f"\n{table.summary()}\n{compared}\n")
    return 1 if given.check and not compared.agrees else 0


def _cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        "python -m attnsteer.world.claims", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="few pictures: wide intervals, fifteen minutes")
    parser.add_argument("--claims", help=f"names separated by commas (default: all): {', '.join(CLAIMS)}")
    parser.add_argument("--models", nargs="+", help="embedded models or diffusers folders (default: all embedded)")
    parser.add_argument("--work", type=Path, default=Path("runs/claims"), help="folder of the runs, which are kept")
    parser.add_argument(
        "--output",
        type=Path,
        help=f"folder of the results (default: {RESULTS}; beside the runs with --quick or if the table is not whole)",
    )
    parser.add_argument("--reference", type=Path, help=f"folder of results to compare with (default: {RESULTS})")
    parser.add_argument("--check", action="store_true", help="exit with status 1 if a figure differs")
    parser.add_argument("--report-only", action="store_true", help="draw nothing, read what is there")
    parser.add_argument("--workers", type=int, default=_cores(), help="processes of one thread each")
    return parser


if __name__ == "__main__":
    sys.exit(main())
