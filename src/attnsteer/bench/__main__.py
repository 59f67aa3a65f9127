"""What guidance and steering cost, counted and timed on this machine.

guidance  floating-point operations of one denoiser call of full-size models, relative to the plain call
time      wall clock of a FLUX-shaped denoiser with random weights, relative to the plain call
steering  floating-point operations of one picture with learned steering, published and lean
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

PARTS = ("guidance", "time", "steering")


def main(arguments: Sequence[str] | None = None) -> None:
    """Command line; `arguments` default to those of the process."""
    parser = argparse.ArgumentParser(
        prog="python -m attnsteer.bench", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="tables to print (default: all)")
    parser.add_argument("--models", nargs="+", default=[""], metavar="TEXT", help="only models whose name holds TEXT")
    parser.add_argument("--repeats", type=int, default=5, help="rounds of the timing (default: 5)")
    parser.add_argument(
        "--device", default="cpu", help="where to time: cpu takes a quarter-size model, cuda the whole"
    )
    parser.add_argument("--output", type=Path, help="also write the figures as JSON")
    given = parser.parse_args(arguments)
    figures: dict[str, Any] = {"machine": _machine()}
    for part in dict.fromkeys(given.parts):
        figures[part] = _shown(_TABLES[part](given))
    if given.output is not None:
        given.output.write_text(json.dumps(figures, indent=2) + "\n", encoding="utf-8")


def _machine() -> dict[str, str]:
    from importlib.metadata import version

    libraries = {name: version(name) for name in ("attnsteer", "torch", "diffusers")}
    return {"system": platform.platform(), "python": platform.python_version(), **libraries}


def _chosen(name: str, given: argparse.Namespace) -> bool:
    return any(text.lower() in name.lower() for text in given.models)


def _guidance(given: argparse.Namespace) -> Iterator[tuple[str, dict[str, Any]]]:
    from attnsteer.bench.flops import guidance_cost
    from attnsteer.bench.sizes import SIZES

    yield "One denoiser call, floating-point operations (TFLOP; x = relative to plain)", {}
    yield f"{'model':34}{'plain':>10}{'NAG':>8}{'two-pass':>10}{'CFG':>7}   paper (A100, time)", {}
    for size in SIZES:
        if _chosen(size.name, given):
            cost = guidance_cost(size)
            ratios = {name: cost.ratio(getattr(cost, name)) for name in ("merged", "two_pass", "doubled")}
            paper = "" if cost.paper is None else f"x{1 + cost.paper:.2f}"
            merged, two_pass, doubled = (f"x{ratio:.3f}" for ratio in ratios.values())
            line = f"{cost.name:34}{cost.plain / 1e12:10.2f}{merged:>8}{two_pass:>10}{doubled:>7.6}   {paper}"
            yield line, {"model": cost.name, "plain_flop": cost.plain, **ratios, "paper_time": cost.paper}


def _time(given: argparse.Namespace) -> Iterator[tuple[str, dict[str, Any]]]:
    from attnsteer.bench.clock import VARIANTS, guidance_time
    from attnsteer.bench.sizes import FLUX_DEV_1024, FLUX_QUARTER

    size = FLUX_QUARTER if given.device == "cpu" else FLUX_DEV_1024
    times = guidance_time(size, given.repeats, given.device)
    yield f"One denoiser call, wall clock: {times.name}", {}
    yield f"{times.device}, {times.dtype}, {times.threads} CPU thread, {given.repeats} rounds", {}
    yield f"{'':34}{'best':>10}{'median ratio':>16}", {}
    titles = dict(zip(VARIANTS, ("plain", "NAG", "NAG, two-pass", "CFG (batch doubled)"), strict=True))
    for variant, title in titles.items():
        best, ratio = times.best(variant), times.ratio(variant)
        record = {"variant": variant, "ratio": ratio, "seconds": times.seconds[variant]}
        yield f"{title:34}{best:8.3f} s{f'x{ratio:.2f}':>16}", {"model": times.name, "device": times.device, **record}


def _steering(given: argparse.Namespace) -> Iterator[tuple[str, dict[str, Any]]]:
    from attnsteer.bench.steering import REGIMES, steering_cost

    yield "One picture with learned steering, floating-point operations at most (TFLOP; x = relative to plain)", {}
    yield f"{'model':24}{'regime':42}{'iterations':>11}{'each':>8}{'plain':>9}{'steered':>10}{'':>8}", {}
    for regime in REGIMES:
        if _chosen(regime.size.name, given):
            cost, iterations = steering_cost(regime), regime.steered_steps * regime.iterations
            ratio = cost.total / cost.base
            each, base, total = (flops / 1e12 for flops in (cost.iteration, cost.base, cost.total))
            yield (
                f"{regime.size.name:24}{regime.name:42}{iterations:>11}{each:8.2f}{base:9.1f}{total:10.1f}{f'x{ratio:.2f}':>8}",
                {
                    "model": regime.size.name,
                    "regime": regime.name,
                    "iterations": iterations,
                    "iteration_flop": cost.iteration,
                    "plain_flop": cost.base,
                    "steered_flop": cost.total,
                    "ratio": ratio,
                },
            )


_TABLES = {"guidance": _guidance, "time": _time, "steering": _steering}


def _shown(lines: Iterator[tuple[str, dict[str, Any]]]) -> list[dict[str, Any]]:
    """Print the lines as they come, and return the records of those that have one."""
    records = []
    for line, record in lines:
        sys.stdout.write(line.rstrip() + "\n")
        sys.stdout.flush()
        records += [record] if record else []
    sys.stdout.write("\n")
    return records


if __name__ == "__main__":
    main()
