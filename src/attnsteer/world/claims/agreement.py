"""Comparing a table with an earlier one: which figures agree within their intervals."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from attnsteer.world.claims.figure import Figure
from attnsteer.world.claims.runs import BY_SIZE

Key = tuple[str, str, str, str]
"""Claim, block, row and name of a figure."""
EXACT: Final = 0.1
"""How much a figure without an interval, such as a cost, may change, as a share of the earlier one."""
SHOWN: Final = 20


@dataclass(frozen=True)
class Agreement:
    """What came of the comparison.

    Attributes:
        compared: Figures that both tables hold and that can be compared.
        differing: Those that do not agree, with both in words.
        lost: Figures of the claims that were run that only the earlier table holds.
        fresh: Figures that only the new table holds.
    """

    compared: int
    differing: Sequence[str]
    lost: Sequence[str]
    fresh: int

    @property
    def agrees(self) -> bool:
        """Whether nothing differs and nothing is lost."""
        return not self.differing and not self.lost

    def __str__(self) -> str:
        if not self.compared and not self.lost:
            return "There are no earlier figures to compare with."
        lines = [f"{self.compared - len(self.differing)} of {self.compared} figures agree with the earlier ones."]
        for title, keys in (("differ", self.differing), ("were not measured again", self.lost)):
            if keys:
                more = f"\n  and {len(keys) - SHOWN} more" if len(keys) > SHOWN else ""
                lines.append(f"{len(keys)} {title}:\n  " + "\n  ".join(keys[:SHOWN]) + more)
        return "\n".join(lines)


def read_reference(folder: Path) -> dict[Key, Figure]:
    """Figures of an earlier run; none if there is no results.json.

    Raises: ValueError if another version wrote it.
    """
    path = folder / "results.json"
    if not path.is_file():
        return {}
    data: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    if data.get("schema") != 1:
        raise ValueError(f"{path} has schema {data.get('schema')}, this version reads schema 1; measure again")
    figures = {}
    for claim in data["claims"]:
        for row in claim["figures"]:
            figure = Figure.from_dict(row)
            figures[claim["name"], *figure.key] = figure
    return figures


def agreement(new: Mapping[Key, Figure], earlier: Mapping[Key, Figure], partial: bool = False) -> Agreement:
    """Compare the figures of two tables.

    Args:
        new: By key.
        earlier: By key.
        partial: The new table draws less by intent: what it lacks is not lost, and `BY_SIZE` is not compared.

    Two figures agree if their 95 % intervals overlap; figures without an interval if they differ by at most a tenth.
    Times are not compared: they belong to a machine. Claims that the new table lacks altogether do not count as lost.
    """
    run = {claim for claim, *_ in new}
    both = [key for key in earlier if key in new and not earlier[key].timed and not (partial and key[3] in BY_SIZE)]
    differing = [
        f"{' / '.join(key)}: {_words(new[key])}, earlier {_words(earlier[key])}"
        for key in both
        if not agree(new[key], earlier[key])
    ]
    lost = [" / ".join(key) for key in earlier if key not in new and key[0] in run and not partial]
    return Agreement(len(both), differing, lost, sum(key not in earlier for key in new))


def agree(new: Figure, earlier: Figure) -> bool:
    """Whether two measurements of one figure agree."""
    if math.isnan(new.value) or math.isnan(earlier.value):
        return math.isnan(new.value) and math.isnan(earlier.value)
    if earlier.low == earlier.high and new.low == new.high:
        return abs(new.value - earlier.value) <= EXACT * abs(earlier.value)
    return new.low <= earlier.high and earlier.low <= new.high


def _words(figure: Figure) -> str:
    return f"{figure.text} ({figure.interval})" if figure.interval else figure.text
