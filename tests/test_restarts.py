"""Where a stage goes on that its launcher has started again, and whose folder it is then."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers_launch import run_python
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from sapo_vl import launching, restarts
from sapo_vl.config import load_config
from sapo_vl.distributed import World
from sapo_vl.learning.checkpoint import MANIFEST, seal
from sapo_vl.lifeline import StoppedRanks
from sapo_vl.record.run_lock import LOCK_FILE, FolderTaken, hold_folder
from sapo_vl.restarts import LIFE, life, mark_begun, newest_step, resume_of

ALONE = World.alone()


def checkpoint(root: Path, step: int) -> Path:
    folder = root / f"step_{step:08d}"
    folder.mkdir(parents=True)
    (folder / MANIFEST).write_text(seal({"step": step, "files": {}}))
    return folder


def test_where_a_restart_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    other = checkpoint(tmp_path / "other", 5).rename(tmp_path / "best")
    out = tmp_path / "run"
    checkpoint(out / "checkpoints", 3)
    for given in ("no", str(other), "auto"):
        monkeypatch.setenv(LIFE, f"first start with {given}")
        assert resume_of(given, out, "train") == given, "whatever lies there is not of this run"
        mark_begun(out, "train", ALONE)
        assert resume_of(given, out, "train") == ("auto" if given == "no" else given)
        assert resume_of(given, out, "sft") == given, "a stage of its own"
    checkpoint(out / "checkpoints", 6)
    monkeypatch.setenv(LIFE, f"first start with {other}")
    mark_begun(out, "train", ALONE)
    assert resume_of(str(other), out, "train") == "auto", "step 6 is newer than what it was told to go on from"
    monkeypatch.setenv(LIFE, "the command given again")
    assert resume_of("no", out, "train") == "no"


def test_a_life_is_named_by_whoever_restarts(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (LIFE, "TORCHELASTIC_RUN_ID"):
        monkeypatch.delenv(name, raising=False)
    mine = life()
    assert life() == mine and str(os.getpid()) in mine
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    assert life() != mine and str(os.getppid()) in life(), "torchrun with an address has no name for a run"
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "job-17")
    assert life() == "job-17"
    monkeypatch.setenv(LIFE, "by launch")
    assert life() == "by launch"


def test_a_run_that_is_restarted_elsewhere_is_let_into_its_folder(tmp_path: Path) -> None:
    holder = {"host": "node-17", "pid": 4711, "what": "stage train", "since": time.ctime(), "life": "job-17"}
    (tmp_path / LOCK_FILE).write_text(json.dumps(holder))
    for other in ("", "job-18"):
        with pytest.raises(FolderTaken, match="node-17"), hold_folder(tmp_path, "stage train", other):
            pass
    with hold_folder(tmp_path, "stage train", "job-17"):
        assert json.loads((tmp_path / LOCK_FILE).read_text())["pid"] == os.getpid()


def failure(rank: int, status: int, timestamp: int = 5) -> ProcessFailure:
    failed = ProcessFailure(local_rank=rank, pid=1, exitcode=status, error_file="")
    failed.timestamp = timestamp
    return failed


class Ranks:
    """Stands in for torchrun: each launch ends as `ends` says, after it has saved a step or none."""

    def __init__(self, out: Path, *ends: tuple[int | None, dict[int, int]]) -> None:
        self.out, self.ends, self.lives = out, list(ends), []

    def __call__(self, arguments: object) -> None:
        self.lives.append(os.environ[LIFE])
        saves, statuses = self.ends.pop(0)
        if saves is not None:
            checkpoint(self.out / "checkpoints", saves)
        if statuses:
            raise ChildFailedError("x", {rank: failure(rank, status) for rank, status in statuses.items()})


@pytest.mark.parametrize(
    ("ends", "starts", "message"),
    [
        ([(None, {})], 1, ""),
        ([(None, {1: -9}), (None, {})], 2, ""),
        ([(None, {1: -9}), (None, {1: -9})], 2, r"rank 1 ended with status -9 \(SIGKILL\), as it did before from the"),
        ([(None, {0: 1}), (2, {0: 1}), (4, {0: 1}), (None, {})], 4, ""),
        ([(None, {0: 1}), (2, {0: 1}), (None, {0: 1})], 3, "as it did before from the same checkpoint"),
        ([(2, {0: 1}), (4, {0: 1}), (6, {0: 1}), (8, {0: -7})], 4, "status -7.*after 3 restarts"),
        ([(2, {0: 2})], 1, "rank 0 ended with status 2$"),
        ([(2, {0: 1, 1: 2, 2: 1})], 1, "rank 1 ended with status 2$"),
        ([(2, {0: 1, 1: 2, 2: -11}), (4, {})], 2, ""),
        ([(2, {0: 1, 1: -15, 2: -15}), (4, {})], 2, ""),
        ([(2, {0: 2, 1: -15})], 1, "rank 0 ended with status 2$"),
    ],
)
def test_when_a_stage_is_started_again(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    ends: list[tuple[int | None, dict[int, int]]],
    starts: int,
    message: str,
) -> None:
    """`ends`: of each start, what it saves and rank -> its status."""
    ranks = Ranks(tmp_path, *ends)
    monkeypatch.setattr(launching.torchrun, "run", ranks)
    config = load_config(None, ["processes=1"])
    if message:
        with pytest.raises(launching.StageFailed, match=message):
            launching.launch("train", config, tmp_path)
    else:
        launching.launch("train", config, tmp_path)
    assert len(ranks.lives) == starts and len(set(ranks.lives)) == 1 and LIFE not in os.environ


def test_restarts_can_be_turned_off_and_an_evaluation_has_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for stage, pairs in (("train", ["checkpoint.restarts=0"]), ("eval", [])):
        ranks = Ranks(tmp_path, (None, {0: -9}))
        monkeypatch.setattr(launching.torchrun, "run", ranks)
        with pytest.raises(launching.StageFailed, match=r"rank 0 ended with status -9 \(SIGKILL\)$"):
            launching.launch(stage, load_config(None, ["processes=1", *pairs]), tmp_path)
    assert newest_step(tmp_path, "eval") is None and restarts.newest_step(tmp_path, "train") is None


def test_only_ranks_that_stay_stopped_are_killed(caplog: pytest.LogCaptureFixture) -> None:
    """A rank that is stopped, one that runs, and a stopped process that is no rank."""
    sleep = [sys.executable, "-c", "import time; time.sleep(600)"]
    given = [{"RANK": "6"}, {"RANK": "7"}, {}]
    clean = {k: v for k, v in os.environ.items() if k != "RANK"}
    stopped, running, stranger = (subprocess.Popen(sleep, env=clean | more) for more in given)
    try:
        for process in (stopped, stranger):
            os.kill(process.pid, 19)  # SIGSTOP
        with StoppedRanks(os.getpid(), 1.0):
            assert stopped.wait(60) == -9
        assert running.poll() is None and stranger.poll() is None
        assert f"rank 6 (process {stopped.pid}) has been stopped (SIGSTOP) for 1 s" in caplog.text
    finally:
        for process in (stopped, running, stranger):
            process.kill()
            process.wait()


LATE = """
import os, sys, time
from sapo_vl.distributed import init_world, shutdown_world
start, rank = int(os.environ["TORCHELASTIC_RESTART_COUNT"]), int(os.environ["RANK"])
time.sleep((start > 0) * (1 - rank))  # rank 1 looks for rank 0 where the dead one was, and now and then waits there
world = init_world()
met = world.gather(rank)
if rank == 0:
    sys.stdout.write(f"start {start} {met}\\n")
    sys.stdout.flush()
world.barrier()  # torchrun ends the others when one has
sys.exit(1) if start < 3 else shutdown_world()
"""


@pytest.mark.slow
def test_ranks_that_torchrun_starts_again_do_not_look_for_those_of_before(tmp_path: Path) -> None:
    (tmp_path / "late.py").write_text(LATE)
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", "--max-restarts", "3")
    printed = run_python(*launcher, tmp_path / "late.py", timeout=120).stdout
    assert [printed.count(f"start {start} [0, 1]") for start in range(4)] == [1] * 4
