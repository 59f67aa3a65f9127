"""`attnsteer doctor`: what is installed, what works here, what is missing, and how to mend it."""

import platform
import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any, Final

from rich.table import Table

from attnsteer import __version__
from attnsteer.cli import options
from attnsteer.cli.report import console, failures, print_json

# Package -> lowest version that is supported; the same as in pyproject.toml.
REQUIRED: Final[Mapping[str, str]] = {
    "torch": "2.6",
    "diffusers": "0.40",
    "transformers": "5.0",
    "accelerate": "1.10",
    "huggingface-hub": "1.0",
    "safetensors": "0.5",
    "numpy": "2.0",
    "pillow": "11.3",
}


def doctor(as_json: options.Json = False) -> None:
    """Check this installation. Exit code 1 if something that attnsteer needs is missing or broken."""
    with failures(as_json):
        findings = examine()
        if as_json:
            print_json(findings)
        else:
            _show(findings)
    if findings["problems"]:
        import typer

        raise typer.Exit(1)


def examine() -> dict[str, Any]:
    """Return versions, devices, supported denoisers, embedded models and problems, each with its remedy."""
    problems = package_problems()
    found: dict[str, Any] = {
        "attnsteer": __version__,
        "python": platform.python_version(),
        "platform": platform.platform(),
        "packages": {name: installed(name) for name in REQUIRED},
        "devices": [],
        "families": [],
        "models": [],
    }
    if found["packages"]["torch"]:
        found["devices"] = devices()
    if found["packages"]["diffusers"]:
        found["families"] = families(problems)
    from attnsteer.cli.models import describe_models

    found["models"] = describe_models()
    if not found["models"]:
        problems.append(
            {"problem": "no embedded model is installed", "remedy": "reinstall attnsteer, or pass --model"}
        )
    return {**found, "problems": problems}


def installed(package: str) -> str | None:
    """Return the installed version of a package, or None."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def package_problems() -> list[dict[str, str]]:
    """Return the required packages that are missing or too old."""
    problems = []
    for name, lowest in REQUIRED.items():
        present = installed(name)
        if present is None or _numbers(present) < _numbers(lowest):
            state = "is not installed" if present is None else f"is {present}, too old"
            problems.append({"problem": f"{name} {state}", "remedy": f"pip install '{name}>={lowest}'"})
    return problems


def _numbers(text: str) -> tuple[int, ...]:
    parts = text.partition("+")[0].split(".")
    return tuple(int(part) for part in parts if part.isdigit())


def devices() -> list[dict[str, Any]]:
    """Return the devices that torch can use, the one taken by `--device auto` first."""
    import torch

    found: list[dict[str, Any]] = []
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        gibibytes = round(properties.total_memory / 2**30, 1)
        found.append({"device": f"cuda:{index}", "name": properties.name, "memory_gib": gibibytes})
    if torch.backends.mps.is_available():
        found.append({"device": "mps", "name": "Apple GPU", "memory_gib": None})
    found.append({"device": "cpu", "name": f"{torch.get_num_threads()} threads", "memory_gib": None})
    return found


def families(problems: list[dict[str, str]]) -> list[dict[str, Any]]:
    """Return the supported denoiser classes and whether the installed diffusers has them."""
    import diffusers

    try:
        from attnsteer.families import FAMILIES
    except ImportError as error:
        problems.append({"problem": f"attnsteer.families is not importable: {error}", "remedy": "reinstall attnsteer"})
        return []
    return [{"denoiser": name, "available": hasattr(diffusers, name)} for name in sorted(FAMILIES)]


def _show(found: dict[str, Any]) -> None:
    out = console()
    out.print(f"attnsteer {found['attnsteer']}, Python {found['python']} on {found['platform']}")
    sections: list[tuple[str, list[tuple[str, str]]]] = [
        ("Packages", [(name, number or "missing") for name, number in found["packages"].items()]),
        ("Devices", [(item["device"], _device_text(item)) for item in found["devices"]]),
        (
            "Denoisers",
            [(item["denoiser"], "yes" if item["available"] else "diffusers lacks it") for item in found["families"]],
        ),
        (
            "Embedded models",
            [(item["name"], "steerable" if item["steerable"] else "no classifier") for item in found["models"]],
        ),
    ]
    for title, rows in sections:
        table = Table(title=title, title_justify="left", title_style="bold", box=None, show_header=False)
        for name, text in rows or [("none", "")]:
            table.add_row(f"  {name}", text)
        out.print()
        out.print(table)
    out.print()
    for item in found["problems"]:
        out.print(f"Problem: {item['problem']}. Remedy: {item['remedy']}")
    out.print("Nothing is missing." if not found["problems"] else f"{len(found['problems'])} problem(s).")
    sys.stdout.flush()


def _device_text(device: dict[str, Any]) -> str:
    memory = device["memory_gib"]
    return f"{device['name']}, {memory} GiB" if memory else str(device["name"])
