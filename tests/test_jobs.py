"""Jobs: shards are exact, resumable, verified, and the same whatever engine does them."""

import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from random import Random

import pytest

from attnsteer.jobs import Job, Local, Ranks, Record, RunFolder, make_engine, read_records, run_job
from attnsteer.jobs.job import POLL
from attnsteer.jobs.shards import header_of, pack, unpack
from attnsteer.jobs.texts import write_texts
from jobs_program import ITEMS, Squares, begun, job, reference, shards_of

HERE = Path(__file__).parent
SHARDS = 6  # 22 items, 4 a shard


@pytest.fixture
def expected(tmp_path: Path) -> dict[str, str]:
    return reference(tmp_path / "expected")


def test_records_come_back_in_order_with_their_files(tmp_path):
    outcome = run_job(job(tmp_path / "log"), tmp_path / "run", progress=False)
    assert outcome.complete and (outcome.done, outcome.shards) == (SHARDS, SHARDS)
    records = list(read_records(tmp_path / "run", files=True))
    assert [record.key for record in records] == [item["id"] for item in ITEMS]
    assert [record.data["square"] for record in records] == [n * n for n in range(22)]
    assert records[7].files == {"noise.bin": Random(7).randbytes(5000)}
    assert next(read_records(tmp_path / "run")).files == {}
    assert (
        next(read_records(tmp_path / "run", files=".bin")).files
        and next(read_records(tmp_path / "run", files=".png")).files == {}
    )


def test_a_shard_is_a_plain_tar_with_a_checkable_hash(tmp_path):
    run_job(job(tmp_path / "log"), tmp_path / "run", progress=False)
    shard = tmp_path / "run" / "shard-00005-of-00006.tar"
    with tarfile.open(shard) as tar:
        assert tar.getnames() == [
            "__shard__", "item-20.json", "item-20.noise.bin", "item-21.json", "item-21.noise.bin",
        ]  # fmt: skip
    digest, name = Path(f"{shard}.sha256").read_text().split()
    assert (digest, name) == (hashlib.sha256(shard.read_bytes()).hexdigest(), shard.name)
    with shard.open("rb") as file:
        assert header_of(file)["shard"] == 5


def test_a_run_describes_itself(tmp_path):
    run_job(job(tmp_path / "log"), tmp_path / "run", progress=False)
    described = json.loads((tmp_path / "run" / "run.json").read_text())
    assert described["fixed"]["settings"] == {"power": 2}
    assert {"python", "attnsteer"} <= set(described["versions"])
    assert described["host"]["processors"] == f"{os.cpu_count()} processors"
    assert RunFolder(tmp_path / "run").items() == ITEMS


def test_a_second_run_repeats_nothing(tmp_path):
    run_job(job(tmp_path / "log"), tmp_path / "run", progress=False)
    (tmp_path / "log").unlink()
    outcome = run_job(job(tmp_path / "log"), tmp_path / "run", progress=False)
    assert outcome.complete and outcome.done == 0 and begun(tmp_path) == []


@pytest.mark.parametrize("harm", ["changed", "cut", "removed", "unsealed"])
def test_a_damaged_shard_is_redone_and_no_other(tmp_path, expected, harm):
    run_job(job(tmp_path / "log"), tmp_path / "run", progress=False)
    shard = tmp_path / "run" / "shard-00002-of-00006.tar"
    content = bytearray(shard.read_bytes())
    if harm == "changed":
        content[3000] ^= 1
        shard.write_bytes(content)
    elif harm == "cut":
        shard.write_bytes(content[:1000])
    else:
        (shard if harm == "removed" else Path(f"{shard}.sha256")).unlink()
    if harm in ("changed", "cut"):
        with pytest.raises(ValueError, match="damaged"):
            list(read_records(tmp_path / "run"))
    (tmp_path / "log").unlink()
    assert run_job(job(tmp_path / "log"), tmp_path / "run", progress=False).done == 1
    assert begun(tmp_path) == ["item-08", "item-09", "item-10", "item-11"]
    assert shards_of(tmp_path / "run") == expected


def test_the_first_rank_waits_for_a_damaged_shard_of_another(tmp_path, expected, monkeypatch):
    squares, run = job(tmp_path / "log"), tmp_path / "run"
    run_job(squares, run, progress=False)
    (run / "shard-00003-of-00006.tar").write_bytes(b"damaged")
    waits, sleep = [], time.sleep

    def other_rank(seconds: float) -> None:
        sleep(seconds)
        if seconds == POLL:
            waits.append(run_job(squares, run, Ranks(1, 2), progress=False).done)

    monkeypatch.setattr(time, "sleep", other_rank)
    assert run_job(squares, run, Ranks(0, 2), progress=False).done == 0
    assert waits == [1] and shards_of(run) == expected


def test_another_job_does_not_go_into_the_same_folder(tmp_path):
    run_job(job(tmp_path / "log"), tmp_path / "run", progress=False)
    other = Job("squares", ITEMS[:-1], Squares(str(tmp_path / "log")), {"power": 3}, shard_size=4)
    with pytest.raises(ValueError, match="other items, items_sha256, settings"):
        run_job(other, tmp_path / "run", progress=False)
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.tex").touch()
    with pytest.raises(ValueError, match=r"thesis\.tex"):
        run_job(other, tmp_path / "home", progress=False)


def test_an_error_keeps_what_was_finished(tmp_path):
    class Fault(Squares):
        def work(self, items):
            if items[0]["seed"] == 12:
                raise RuntimeError("out of paint")
            return super().work(items)

    faulty = Job("squares", ITEMS, Fault(str(tmp_path / "log")), {"power": 2}, shard_size=4)
    with pytest.raises(RuntimeError, match="out of paint"):
        run_job(faulty, tmp_path / "run", progress=False)
    assert len(list(read_records(tmp_path / "run"))) == 12
    assert run_job(job(tmp_path / "log"), tmp_path / "run", progress=False).done == 3


def test_kill_9_loses_at_most_the_shard_at_work(tmp_path, expected):
    run = tmp_path / "run"
    program = [sys.executable, str(HERE / "jobs_program.py"), str(run), "local", "0.05"]
    process = subprocess.Popen(program)
    try:
        deadline = time.monotonic() + 60
        while len(list(run.glob("shard-*.sha256"))) < 2:
            assert time.monotonic() < deadline and process.poll() is None
            time.sleep(0.02)
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
    finished = len(list(run.glob("shard-*.sha256")))
    assert 2 <= finished < SHARDS
    assert len(begun(tmp_path)) - 4 * finished <= 4
    (tmp_path / "log").unlink()
    assert run_job(job(tmp_path / "log"), run, progress=False).done == SHARDS - finished
    assert begun(tmp_path) == [item["id"] for item in ITEMS[4 * finished :]]
    assert shards_of(run) == expected


def test_ranks_share_all_shards_between_them():
    shares = [Ranks(rank, 3).share(10) for rank in range(3)]
    assert sorted(number for share in shares for number in share) == list(range(10))
    assert [Ranks(rank, 3).leads for rank in range(3)] == [True, False, False]
    assert Ranks.from_environment({"RANK": "1", "WORLD_SIZE": "4"}) == Ranks(1, 4)
    with pytest.raises(ValueError, match="torchrun"):
        Ranks.from_environment({})
    with pytest.raises(ValueError, match="rank"):
        Ranks(4, 4)


def test_the_bar_shows_rate_and_time_left(tmp_path, capsys):
    run_job(job(tmp_path / "log"), tmp_path / "run")
    shown = capsys.readouterr().err
    assert "squares: 100%" in shown and "22/22" in shown and "item/s" in shown


def test_packing_is_strict():
    with pytest.raises(ValueError, match="key"):
        Record("a/b", {})
    with pytest.raises(ValueError, match="named like"):
        Record("a", {}, {"../x": b""})
    with pytest.raises(ValueError, match="two records"):
        pack([Record("a", {}), Record("a", {})], {})
    with pytest.raises(ValueError):
        pack([Record("a", {"x": float("nan")})], {})
    assert list(unpack(io.BytesIO(pack([], {})))) == []


def test_bad_settings_are_refused():
    with pytest.raises(ValueError, match="at least one item"):
        Job("none", [], Squares(""))
    with pytest.raises(ValueError, match="shard_size"):
        Job("none", ITEMS, Squares(""), shard_size=0)
    with pytest.raises(ValueError, match="engine"):
        make_engine("slurm")
    assert make_engine("local") == Local()


def test_jobs_load_neither_torch_nor_ray():
    code = "import sys, attnsteer.jobs; raise SystemExit(bool({'torch', 'ray', 'diffusers'} & set(sys.modules)))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_texts_that_cannot_be_written_leave_the_earlier_ones_whole(tmp_path):
    folder = tmp_path / "report"
    assert write_texts(folder, {"a": "first", "b": "second"}) == [folder / "a", folder / "b"]
    with pytest.raises(UnicodeEncodeError):
        write_texts(folder, {"a": "other", "b": "\ud800"})
    assert {path.name: path.read_text() for path in folder.iterdir()} == {"a": "first", "b": "second"}
