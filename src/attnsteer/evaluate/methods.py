"""The methods that are compared: which guidance is on, and whether the best of several seeds is taken."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

EXPLAINED: Final = {
    "none": "the stock pipeline",
    "cfg": "the stock pipeline's own negative prompt (classifier-free guidance)",
    "nag": "normalized attention guidance",
    "vsf": "value sign flip",
    "orthogonal": "orthogonal negative guidance",
    "nasa": "negative-away steer attention",
    "steer": "learned steering",
    "both": "normalized attention guidance and learned steering",
    "best-of-N": "the best of N seeds of the stock pipeline, as the scoring rule itself sees it",
    "best-of-equal": "the same, with as many seeds as the compute of steering pays for, rounded up",
    "best-of-N-by-classifier": "the best of N seeds as the relation classifier judges them on the way",
}
"""Names for the command line; N is a number."""

_TITLES: Final = {
    "none": "Off", "cfg": "CFG", "nag": "NAG", "vsf": "VSF", "orthogonal": "Orthogonal", "nasa": "NASA",
    "steer": "Steered", "both": "NAG + steered", "best-of-equal": "Best of N, equal compute",
}  # fmt: skip


@dataclass(frozen=True)
class Method:
    """One column of a comparison.

    Attributes:
        name: As in `EXPLAINED`.
        nag: Negative guidance in attention space is on.
        steer: Learned steering is on.
        cfg: The negative prompt goes to the pipeline itself.
        best_of: Seeds of which the scoring rule takes the best; 0 means as many as the compute of the steered method
            pays for.
        candidates: Seeds of which the relation classifier takes the best, with `steer`; 0 means it steers instead.
    """

    name: str
    nag: bool = False
    steer: bool = False
    cfg: bool = False
    best_of: int = 1
    candidates: int = 0

    @property
    def title(self) -> str:
        """For people."""
        if self.candidates:
            return f"Best of {self.candidates} by classifier"
        return _TITLES.get(self.name, f"Best of {self.best_of}")

    @property
    def negative(self) -> bool:
        """Whether it needs a negative prompt."""
        return self.nag or self.cfg


_PLAIN: Final = {
    method.name: method
    for method in (
        Method("none"), Method("cfg", cfg=True), Method("nag", nag=True), Method("vsf", nag=True),
        Method("orthogonal", nag=True), Method("nasa", nag=True), Method("steer", steer=True),
        Method("both", nag=True, steer=True), Method("best-of-equal", best_of=0),
    )
}  # fmt: skip


def parse_methods(names: str | Sequence[str]) -> tuple[Method, ...]:
    """Methods by name, "none,steer,best-of-4"; those that need the cost of others come last.

    Raises: ValueError for an unknown or repeated name, or for "best-of-equal" without "none" and a steered method.
    """
    wanted = [name.strip() for name in (names.split(",") if isinstance(names, str) else names)]
    methods = [_method(name) for name in wanted]
    if not methods or len(set(wanted)) < len(wanted):
        raise ValueError(f"methods must be named once each, got {', '.join(wanted) or 'none'}")
    if "best-of-equal" in wanted and not (
        "none" in wanted and any(method.steer and not method.candidates for method in methods)
    ):
        raise ValueError("best-of-equal spends what steering costs: name none and steer (or both) as well")
    return tuple(sorted(methods, key=lambda method: method.best_of == 0))


def _method(name: str) -> Method:
    if name in _PLAIN:
        return _PLAIN[name]
    number = re.fullmatch(r"best-of-(\d+)(-by-classifier)?", name)
    if number is None or int(number[1]) < 2:
        raise ValueError(f"method must be one of {', '.join(EXPLAINED)} (N >= 2), got {name!r}")
    if number[2]:
        return Method(name, steer=True, candidates=int(number[1]))
    return Method(name, best_of=int(number[1]))
