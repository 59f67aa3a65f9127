"""The methods that are compared: which guidance is on, and whether the best of several seeds is taken."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

EQUAL: Final = 0
"""In place of a number of seeds: as many as the compute budget pays for."""
EXPLAINED: Final = {
    "none": "the stock pipeline",
    "cfg": "the stock pipeline's own negative prompt (classifier-free guidance)",
    "nag": "normalized attention guidance",
    "cfg-nag": "normalized attention guidance and the pipeline's own negative prompt",
    "vsf": "value sign flip",
    "orthogonal": "orthogonal negative guidance",
    "nasa": "negative-away steer attention",
    "steer": "learned steering",
    "steer-N": "learned steering of up to N seeds in turn, until the classifier finds one right",
    "both": "normalized attention guidance and learned steering",
    "best-of-N": "the best of N seeds of the stock pipeline, as the scoring rule itself sees it",
    "best-of-equal": "the same, with as many seeds as the compute budget pays for, rounded up; see --budget",
    "best-of-N-by-classifier": "the best of N seeds as the relation classifier judges them on the way",
    "best-of-equal-by-classifier": "the same, with as many seeds as the compute budget pays for",
}
"""Names for the command line; N is a number."""

_TITLES: Final = {
    "none": "Off", "cfg": "CFG", "nag": "NAG", "cfg-nag": "CFG + NAG", "vsf": "VSF", "orthogonal": "Orthogonal",
    "nasa": "NASA", "steer": "Steered", "both": "NAG + steered", "best-of-equal": "Best of N, equal compute",
    "best-of-equal-by-classifier": "Best of N by classifier, equal compute",
}  # fmt: skip


@dataclass(frozen=True)
class Method:
    """One column of a comparison.

    Attributes:
        name: As in `EXPLAINED`.
        nag: Negative guidance in attention space is on.
        steer: Learned steering is on.
        cfg: The negative prompt goes to the pipeline itself.
        best_of: Seeds of which the scoring rule takes the best; `EQUAL` means as many as the compute budget pays for.
        candidates: Seeds of which the relation classifier takes the best, with `steer`; `EQUAL` likewise; None means
            that it steers instead.
        attempts: Seeds that are steered in turn until the classifier finds one right, with `steer`; 1 judges none.
    """

    name: str
    nag: bool = False
    steer: bool = False
    cfg: bool = False
    best_of: int = 1
    candidates: int | None = None
    attempts: int = 1

    @property
    def title(self) -> str:
        """For people."""
        if self.candidates:
            return f"Best of {self.candidates} by classifier"
        if self.attempts > 1:
            return f"Steered, {self.attempts} attempts"
        return _TITLES.get(self.name, f"Best of {self.best_of}")

    @property
    def short_title(self) -> str:
        """The same for small places."""
        return self.title.removesuffix(", equal compute")

    @property
    def picks(self) -> bool:
        """Whether it takes the best of several plain seeds."""
        return self.best_of != 1 or self.candidates is not None

    @property
    def equal(self) -> bool:
        """Whether the compute budget says how many seeds."""
        return EQUAL in (self.best_of, self.candidates)

    @property
    def guided(self) -> bool:
        """Whether anything guides the picture."""
        return (self.nag or self.cfg or self.steer) and not self.picks

    @property
    def negative(self) -> bool:
        """Whether it needs a negative prompt."""
        return self.nag or self.cfg


_PLAIN: Final = {
    method.name: method
    for method in (
        Method("none"), Method("cfg", cfg=True), Method("nag", nag=True), Method("vsf", nag=True),
        Method("cfg-nag", nag=True, cfg=True),
        Method("orthogonal", nag=True), Method("nasa", nag=True), Method("steer", steer=True),
        Method("both", nag=True, steer=True), Method("best-of-equal", best_of=EQUAL),
        Method("best-of-equal-by-classifier", steer=True, candidates=EQUAL),
    )
}  # fmt: skip


def parse_methods(names: str | Sequence[str]) -> tuple[Method, ...]:
    """Methods by name, "none,steer,best-of-4"; those that need the cost of others come last.

    Raises: ValueError for an unknown or repeated name.
    """
    wanted = [name.strip() for name in (names.split(",") if isinstance(names, str) else names)]
    methods = [_method(name) for name in wanted]
    if not methods or len(set(wanted)) < len(wanted):
        raise ValueError(f"methods must be named once each, got {', '.join(wanted) or 'none'}")
    return tuple(sorted(methods, key=lambda method: method.equal))


def _method(name: str) -> Method:
    if name in _PLAIN:
        return _PLAIN[name]
    number = re.fullmatch(r"(?:best-of|steer)-(\d+)(-by-classifier)?", name)
    if number is None or int(number[1]) < 2 or name.startswith("steer") and number[2]:
        raise ValueError(f"method must be one of {', '.join(EXPLAINED)} (N >= 2), got {name!r}")
    if name.startswith("steer"):
        return Method(name, steer=True, attempts=int(number[1]))
    if number[2]:
        return Method(name, steer=True, candidates=int(number[1]))
    return Method(name, best_of=int(number[1]))
