"""One figure of the table, with its interval, its sample and the seeds it was drawn from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from attnsteer.evaluate.statistics import Estimate, mean_of, wilson

Unit = Literal["%", "x", ""]


@dataclass(frozen=True)
class Figure:
    """One cell of the table.

    Attributes:
        block: What is compared with each other, e.g. "shapes-unet-few, 4 steps".
        row: What was done, e.g. "NAG, scale 7".
        name: What was counted or measured, e.g. "unwanted thing absent".
        value: The share, mean or ratio.
        low: Lower end of its 95 % interval; equal to the value where chance plays no part.
        high: Upper end.
        of: Pictures behind it.
        unit: "%" for shares, "x" for ratios, "" for plain numbers.
        seeds: First and last seed.
        timed: It is a time, or made of times: another machine will not repeat it.
    """

    block: str
    row: str
    name: str
    value: float
    low: float
    high: float
    of: int
    unit: Unit
    seeds: tuple[int, int]
    timed: bool = False

    @property
    def key(self) -> tuple[str, str, str]:
        """What it is."""
        return self.block, self.row, self.name

    @property
    def text(self) -> str:
        """E.g. "93.8 %" or "1.18 ×"."""
        return shown(self.value, self.unit)

    @property
    def interval(self) -> str:
        """E.g. "88.9–96.6"; empty where chance plays no part."""
        if self.low == self.high:
            return ""
        low, high = (shown(value, self.unit).removesuffix(" %").removesuffix(" ×") for value in (self.low, self.high))
        return f"{low}–{high}"

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types; what is not a number becomes null."""
        numbers = {name: None if math.isnan(value) else value for name, value in self._numbers.items()}
        return {**asdict(self), **numbers, "seeds": list(self.seeds)}

    @property
    def _numbers(self) -> dict[str, float]:
        return {"value": self.value, "low": self.low, "high": self.high}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Figure:
        """Read what `to_dict` gave."""
        numbers = {name: math.nan if data[name] is None else data[name] for name in ("value", "low", "high")}
        return cls(**{**data, **numbers, "seeds": (data["seeds"][0], data["seeds"][1])})


@dataclass(frozen=True)
class Place:
    """Where figures stand in the table, and from which seeds they come."""

    block: str
    row: str
    seeds: tuple[int, int]

    def share(self, name: str, values: Sequence[bool]) -> Figure:
        """A share with its Wilson interval.

        Raises: ValueError if there are no values.
        """
        if not values:
            raise ValueError(f"{self.block}, {self.row}: no pictures to count {name!r} of")
        low, high = wilson(sum(values), len(values))
        return self.figure(name, sum(values) / len(values), (low, high), len(values), "%")

    def mean(self, name: str, values: Sequence[float], unit: Unit = "") -> Figure:
        """A mean with its bootstrap interval."""
        found = mean_of(values)
        return self.figure(name, found.value, (found.low, found.high), found.of, unit)

    def estimate(self, name: str, estimate: Estimate, unit: Unit = "") -> Figure:
        """A figure whose interval is known."""
        return self.figure(name, estimate.value, (estimate.low, estimate.high), estimate.of, unit)

    def exact(self, name: str, value: float, of: int, unit: Unit = "x", *, timed: bool = False) -> Figure:
        """A figure without chance, such as a cost."""
        return self.figure(name, value, (value, value), of, unit, timed=timed)

    def figure(
        self, name: str, value: float, ends: tuple[float, float], of: int, unit: Unit, *, timed: bool = False
    ) -> Figure:
        """A figure at this place."""
        return Figure(self.block, self.row, name, value, *ends, of, unit, self.seeds, timed)


def shown(value: float, unit: Unit) -> str:
    """A value as people read it."""
    if math.isnan(value):
        return "–"
    if unit == "%":
        return f"{100 * value:.1f} %"
    return f"{value:.2f} ×" if unit == "x" else f"{value:.3f}"
