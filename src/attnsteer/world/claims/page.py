"""The report page: one HTML file without references to anything outside, in the style of the evaluations' reports."""

from __future__ import annotations

import re
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

from attnsteer import __version__
from attnsteer.jobs.job import versions
from attnsteer.world.claims import results
from attnsteer.world.claims.agreement import Agreement
from attnsteer.world.claims.claim import Claim, Outcome, Result
from attnsteer.world.claims.results import Table

BADGES = {Outcome.HOLDS: "good", Outcome.NOT: "bad", Outcome.PART: "mixed"}


def page(table: Table, compared: Agreement) -> str:
    """The whole page."""
    loader = ChoiceLoader(
        [PackageLoader("attnsteer.world.claims", "."), PackageLoader("attnsteer.evaluate.report", ".")]
    )
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.globals |= {"badge": lambda outcome: BADGES.get(outcome, "plain")}
    environment.filters |= {"sentence": lambda text: text[:1].upper() + text[1:]}
    return environment.get_template("claims.html.j2").render(
        style=_shared_style(environment),
        sections=[_section(table, claim, result) for claim, result in table.rows],
        scope=table.scope,
        compared=compared,
        version=__version__,
        versions=", ".join(f"{name} {number}" for name, number in versions().items()),
    )


def _shared_style(environment: Environment) -> str:
    """The style of the reports of evaluations, so that both look alike."""
    loader = environment.loader
    source = loader.get_source(environment, "page.html.j2")[0] if loader is not None else ""
    found = re.search(r"<style>(.*?)</style>", source, re.DOTALL)
    return found[1] if found else ""


def _section(table: Table, claim: Claim, result: Result) -> dict[str, Any]:
    tables = []
    for block, figures in results.blocks(result.figures).items():
        names, rows = results.cells(figures)
        tables.append({"block": block, "names": names, "rows": rows, "sample": results.sample(figures)})
    return {
        "claim": claim,
        "result": result,
        "reason": table.reason(claim, result),
        "tables": tables,
        "command": results.command_of(table.scope, claim),
    }
