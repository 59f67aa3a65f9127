"""Reports from a run with known results: figures by hand, files complete and self-contained, commands work."""

import csv
import io
import json
import re
from html.parser import HTMLParser

import pytest
import typer
from PIL import Image
from typer.testing import CliRunner

from attnsteer.cli.evaluate_command import evaluate
from attnsteer.cli.report_command import report
from attnsteer.evaluate.report import read_run, write_report
from attnsteer.evaluate.report.across import across_runs
from attnsteer.evaluate.report.tables import comma_separated, latex, markdown
from attnsteer.evaluate.statistics import wilson
from attnsteer.jobs import Job, Record, run_job

SETTINGS = {"suite": "shapes-position", "model": "toy", "methods": "none,steer,best-of-2", "steps": 4, "extra": {}}
FAILURE = {True: "right", False: "wrong place"}


def png(colour) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (24, 24), colour).save(buffer, "PNG")
    return buffer.getvalue()


def result(right: bool, evaluations: float, seconds: float, tried: int = 1) -> dict:
    return {
        "correct": right, "score": float(right), "failure": FAILURE[right], "seconds": seconds, "calls": 4, "seed": 1,
        "details": {"present": True, "holding": []}, "evaluations": evaluations, "iterations": 0, "tried": tried,
        "boxes": [["red <circle>", 0.9, 2, 3, 14, 15]],
    }  # fmt: skip


def make_run(path, count=20, settings=SETTINGS, samples=1):
    """Right: none on the first 5, steer on all but the last 2, best-of-2 on the first 10."""
    items = [
        {
            "id": f"i-{n:02d}", "prompt": f"shape & <{n}>", "asked": {}, "labels": [],
            "kind": "above" if n % 2 else "below", "negative": None, "group": n // samples, "seed": n,
        }
        for n in range(count)
    ]  # fmt: skip

    def work(items):
        for item in items:
            n = item["seed"]
            methods = {
                "none": result(n < 5, 8, 0.5),
                "steer": result(n < count - 2, 20, 1.25),
                "best-of-2": result(n < 10, 16, 1.0, tried=2),
            }
            files = {f"{name}.png": png((10 * n, 0, 0)) for name in methods}
            yield Record(item["id"], {"item": item, "detector": "shapes (exact)", "methods": methods}, files)

    run_job(Job("evaluate", items, lambda: work, settings, shard_size=5), path, progress=False)
    return path


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("runs") / "toy")


def test_figures_by_hand(folder):
    run = read_run(folder)
    none, steer, best = run.methods
    assert (none.headline.value, none.right, none.headline.of) == (5 / 20, 5, 20)
    assert (none.headline.low, none.headline.high) == wilson(5, 20)
    assert (steer.relative, best.relative, steer.seconds) == (2.5, 2.0, 1.25)
    # Of the first five, three are even (below); of the 18 that steering gets right, nine are.
    assert (none.kinds["below"].value, none.kinds["above"].value) == (3 / 10, 2 / 10)
    assert none.failures == {"right": 5, "wrong place": 15}
    assert none.against is None and steer.against is not None
    assert (steer.against.better, steer.against.worse, steer.against.difference) == (13, 0, 13 / 20)
    assert steer.against.p_value == pytest.approx(2 / 2**13)
    assert none.further == {"all objects there": 1.0, "right where all are there": 0.25}
    assert run.interval == "Wilson" and best.tried == 2


def test_several_pictures_of_a_prompt_are_resampled_together(tmp_path):
    run = read_run(make_run(tmp_path / "run", samples=4))
    assert run.clustered and run.interval == "bootstrap over prompts"
    assert run.methods[0].headline.value == 0.25


def test_two_runs_over_the_same_items_are_compared(folder, tmp_path):
    other = make_run(tmp_path / "more-steps", settings={**SETTINGS, "steps": 8, "methods": "none,steer"})
    different = make_run(tmp_path / "fewer", count=10)
    runs = [read_run(path) for path in (folder, other, different)]
    found = across_runs(runs)
    assert [(a.method.name, a.items, a.comparison.difference) for a in found] == [("none", 20, 0), ("steer", 20, 0)]
    assert found[0].settings == ["steps: 4 -> 8"]
    assert "steps: 4 -&gt; 8" in write_report([folder, other], tmp_path / "report")[0].read_text()


class Links(HTMLParser):
    def __init__(self):
        super().__init__()
        self.outside, self.open = [], []

    def handle_starttag(self, tag, attributes):
        self.outside += [v for k, v in attributes if k in ("src", "href") and not v.startswith(("data:", "#"))]
        if tag not in ("meta", "img", "br", "line", "circle", "link"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        if tag not in ("line", "circle"):
            assert self.open.pop() == tag


def test_the_page_is_self_contained_and_escapes_what_it_quotes(folder, tmp_path):
    page, *others = write_report([folder], tmp_path / "report")
    text = page.read_text()
    links = Links()
    links.feed(text)
    assert links.outside == [] and links.open == []
    assert "shape &amp; &lt;7&gt;" in text and "shape & <7>" not in text
    assert "red &lt;circle&gt;" in text
    assert "Put right by Steered <span>· 13 of 20" in text and "Spoilt" not in text
    assert "Steered: 90.0 % right, Off: 25.0 %; +65.0" in text and "(p &lt; 0.001), at 2.50 × the compute" in text
    assert "What it costs" in text and "Obeying" not in text
    assert "65.0 %" not in text and "90.0 %" in text and "+65.0" in text
    assert [path.name for path in others] == ["report.md", "figures.csv", "table.tex"]
    assert all(path.stat().st_size for path in others)


def test_tables_agree_with_the_figures(folder):
    run = read_run(folder)
    rows = list(csv.DictReader(io.StringIO(comma_separated([run]))))
    assert [row["kind"] for row in rows] == ["all", "below", "above"] * 3
    assert float(rows[0]["value"]) == 0.25 and float(rows[3]["difference"]) == 0.65
    assert rows[1]["seconds"] == ""
    text = markdown([run])
    assert re.search(r"\| Steered \| 90\.0 % \| .* \| \+65\.0 \(.*\) \| < 0\.001 \| 2\.50 × \| 1\.25 s \|", text)
    assert r"Steered & 90.0 &" in latex([run]) and latex([run]).count(r"\\") == 5


def test_unfinished_runs_and_several_runs(folder, tmp_path):
    half = make_run(tmp_path / "half")
    for number in (2, 3):
        (half / f"shard-{number:05d}-of-00004.tar.sha256").unlink()
    page = write_report([folder, half], tmp_path / "report")[0].read_text()
    assert "Not finished: 10 of 20 items" in page and page.count('<section id="run') == 2
    with pytest.raises(ValueError, match="at least one run"):
        write_report([], tmp_path / "none")
    for number in (0, 1):
        (half / f"shard-{number:05d}-of-00004.tar.sha256").unlink()
    with pytest.raises(ValueError, match="no finished shard"):
        read_run(half)
    with pytest.raises(FileNotFoundError, match="no run"):
        read_run(tmp_path)


@pytest.fixture(scope="module")
def commands():
    app = typer.Typer()
    app.command("evaluate")(evaluate)
    app.command("report")(report)
    return lambda *words: CliRunner().invoke(app, [str(word) for word in words])


def test_report_command(folder, tmp_path, commands):
    done = commands("report", folder, "-o", tmp_path / "out", "--json")
    assert done.exit_code == 0, done.output
    assert len(json.loads(done.stdout)["report"]) == 4
    assert (tmp_path / "out" / "report.html").exists()
    assert commands("report", tmp_path / "nowhere").exit_code == 1


def test_evaluate_command_lists_and_refuses(commands):
    listed = commands("evaluate", "--list")
    assert listed.exit_code == 0 and "geneval-position" in listed.stdout and "detector: mask2former" in listed.stdout
    assert "shapes-chains" in json.loads(commands("evaluate", "--list", "--json").stdout)["suites"][8]["name"]
    refused = commands("evaluate", "nonsense")
    assert refused.exit_code == 1 and "suite must be one of" in refused.output


def test_evaluate_command_runs_and_resumes(tmp_path, commands):
    from tiny import build

    build("sd").save_pretrained(tmp_path / "model")
    words = [
        "evaluate",
        "shapes-position",
        "--model",
        tmp_path / "model",
        "--methods",
        "none,nag",
        "--negative",
        "red",
    ]
    words += [
        "--count",
        2,
        "--batch",
        2,
        "--steps",
        2,
        "--width",
        16,
        "--height",
        16,
        "-o",
        tmp_path / "run",
        "--quiet",
    ]
    first = commands(*words)
    assert first.exit_code == 0, first.output
    assert first.stdout.strip() == str(tmp_path / "run" / "report" / "report.html")
    again = commands(*words, "--json")
    assert json.loads(again.stdout)["finished"] == 1
    other = commands(*words, "--seed", 5)
    assert other.exit_code == 1 and "other items_sha256, settings" in other.output
