"""The README and the documents are true: every block runs, every link leads somewhere, tables agree with the code.

Python blocks of a document run from top to bottom in one namespace, as a reader would type them.
"""

import argparse
import importlib.util
import json
import re
import runpy
import shlex
import sys
from dataclasses import asdict, fields
from pathlib import Path

import pytest
from torch.distributed.run import get_args_parser
from typer.testing import CliRunner

from attnsteer.bench import __main__ as bench
from attnsteer.cli import main
from attnsteer.families import FAMILIES
from attnsteer.jobs import Local
from attnsteer.jobs.ray_engine import RayActors
from attnsteer.negative.nag import NAG
from attnsteer.presets import PRESETS
from attnsteer.steering.descent import LeanRule
from attnsteer.support import support_table, with_table
from attnsteer.world.claims.registry import CLAIMS
from attnsteer.world.claims.roster import world_models
from documents import Block, blocks, offline, prose

ROOT = Path(__file__).parent.parent
DOCUMENTS = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
BLOCKS = [block for document in DOCUMENTS for block in blocks(document)]
SHOWN = {"text", "bibtex"}
IMAGE = re.compile(r"!\[[^\]]*\]\(([^)]+)\)")
LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)]+)\)")


def name(value: object) -> str:
    return value.name if isinstance(value, Path) else str(value)


@pytest.mark.parametrize("document", [d for d in DOCUMENTS if "python" in {b.language for b in blocks(d)}], ids=name)
def test_python_blocks_run(document: Path, tmp_path: Path):
    namespace: dict[str, object] = {}
    with offline(tmp_path):
        for block in blocks(document):
            if block.language == "python":
                lines = "\n" * (block.line - 1) + block.text  # so that a traceback names the line of the document
                exec(compile(lines, str(document), "exec"), namespace)


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.language in ("bash", "console")], ids=name)
def test_commands_run(block: Block, tmp_path: Path):
    with offline(tmp_path, most_steps=6), pytest.MonkeyPatch.context() as patch:
        patch.setattr(RayActors, "run", lambda engine, job, numbers: Local().run(job, numbers))  # there is no cluster
        for line, output in block.commands():
            printed = run(line, tmp_path)
            for shown in output:
                assert shown.rstrip() in printed, f"{block}: {line!r} does not print {shown!r} but\n{printed}"


def run(line: str, folder: Path) -> str:
    """Run a command of a document, or check as much of it as can be checked offline; returns what it prints."""
    program, *arguments = shlex.split(line, comments=True)
    if program == "torchrun":
        return run_rank(arguments, folder)
    if program == "attnsteer":
        result = CliRunner().invoke(main, arguments)
        unfit = arguments[0] == "doctor" and result.exit_code == 1  # it tells what this machine lacks
        assert result.exit_code == 0 or unfit, f"{line}\n{result.output}\n{result.exception!r}"
        return result.output
    if program == "make":
        assert re.search(rf"^{arguments[0]}:", (ROOT / "Makefile").read_text(), re.MULTILINE), f"no target: {line}"
        return ""
    if program == "python" and arguments[0] == "-m":
        return options_understood(arguments[1], arguments[2:])
    assert line.startswith(("pip install -e .", "git clone ")), f"do not know how to check {line!r}"
    return ""


def run_rank(arguments: list[str], folder: Path) -> str:
    """Let torchrun understand its options, and run its program as the only rank, in this process."""
    understood = get_args_parser().parse_args(arguments)
    assert understood.module and understood.nproc_per_node
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RANK", "0")
        patch.setenv("WORLD_SIZE", "1")
        words = [understood.training_script, *understood.training_script_args]
        assert "torchrun" in words
        return run(shlex.join(words), folder)


def options_understood(module: str, arguments: list[str]) -> str:
    """Start a module of ours as a program, and stop it once it has understood its options: it would run for long."""
    assert importlib.util.find_spec(module), f"there is no module {module}"
    understand = argparse.ArgumentParser.parse_args

    def stop(parser: argparse.ArgumentParser, *args: object, **kwargs: object) -> None:
        understand(parser, *args, **kwargs)
        raise SystemExit(0)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(SystemExit) as left:
        patch.setattr(argparse.ArgumentParser, "parse_args", stop)
        patch.setattr(sys, "argv", [module, *arguments])
        for loaded in [name for name in sys.modules if name in (module, f"{module}.__main__")]:
            patch.delitem(sys.modules, loaded)
        runpy.run_module(module, run_name="__main__")
    assert left.value.code == 0, f"{module} does not understand {arguments}"
    return ""


def test_every_block_is_of_a_kind_that_is_checked():
    assert {block.language for block in BLOCKS} <= SHOWN | {"python", "bash", "console"}


@pytest.mark.parametrize("document", DOCUMENTS, ids=name)
def test_links_lead_somewhere(document: Path):
    text = prose(document)
    images = IMAGE.findall(text) if (ROOT / "docs" / "images").is_dir() else []
    for target in (*LINK.findall(text), *images):
        if not target.startswith(("http://", "https://")):
            assert (document.parent / target.partition("#")[0]).exists(), f"{document.name}: {target}"


@pytest.mark.parametrize("document", [ROOT / "README.md", ROOT / "docs" / "parameters.md"], ids=name)
def test_preset_tables_are_those_of_the_code(document: Path):
    rows = {cells[0]: cells[1:] for cells in tables(document) if len(cells) == 4}
    presets = [preset for preset in PRESETS if preset.method == "NAG"]
    shown = {preset.model: rows[preset.model] for preset in presets if preset.model in rows}
    assert len(shown) >= 5
    for preset in presets:
        if preset.model in shown:
            assert [float(cell) for cell in shown[preset.model]] == list(preset.settings.values())


@pytest.mark.parametrize("settings", [LeanRule(), NAG()], ids=lambda settings: type(settings).__name__)
def test_settings_tables_name_all_settings_and_their_defaults(settings: object):
    rows = {
        cell.strip("`"): cells for cells in tables(ROOT / "docs" / "parameters.md") for cell in cells[0].split(", ")
    }
    for field in fields(settings):
        assert field.name in rows
        if isinstance(settings, LeanRule):
            assert rows[field.name][1].strip("`").lower() == json.dumps(field.default)


def test_supported_models_have_a_row():
    table = [cells for cells in tables(ROOT / "README.md") if len(cells) == 4 and "yes" in cells[2:]]
    classes = [cls for cells in table for cls in re.findall(r"`(\w+)`", cells[1])]
    assert len(classes) >= 4
    assert not set(classes) - set(FAMILIES)


def test_the_table_of_all_models_is_that_of_the_code():
    text = (ROOT / "docs" / "models.md").read_text("utf-8")
    proofs = json.loads((ROOT / "docs" / "proofs.json").read_text("utf-8"))
    assert support_table(proofs=proofs) in text, "run: python -m attnsteer.support docs/models.md"
    assert with_table(text, proofs) == text
    assert all(f"`{cls}`" in text for cls in FAMILIES)
    with pytest.raises(ValueError, match="lacks the lines"):
        with_table("no table here")


def tables(document: Path) -> list[list[str]]:
    """Rows of all tables of a document, as lists of cells."""
    lines = [line for line in prose(document).splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def test_the_table_of_claims_is_whole_of_the_models_in_the_package_and_told_in_the_readme():
    results = json.loads((ROOT / "results" / "results.json").read_text("utf-8"))
    assert results["models"] == [asdict(model) for model in world_models()], "weights have changed: make evaluate"
    words = {"holds in part": "in part"}
    rows = tables(ROOT / "README.md")
    first = next(number for number, cells in enumerate(rows) if cells == ["claim", "here"])
    assert [claim["name"] for claim in results["claims"]] == list(CLAIMS)
    for claim, (_, told) in zip(results["claims"], rows[first + 1 :], strict=False):
        assert told.startswith(words.get(claim["outcome"], claim["outcome"])), claim["title"]
        assert claim["outcome"] == "holds" or claim["reason"], f"results/reasons.toml: why {claim['name']}?"
    assert len(rows[first + 1 :]) >= len(CLAIMS)


def test_sizing_table_follows_from_its_formula():
    """Pictures x plain pictures per picture / GPUs, at one second each."""
    sizes = {"`geneval-position`": 100 * 4, "`t2i-compbench-spatial`": 300 * 10}
    rows = [cells for cells in tables(ROOT / "docs" / "evaluation.md") if cells[0] in sizes and len(cells) == 6]
    assert len(rows) == 2
    for suite, pictures, *minutes in rows:
        assert int(pictures.replace(",", "")) == sizes[suite]
        exact = [sizes[suite] * cost / gpus / 60 for cost in (3, 4) for gpus in (1, 8)]
        assert [float(cell.removesuffix(" min")) for cell in minutes] == pytest.approx(exact, rel=0.02)


@pytest.mark.parametrize(("document", "arguments"), [
    ("README.md", ["--parts", "guidance", "--models", "SD2.1"]),
    ("docs/steering.md", ["--parts", "steering", "--models", "SD2.1"]),
])  # fmt: skip
def test_cost_tables_are_what_the_bench_prints(document: str, arguments: list[str], capsys):
    """One model, counted in seconds, stands for all."""
    bench.main(arguments)
    printed = [line for line in capsys.readouterr().out.splitlines()[1:] if line]
    text = "".join(block.text for block in blocks(ROOT / document))
    assert len(printed) >= 2
    assert [line for line in printed if line not in text.splitlines()] == []
