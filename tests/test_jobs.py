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
from attnsteer.jobs.shards import header_of, pack, unpack
from jobs_program import ITEMS, Squares, job

HERE = Path(__file__).parent
SHARDS = 6  # 22 items, 4 a shard


def shards_of(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.glob("shard-*.tar"))}


def begun(tmp_path: Path) -> list[str]:
    log = tmp_path / "log"
    return log.read_text().split() if log.exists() else []


@pytest.fixture
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("expected")
    run_job(job(folder / "log"), folder / "run", progress=False)
    return shards_of(folder / "run")


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


def test_two_torchrun_processes_give_the_same_shards(tmp_path, expected):
    torchrun = Path(sys.executable).with_name("torchrun")
    program = [str(torchrun), "--standalone", "--nproc-per-node", "2", str(HERE / "jobs_program.py")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([*program, str(tmp_path / "run"), "torchrun"], check=True, timeout=120, env=environment)
    assert shards_of(tmp_path / "run") == expected
    assert sorted(begun(tmp_path)) == [item["id"] for item in ITEMS]


def test_ranks_share_all_shards_between_them():
    shares = [Ranks(rank, 3).share(10) for rank in range(3)]
    assert sorted(number for share in shares for number in share) == list(range(10))
    assert [Ranks(rank, 3).leads for rank in range(3)] == [True, False, False]
    assert Ranks.from_environment({"RANK": "1", "WORLD_SIZE": "4"}) == Ranks(1, 4)
    with pytest.raises(ValueError, match="torchrun"):
        Ranks.from_environment({})
    with pytest.raises(ValueError, match="rank"):
        Ranks(4, 4)


@pytest.fixture(scope="module")
def cluster():
    import ray

    path = os.pathsep.join([str(HERE), str(HERE.parent / "src")])
    settings = {"num_cpus": 2, "object_store_memory": 200_000_000, "include_dashboard": False, "log_to_driver": False}
    ray.init(address="local", runtime_env={"env_vars": {"PYTHONPATH": path}}, **settings)
    yield ray
    ray.shutdown()


@pytest.mark.cluster
@pytest.mark.filterwarnings("ignore")
def test_ray_actors_give_the_same_shards(tmp_path, expected, cluster):
    outcome = run_job(job(tmp_path / "log"), tmp_path / "run", make_engine("ray", workers=2), progress=False)
    assert outcome.complete and shards_of(tmp_path / "run") == expected


@pytest.mark.cluster
@pytest.mark.filterwarnings("ignore")
def test_a_lost_ray_actor_is_replaced(tmp_path, expected, cluster):
    lost = job(tmp_path / "log", die_once=str(tmp_path / "died"))
    outcome = run_job(lost, tmp_path / "run", make_engine("ray", workers=1), progress=False)
    assert (tmp_path / "died").exists()
    assert outcome.complete and shards_of(tmp_path / "run") == expected


@pytest.mark.cluster
@pytest.mark.filterwarnings("ignore")
def test_an_error_inside_a_ray_actor_arrives_here(tmp_path, cluster):
    class Fault(Squares):
        def __call__(self):
            raise RuntimeError("no such model")

    faulty = Job("squares", ITEMS, Fault(str(tmp_path / "log")), {"power": 2}, shard_size=4)
    with pytest.raises(Exception, match="no such model"):
        run_job(faulty, tmp_path / "run", make_engine("ray", workers=1), progress=False)


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    """A tiny model, an evaluation of it, and what that gives in this process."""
    import torch

    from attnsteer.evaluate.settings import Evaluation
    from tiny import build

    folder = tmp_path_factory.mktemp("evaluated")
    build("sd").save_pretrained(folder / "model")
    evaluation = Evaluation(
        "shapes-position", str(folder / "model"), "none,nag,best-of-2", negative="red", count=4, batch=2, steps=2,
        width=16, height=16,
    )  # fmt: skip
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as in the other processes: sums in another order differ in the last digit
    try:
        run_job(evaluation.job(), folder / "run", progress=False)
    finally:
        torch.set_num_threads(threads)
    return evaluation, judged_in(folder / "run")


def judged_in(folder: Path) -> list:
    """What a run found, without the times that it took."""
    return [
        (record.key, record.files, {name: {**one, "seconds": 0} for name, one in record.data["methods"].items()})
        for record in read_records(folder, files=True)
    ]


@pytest.mark.cluster
def test_an_evaluation_gives_the_same_under_torchrun(tmp_path, evaluated):
    evaluation, expected = evaluated
    words = ["--model", evaluation.model, "--methods", evaluation.methods, "--negative", "red", "--count", "4"]
    words += ["--batch", "2", "--steps", "2", "--width", "16", "--height", "16", "--engine", "torchrun", "--quiet"]
    torchrun = str(Path(sys.executable).with_name("torchrun"))
    program = [torchrun, "--standalone", "--nproc-per-node", "2", "-m", "attnsteer", "evaluate", "shapes-position"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [*program, *words, "-o", str(tmp_path / "run")]
    subprocess.run(command, check=True, timeout=180, env=environment, capture_output=True)
    assert judged_in(tmp_path / "run") == expected
    assert (tmp_path / "run" / "report" / "report.html").exists()


@pytest.mark.cluster
@pytest.mark.filterwarnings("ignore")
def test_an_evaluation_gives_the_same_on_ray(tmp_path, evaluated, cluster):
    evaluation, expected = evaluated
    outcome = run_job(evaluation.job(), tmp_path / "run", make_engine("ray", workers=1), progress=False)
    assert outcome.complete and judged_in(tmp_path / "run") == expected


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
