"""Sweeps: from "nag.scale=1,3" to columns with their settings."""

import json
from dataclasses import dataclass, field
from typing import Annotated

import pytest
import typer
from PIL import Image
from typer.testing import CliRunner

from attnsteer.cli.groups import grouped
from attnsteer.cli.sweep import sweep
from attnsteer.evaluate.gallery import gallery_job, gallery_sheets
from attnsteer.evaluate.settings import GALLERY, Evaluation
from attnsteer.evaluate.sweep import Axis, Swept, base_of, parse_axis, swept_methods, with_settings
from attnsteer.jobs import Job, Record, read_records, run_job
from tiny import build


def test_axes_are_read():
    assert parse_axis("nag.scale=1, 3,5.5") == Axis("nag", "scale", (1, 3, 5.5))
    assert parse_axis("best-of-4.steps=10") == Axis("best-of-4", "steps", (10,))
    for text in ("nag.scale", "nag=3", "nag.scale=", "nag.scale=a,b", "nag.scale=3,3", "scale=1,2"):
        with pytest.raises(ValueError, match="METHOD.SETTING"):
            parse_axis(text)


def test_variants_take_the_place_of_their_method():
    none, *swept, steer = swept_methods("none,nag,steer", ["nag.scale=2,5", "nag.alpha=0.25,0.5"])
    assert (none.name, steer.name) == ("none", "steer")
    assert [dict(m.settings) for m in swept if isinstance(m, Swept)] == [
        {"scale": scale, "alpha": alpha} for scale in (2, 5) for alpha in (0.25, 0.5)
    ]
    first = swept[0]
    assert (first.name, first.title, first.nag) == ("nag-scale-2-alpha-0.25", "NAG, scale 2, alpha 0.25", True)
    assert [base_of(m) for m in (none, first, steer)] == ["none", "nag", "steer"]


def test_bad_sweeps_are_refused():
    for axes, message in [(["steer.end=0.5"], "needs 'steer' in methods"), (["nag.scale=1", "nag.scale=2"], "once")]:
        with pytest.raises(ValueError, match=message):
            swept_methods("none,nag", axes)
    with pytest.raises(ValueError, match=r"METHOD\.SETTING"):
        Evaluation("shapes-position", methods="none", sweep=("nonsense",))


@dataclass(frozen=True)
class Rule:
    iterations: int = 3
    size: float = 0.1


@dataclass(frozen=True)
class Settings:
    end: float = 0.5
    rule: Rule = field(default_factory=Rule)


def test_settings_reach_inner_objects_and_keep_whole_numbers_whole():
    left = {"end": 1.0, "iterations": 6.0, "strange": 2.0}
    changed = with_settings(Settings(), left)
    assert changed == Settings(1.0, Rule(6)) and isinstance(changed.rule.iterations, int)
    assert left == {"strange": 2.0}
    unchanged = Settings()
    assert with_settings(unchanged, {"strange": 1.0}) is unchanged


def test_an_evaluation_survives_its_own_description():
    own = Evaluation("shapes-negatives", methods="none,nag", sweep=("nag.scale=1,3",), nag_end=0.5)
    assert Evaluation.from_described({**own.described(), "detector": "shapes"}, "cpu").columns == own.columns
    assert own.described()["sweep"] == ["nag.scale=1,3"] and own.described()["device"] is None


def test_the_sweep_command_draws_a_sheet_and_resumes(tmp_path):
    build("sd").save_pretrained(tmp_path / "model")
    words = ["a dog", "nag.scale=2,5", "--negative", "red", "--seeds", "2", "--model", str(tmp_path / "model")]
    words += ["--steps", "2", "--width", "16", "--height", "16", "-o", str(tmp_path / "run"), "--json"]
    app = typer.Typer()
    app.command("sweep")(sweep)
    done = CliRunner().invoke(app, words)
    assert done.exit_code == 0, done.output
    with Image.open(json.loads(done.stdout)["sheet"]) as sheet:
        # Three columns of 180 points at least, two points a pixel.
        assert sheet.width > 3 * 360 and sheet.height > 2 * 360
    records = list(read_records(tmp_path / "run"))
    assert [record.data["item"]["seed"] for record in records] == [0, 1]
    assert set(records[0].data["methods"]) == {"none", "nag-scale-2", "nag-scale-5"}
    assert CliRunner().invoke(app, [*words, "--seeds", "3"]).exit_code == 1


def test_what_a_gallery_cannot_do(tmp_path):
    own = Evaluation(GALLERY, methods="none")
    with pytest.raises(ValueError, match="one or more prompts"):
        gallery_job(own, [], 1)
    with pytest.raises(ValueError, match="needs a rule"):
        gallery_job(Evaluation(GALLERY, methods="none,best-of-2"), ["a dog"], 1)
    run_job(Job("other", [{"id": "a"}], lambda: lambda items: [Record("a", {})]), tmp_path / "run", progress=False)
    with pytest.raises(ValueError, match="a run of 'other'"):
        gallery_sheets(tmp_path / "run")


def test_options_become_settings_objects():
    @dataclass(frozen=True)
    class Size:
        width: Annotated[int, typer.Option(help="Pixels.")] = 4
        dry: bool = False

    seen = []

    @grouped
    def command(*, name: str, size: Size) -> None:
        seen.append((name, size))

    app = typer.Typer()
    app.command()(command)
    assert CliRunner().invoke(app, ["x", "--width", "7"]).exit_code == 0
    assert CliRunner().invoke(app, ["x", "--dry"]).exit_code == 0
    assert seen == [("x", Size(7)), ("x", Size(4, True))]

    def twice(*, width: int, size: Size) -> None:
        pass

    with pytest.raises(TypeError, match="two options named 'width'"):
        grouped(twice)
