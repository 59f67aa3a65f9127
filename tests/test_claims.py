"""The table of claims: its rules on made-up results, and a whole small claim on a tiny random model."""

import json
import math
import os
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from attnsteer.evaluate.statistics import Comparison
from attnsteer.world.chains import KINDS
from attnsteer.world.claims import __main__ as command
from attnsteer.world.claims import learned_loss
from attnsteer.world.claims.agreement import agreement, read_reference
from attnsteer.world.claims.claim import Finding, Outcome, Result, more, no_less, no_more
from attnsteer.world.claims.curves import area_difference, curve_area, dominated_area
from attnsteer.world.claims.figure import Figure, Place
from attnsteer.world.claims.page import page
from attnsteer.world.claims.pairs import paired, paired_interval
from attnsteer.world.claims.reasons import read_reasons
from attnsteer.world.claims.registry import CLAIMS, chosen_claims
from attnsteer.world.claims.results import RESULTS, Table, cells, markdown
from attnsteer.world.claims.roster import Kind, WorldModel, missing_kinds, of_kinds, world_models
from attnsteer.world.claims.runs import AREA, BY_SIZE, wanted_scenes
from attnsteer.world.claims.scope import FULL, QUICK, Scope, Size
from attnsteer.world.claims.work import all_tasks, do_all
from steered import save_classifier
from tiny import build

MODELS = (
    WorldModel("unet", "U-Net", 20, 1.5, 7.0, True),
    WorldModel("unet-4", "U-Net", 4, 1.0, 7.0, False),
    WorldModel("mmdit", "MMDiT", 20, 2.0, 5.0, True),
    WorldModel("mmdit-1", "MMDiT", 1, 1.0, 5.0, False),
    WorldModel("clips", "video", 12, 3.0, 5.0, False),
)
PLACE = Place("model, 4 steps", "NAG", (10, 19))


def comparison(low: float, high: float) -> Comparison:
    return Comparison((low + high) / 2, low, high, 0.5, 0, 0)


@pytest.mark.parametrize(
    ("points", "area"),
    [
        ([(1.0, 1.0)], 1.0),
        ([(0.5, 0.5)], 0.25),
        ([(1.0, 0.2), (0.5, 0.6)], 1.0 * 0.2 + 0.5 * 0.4),
        ([(0.5, 0.6), (1.0, 0.2), (0.4, 0.5)], 1.0 * 0.2 + 0.5 * 0.4),  # a dominated point adds nothing
        ([], 0.0),
    ],
)
def test_the_area_is_that_of_the_union_of_rectangles(points, area):
    assert dominated_area(points) == pytest.approx(area)


def test_areas_come_with_an_interval_that_holds_them_and_differences_are_paired():
    kept = [[True] * 20, [True] * 12 + [False] * 8]
    absent = [[True] * 5 + [False] * 15, [True] * 18 + [False] * 2]
    found = curve_area(kept, absent)
    assert found.value == pytest.approx(1.0 * 0.25 + 0.6 * 0.65)
    assert found.low < found.value < found.high and found.of == 20
    assert area_difference((kept, absent), (kept, absent)) == (0.0, 0.0)
    with pytest.raises(ValueError, match="same items"):
        curve_area(kept, absent[:1])


@pytest.mark.parametrize(
    ("low", "high", "up", "level", "down"),
    [
        (0.1, 0.3, Outcome.HOLDS, Outcome.HOLDS, Outcome.NOT),
        (-0.02, 0.03, Outcome.OPEN, Outcome.HOLDS, Outcome.HOLDS),
        (-0.4, -0.2, Outcome.NOT, Outcome.NOT, Outcome.HOLDS),
        (-0.3, 0.3, Outcome.OPEN, Outcome.OPEN, Outcome.OPEN),
    ],
)
def test_statements_are_decided_by_the_interval_of_the_difference(low, high, up, level, down):
    found = comparison(low, high)
    assert more("more", found, "").outcome is up
    assert no_less("no less", found, "", margin=0.1).outcome is level
    assert no_more("no more", found, "", margin=0.05).outcome is down


def test_a_claim_holds_if_all_its_findings_do_and_gaps_do_not_count():
    holds, fails, gap, undecided = (
        Finding("", outcome, "") for outcome in (Outcome.HOLDS, Outcome.NOT, Outcome.MISSING, Outcome.OPEN)
    )
    assert Result(findings=[holds, gap]).outcome is Outcome.HOLDS
    assert Result(findings=[holds, undecided]).outcome is Outcome.PART
    assert Result(findings=[holds, fails, gap]).outcome is Outcome.PART
    assert Result(findings=[holds, fails, gap]).tally == "1 of 2 statements hold"
    assert Result(findings=[fails, undecided]).outcome is Outcome.NOT
    assert Result(findings=[fails, undecided, undecided]).outcome is Outcome.OPEN
    assert Result(findings=[holds, replace(fails, control=True)]).outcome is Outcome.HOLDS
    assert Result(findings=[undecided, gap]).outcome is Outcome.OPEN
    assert Result(findings=[gap]).outcome is Outcome.MISSING
    assert Result().outcome is Outcome.UNTRIED


def test_paired_intervals_are_those_of_the_formula_and_never_empty():
    assert paired_interval(0, 0, 12) == pytest.approx((-1.959964 / 14, 1.959964 / 14))
    low, high = paired_interval(10, 2, 40)  # by hand: b 10.5, c 2.5, n 42
    assert (low + high) / 2 == pytest.approx(8 / 42)
    assert (high - low) / 2 == pytest.approx(1.959964 * math.sqrt(13 - 64 / 42) / 42)
    found = paired([True] * 5 + [False] * 5, [True] * 10)
    assert found.difference == 0.5 and (found.low, found.high) == paired_interval(5, 0, 10)
    with pytest.raises(ValueError, match="at most 3"):
        paired_interval(2, 2, 3)


def test_kinds_of_models_are_told_by_architecture_steps_and_classifier():
    assert [m.name for m in of_kinds(MODELS, [Kind("U-Net", 9), Kind("U-Net")])] == ["unet", "unet-4"]
    kinds = [Kind("U-Net", 1, 2), Kind("MMDiT", 3, 8), Kind("MMDiT", 1, 2), Kind("video", classifier=True)]
    assert missing_kinds(MODELS, kinds) == [
        "U-Net in 1 to 2 steps", "MMDiT in 3 to 8 steps", "video with a relation classifier",
    ]  # fmt: skip
    assert [str(Kind("U-Net", least)) for least in (3, 9)] == ["U-Net in 3 steps or more", "U-Net in many steps"]


def test_the_embedded_models_are_found_by_their_cards():
    found = {model.name: model for model in world_models()}
    assert found["shapes-unet"].classifier and not found["shapes-unet"].few_step
    few = [model for model in world_models() if model.name == "shapes-unet-few"]
    assert [model.steps for model in few] == [4, 2, 1] and all(model.few_step for model in few)
    assert len({model.digest for model in few}) == 1


def test_other_weights_or_advice_make_other_runs_and_other_words_do_not(tmp_path: Path):
    def written(weights: str, steps: int, readme: str) -> WorldModel:
        (tmp_path / "unet").mkdir(exist_ok=True)
        (tmp_path / "steering").mkdir(exist_ok=True)
        (tmp_path / "model_index.json").write_text(json.dumps({"unet": ["diffusers", "UNet2DConditionModel"]}))
        (tmp_path / "unet" / "a.safetensors").write_text(weights)
        (tmp_path / "steering" / "config.json").write_text(weights)
        (tmp_path / "steering" / "metrics.json").write_text(readme)
        (tmp_path / "attnsteer.json").write_text(json.dumps({"defaults": {"steps": steps}, "figures": readme}))
        (tmp_path / "README.md").write_text(readme)
        return world_models([str(tmp_path)])[0]

    first = written("one", 4, "a")
    assert written("one", 4, "b") == first and first.digest and first.classifier_digest
    assert written("one", 3, "a").digest != first.digest
    other = written("two", 4, "a")
    assert other.plain_folder != first.plain_folder and other.steered_folder.endswith(other.classifier_digest)
    assert other.classifier_digest != first.classifier_digest


@pytest.mark.parametrize("size", [QUICK, FULL])
def test_all_claims_have_a_plan_for_all_models_without_clashes(size, tmp_path: Path):
    scope = Scope(size, MODELS, tmp_path)
    tasks = all_tasks([claim.plan(scope) for claim in CLAIMS.values()])
    for model in MODELS:
        assert any(f"/{model.name}" in name for name in tasks), model
    assert all(task.seconds > 0 and task.done(tmp_path) == 0 for task in tasks.values())
    if size is FULL:
        everything = [*MODELS, replace(MODELS[1], steps=2), replace(MODELS[3], steps=4)]
        whole = all_tasks([claim.plan(Scope(size, everything, tmp_path)) for claim in CLAIMS.values()])
        assert sum(task.seconds for task in whole.values()) < 3 * 3600 * 2


def test_without_models_every_claim_says_which_it_lacks(tmp_path: Path):
    for claim in CLAIMS.values():
        found = claim.read(Scope(QUICK, (), tmp_path))
        assert found.outcome is Outcome.MISSING and found.findings[0].evidence == "no such embedded model yet"


def test_unknown_claims_are_errors_and_known_ones_keep_their_order():
    assert [claim.name for claim in chosen_claims(["video", "few-steps"])] == ["few-steps", "video"]
    with pytest.raises(ValueError, match="no claim 'magic'"):
        chosen_claims(["magic"])


@dataclass(frozen=True)
class Note:
    """A task that writes down that it ran."""

    name: str
    needs: tuple[str, ...] = ()
    seconds: float = 1.0

    def run(self, work: Path) -> None:
        with (work / "order").open("a") as file:
            file.write(f"{self.name} ")

    def done(self, work: Path) -> float:
        return 0.0


@dataclass(frozen=True)
class Broken(Note):
    def run(self, work: Path) -> None:
        raise ZeroDivisionError


@dataclass(frozen=True)
class Endless(Note):
    """A task that never ends."""

    def run(self, work: Path) -> None:
        print("begun", flush=True)
        time.sleep(600)


def test_workers_end_when_the_command_is_killed(tmp_path: Path):
    script = tmp_path / "command.py"
    script.write_text(
        "from pathlib import Path\n"
        "from test_claims import Endless, do_all\n"
        f"if __name__ == '__main__':\n    do_all({{'a': Endless('a')}}, Path({str(tmp_path)!r}), 2, progress=False)\n"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent)}
    with subprocess.Popen([sys.executable, script], env=environment, stdout=subprocess.PIPE, text=True) as command:
        assert command.stdout.readline() == "begun\n"
        command.kill()
        # The pipe ends with the last process that may write to it.
        assert command.communicate(timeout=60)[0] == ""


def test_tasks_run_after_those_they_need(tmp_path: Path):
    tasks = all_tasks([[Note("c", ("a", "b")), Note("b", ("a",))], [Note("a"), Note("b", ("a",))]])
    do_all(tasks, tmp_path, progress=False)
    assert (tmp_path / "order").read_text().split() == ["a", "b", "c"]
    with pytest.raises(ValueError, match="need each other"):
        do_all({"a": Note("a", ("b",)), "b": Note("b", ("a",))}, tmp_path, progress=False)
    with pytest.raises(ValueError, match="two different tasks"):
        all_tasks([[Note("a")], [Note("a", seconds=2.0)]])
    with pytest.raises(ValueError, match="no claim plans"):
        all_tasks([[Note("a", ("z",))]])
    with pytest.raises(ZeroDivisionError) as caught:
        do_all({"broken": Broken("broken")}, tmp_path, progress=False)
    assert "in the task 'broken'" in caught.value.__notes__[0]
    with pytest.raises(ValueError, match="workers"):
        do_all(tasks, tmp_path, 0)


def test_figures_agree_if_their_intervals_overlap():
    share, cost = PLACE.share("kept", [True] * 18 + [False] * 2), PLACE.exact("cost", 1.2, 20)
    time = PLACE.exact("time", 1.2, 20, timed=True)

    def compared(*new: Figure):
        earlier = {("early", *figure.key): figure for figure in (share, cost, time)}
        return agreement({("early", *figure.key): figure for figure in new}, earlier)

    near, far = PLACE.share("kept", [True] * 15 + [False] * 5), PLACE.share("kept", [True] * 2 + [False] * 18)
    assert compared(near, replace(cost, value=1.25, low=1.25, high=1.25), replace(time, value=9.0)).agrees
    assert len(compared(far, cost, time).differing) == 1
    assert len(compared(share, replace(cost, value=1.4, low=1.4, high=1.4), time).differing) == 1
    assert compared(share, cost).lost == ["early / model, 4 steps / NAG / time"]
    assert not compared(share, cost).agrees
    assert agreement({}, {("early", *share.key): share}).agrees  # a claim that was not run is not lost
    earlier = {("early", *figure.key): figure for figure in (share, cost)}
    assert not agreement({("early", *share.key): share}, earlier).agrees
    assert agreement({("early", *share.key): share}, earlier, partial=True).agrees
    large, small = (replace(cost, name=AREA, value=value) for value in (1.2, 2.4))
    assert not agreement({("early", *small.key): small}, {("early", *large.key): large}).agrees
    assert not agreement({("early", *small.key): small}, {("early", *large.key): large}, partial=True).compared


def test_figures_survive_json_and_pivot_into_rows():
    figure = PLACE.share("kept", [True, False])
    assert Figure.from_dict(json.loads(json.dumps(figure.to_dict()))) == figure
    lost = PLACE.exact("cost", math.nan, 1)
    assert json.loads(json.dumps(lost.to_dict()))["value"] is None
    assert math.isnan(Figure.from_dict(lost.to_dict()).value)
    other = replace(figure, row="Off", name="absent")
    names, rows = cells([figure, other])
    assert names == ["kept", "absent"] and rows == {"NAG": {"kept": figure}, "Off": {"absent": other}}
    assert figure.text == "50.0 %" and PLACE.exact("cost", math.nan, 1).text == "–"


def test_wanted_scenes_show_the_shape_and_not_the_unwanted_thing():
    asked = [{"subject": "circle", "unwanted": "red"}, {"subject": "square", "unwanted": "blurry"}]
    scenes = wanted_scenes([{"item": {"asked": one}} for one in asked], each=30)
    circles, squares = scenes[:30], scenes[30:]
    assert {scene[0].shape for scene in circles} == {"circle"} and {scene[0].shape for scene in squares} == {"square"}
    assert {scene[0].colour for scene in circles} == {"green", "blue", "yellow"}
    assert {scene[0].attribute for scene in squares} == {None, "outline"}


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    """A tiny random Stable Diffusion with the card of a few-step model."""
    folder = tmp_path_factory.mktemp("models") / "tiny-sd"
    build("sd").save_pretrained(folder)
    card = {"defaults": {"steps": 4, "guidance_scale": 1.0, "width": 16, "height": 16, "nag_scale": 5.0}}
    (folder / "attnsteer.json").write_text(json.dumps(card))
    return folder


def test_the_command_draws_once_writes_a_page_and_compares(model, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("attnsteer.world.distances.RESAMPLES", 4)
    monkeypatch.setattr(command, "QUICK", Size("quick", few=1, many=1, points=2, batch=6))
    call = ["--quick", "--models", str(model), "--work", str(tmp_path / "runs"), "--output", str(tmp_path / "out")]
    call += ["--reference", str(tmp_path / "out"), "--workers", "1"]
    assert command.main([*call, "--claims", "early"]) == 0
    assert "no earlier figures" in capsys.readouterr().out
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs").rglob("*.tar")}
    report = (tmp_path / "out" / "report.html").read_text()
    assert "<img" in report and "<svg" in report and "Not run here" in report
    report = report.replace("http://www.w3.org/2000/svg", "")
    assert not [word for word in ("http://", "https://", 'src="/') if word in report]
    figures = read_reference(tmp_path / "out")
    assert {name for claim, _, _, name in figures} >= {"unwanted absent", "subject kept", "distance", "cost", "time"}
    assert {claim for claim, *_ in figures} == {"early"}

    assert command.main([*call, "--claims", "early", "--check"]) == 0
    known = sum(not figure.timed and figure.name not in BY_SIZE for figure in figures.values())
    assert f"{known} of {known} figures agree" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in written} == written

    results = json.loads((tmp_path / "out" / RESULTS).read_text())
    claim = next(claim for claim in results["claims"] if claim["name"] == "early")
    kept = next(row for row in claim["figures"] if row["name"] == "cost" and row["row"] != "Off")
    kept |= {"value": 9.0, "low": 9.0, "high": 9.0}
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / RESULTS).write_text(json.dumps(results))
    doctored = [*call, "--reference", str(tmp_path / "other"), "--report-only", "--check"]
    assert command.main(doctored) == 1
    assert "1 differ:" in capsys.readouterr().out


def test_steering_claims_show_the_pictures_they_judge(model, tmp_path, monkeypatch):
    folder = tmp_path / "steered"
    shutil.copytree(model, folder)
    save_classifier(build("sd"), folder / "steering")
    card = json.loads((folder / "attnsteer.json").read_text())
    card["defaults"] |= {"steps": 9}
    (folder / "attnsteer.json").write_text(json.dumps(card))
    monkeypatch.setattr("attnsteer.world.distances.RESAMPLES", 4)
    monkeypatch.setattr("attnsteer.world.chains.KINDS", KINDS[:1])  # the tiny text encoder reads no longer prompts
    monkeypatch.setattr(learned_loss, "VARIANTS", {"plain": 1.0, "lean": 1.5})
    monkeypatch.setattr(learned_loss, "COMPARED", (("lean", "plain"),))
    scope = Scope(Size("tiny", pairs=4, chains=2, shown=1, batch=2), world_models([str(folder)]), tmp_path / "runs")
    claims = [CLAIMS[name] for name in ("learned-loss", "untouched")]
    do_all(all_tasks([claim.plan(scope) for claim in claims]), scope.work, progress=False)
    table = Table.of(scope, claims)
    (_, learned), (_, untouched) = table.rows
    assert {len(grid.rows) for grid in learned.grids} == {1} and {len(grid.rows) for grid in untouched.grids} == {3}
    assert all(len(cells) == 2 for result in (learned, untouched) for grid in result.grids for _, cells in grid.rows)
    assert all(cell.right for grid in untouched.grids for _, cells in grid.rows for cell in cells)
    assert untouched.findings[0].outcome is Outcome.HOLDS and "12 of 12" in untouched.findings[0].evidence
    assert {figure.name for figure in learned.figures} >= {"relations right: 1 relation", "distance", "look", "cost"}
    assert page(table, agreement({}, {})).count("<img") == 8


def test_reasons_stand_beside_the_claims_that_do_not_hold(tmp_path: Path):
    assert read_reasons(tmp_path, CLAIMS) == {}
    file = tmp_path / "reasons.toml"
    file.write_text('early = """The choice is made\nin the first step."""\nvideo = "Clips are short."')
    reasons = read_reasons(tmp_path, CLAIMS)
    rows = [(CLAIMS[name], Result(findings=[Finding("It works", outcome, "12 of 20")]))
            for name, outcome in (("early", Outcome.NOT), ("video", Outcome.HOLDS))]  # fmt: skip
    table = Table(Scope(FULL, MODELS, tmp_path), [*rows, (CLAIMS["several"], Result())], reasons)
    for text in (markdown(table), page(table, agreement({}, {}))):
        assert "The choice is made in the first step." in text and "Clips are short." not in text
    assert not table.complete and replace(table, rows=rows).complete
    for wrong, message in (('late = "?"', "'late' is no claim"), ("early = 3", "'early' is no"), ("early", "no TOML")):
        file.write_text(wrong)
        with pytest.raises(ValueError, match=message):
            read_reasons(tmp_path, CLAIMS)
