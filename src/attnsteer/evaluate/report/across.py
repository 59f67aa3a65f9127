"""The same method in two runs over the same items, e.g. before and after a change, or under two models."""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

from attnsteer.evaluate.methods import Method
from attnsteer.evaluate.report.figures import RunFigures, results_of, values_of
from attnsteer.evaluate.statistics import Comparison, compare


@dataclass(frozen=True)
class Across:
    """A comparison of two runs.

    Attributes:
        first: One run.
        second: The other.
        method: What both did.
        items: Items that both have finished.
        settings: Settings in which the runs differ, as "name: first -> second".
        comparison: Second against first.
    """

    first: RunFigures
    second: RunFigures
    method: Method
    items: int
    settings: Sequence[str]
    comparison: Comparison


def across_runs(runs: Sequence[RunFigures]) -> list[Across]:
    """Compare every two runs of one suite over the same items, method by method; other pairs are left out."""
    found = []
    for first, second in combinations(runs, 2):
        if first.suite != second.suite or _items(first) != _items(second):
            continue
        of_second = {data["item"]["id"]: data for data in second.records}
        pairs = [(a, of_second[a["item"]["id"]]) for a in first.records if a["item"]["id"] in of_second]
        names = [m.method.name for m in second.methods]
        for figures in first.methods:
            if figures.method.name in names and pairs:
                one, two = (
                    values_of(first.suite, results_of([pair[side] for pair in pairs], figures.method.name))
                    for side in (0, 1)
                )
                groups = [str(pair[0]["item"]["group"]) for pair in pairs] if first.clustered else None
                found.append(
                    Across(
                        first, second, figures.method, len(pairs), _differing(first, second), compare(one, two, groups)
                    )
                )
    return found


def _items(run: RunFigures) -> str:
    return str(run.description["fixed"]["items_sha256"])


def _differing(first: RunFigures, second: RunFigures) -> list[str]:
    names = sorted({*first.settings, *second.settings} - {"methods"})
    pairs = [(name, first.settings.get(name), second.settings.get(name)) for name in names]
    return [f"{name}: {a} -> {b}" for name, a, b in pairs if a != b]
