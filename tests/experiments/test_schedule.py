"""Jobs side by side, on small Python programs in the place of runs."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from sapo_vl.experiments.jobs import Job
from sapo_vl.experiments.schedule import Status, only_one, outcome_before, run_jobs
from sapo_vl.record.run_lock import FolderTaken


def job(folder: Path, *programs: str, name: str = "", after: str = "", hash: str = "h") -> Job:
    """`programs` run in order and find their folder in the variable `out`."""
    lead = f"import os, time; from pathlib import Path; out = Path({str(folder)!r}); "
    return Job(
        name=name or folder.name,
        folder=folder,
        commands=tuple(("-c", lead + p) for p in programs),
        result=folder / "summary.json",
        hash=hash,
        ranks=1,
        about={"kind": "run"},
        after=after,
    )


DONE = "(out / 'summary.json').write_text('{}')"


def run(jobs: Sequence[Job], root: Path, **settings: Any) -> tuple[dict[str, Any], list[str]]:
    said: list[str] = []
    given = {"slots": 2, "budget_s": None, "threads": 3, "versions": {"commit": "abc"}, **settings}
    with only_one(root) as lock:
        return run_jobs(jobs, lock=lock, say=said.append, **given), said


def test_what_is_done_is_kept_and_what_changed_is_set_aside(tmp_path):
    count = "n = out / 'n'; n.write_text(n.read_text() + 'x' if n.exists() else 'x'); "
    first, said = run([job(tmp_path / "a", count + DONE)], tmp_path)
    assert first["a"].status is Status.FINISHED and "[1/1] a: finished" in said[-1]
    record = json.loads((tmp_path / "a" / "job.json").read_text())
    assert record["status"] == "finished" and record["hash"] == "h" and record["versions"] == {"commit": "abc"}

    again, said = run([job(tmp_path / "a", count + DONE)], tmp_path)
    assert again["a"].status is Status.KEPT and again["a"].seconds == record["seconds"]
    assert (tmp_path / "a" / "n").read_text() == "x", "it was run again"
    assert said == ["1 of 1 jobs are finished already"]

    changed, said = run([job(tmp_path / "a", count + DONE, hash="other")], tmp_path)
    assert changed["a"].status is Status.FINISHED
    assert (tmp_path / "a" / "n").read_text() == "x", "results of other settings were mixed in"
    assert (tmp_path / "superseded_a" / "n").exists() and "superseded_a" in said[0]


def test_a_result_that_was_deleted_is_made_again(tmp_path):
    run([job(tmp_path / "a", DONE)], tmp_path)
    (tmp_path / "a" / "summary.json").unlink()
    assert outcome_before(job(tmp_path / "a", DONE)) is None
    assert run([job(tmp_path / "a", DONE)], tmp_path)[0]["a"].status is Status.FINISHED


def test_a_failure_is_counted_and_stops_nobody_but_those_who_need_it(tmp_path):
    jobs = [
        job(tmp_path / "start", "print('the disk is full'); raise SystemExit(3)"),
        job(tmp_path / "needs", DONE, after="start"),
        job(tmp_path / "silent", "pass"),
        job(tmp_path / "free", DONE),
    ]
    outcomes, _ = run(jobs, tmp_path)
    assert outcomes["start"].status is Status.FAILED
    assert outcomes["start"].reason == "exit status 3: the disk is full"
    assert outcomes["needs"].status is Status.NO_START and "start" in outcomes["needs"].reason
    assert outcomes["silent"].status is Status.FAILED, "it ended well, but left no result"
    assert outcomes["free"].status is Status.FINISHED
    found = outcome_before(jobs[0])
    assert found is not None and (found.status, found.reason) == (Status.FAILED, outcomes["start"].reason)
    repaired = [job(tmp_path / "start", DONE), *jobs[1:2]]
    assert {o.status for o in run(repaired, tmp_path)[0].values()} == {Status.FINISHED}, "failures are tried again"


def test_a_second_command_follows_a_first_that_went_well(tmp_path):
    assert (
        run([job(tmp_path / "a", "(out / '1').touch()", "assert (out / '1').exists(); " + DONE)], tmp_path)[0][
            "a"
        ].status
        is Status.FINISHED
    )
    outcomes, _ = run([job(tmp_path / "b", "raise SystemExit(1)", DONE)], tmp_path)
    assert outcomes["b"].status is Status.FAILED and not (tmp_path / "b" / "summary.json").exists()


def test_two_run_side_by_side_and_not_three(tmp_path):
    """Each waits for the other, and fails if there is ever a third."""
    meet = (
        "here = out.parent / 'here'; here.mkdir(exist_ok=True); (here / out.name).touch()\n"
        "for _ in range(600):\n"
        "    assert len(list(here.iterdir())) < 3\n"
        "    if len(list(here.iterdir())) == 2 or (out.parent / 'met').exists(): break\n"
        "    time.sleep(0.05)\n"
        "else: raise SystemExit('alone')\n"
        "(out.parent / 'met').touch(); time.sleep(0.3); (here / out.name).unlink()\n"
    )
    outcomes, _ = run([job(tmp_path / name, meet + DONE) for name in "abcd"], tmp_path)
    assert {o.status for o in outcomes.values()} == {Status.FINISHED}, outcomes


def test_nothing_is_started_once_the_time_is_spent(tmp_path):
    outcomes, _ = run([job(tmp_path / name, DONE) for name in "ab"], tmp_path, budget_s=0.0)
    assert {o.status for o in outcomes.values()} == {Status.NOT_STARTED}
    assert not (tmp_path / "a").exists()
    jobs = [job(tmp_path / "a", "time.sleep(1); " + DONE), job(tmp_path / "b", DONE)]
    outcomes, _ = run(jobs, tmp_path, budget_s=0.5, slots=1)
    assert outcomes["a"].status is Status.FINISHED, "what was started is finished"
    assert outcomes["b"].status is Status.NOT_STARTED


def test_a_job_of_one_rank_is_that_rank(tmp_path, monkeypatch):
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    write = "(out / 'env').write_text(repr([os.environ.get(k) for k in ('RANK', 'WORLD_SIZE', 'OMP_NUM_THREADS')])); "
    run([job(tmp_path / "a", write + DONE)], tmp_path)
    assert (tmp_path / "a" / "env").read_text() == "['0', '1', '3']"


def test_a_folder_has_one_master(tmp_path):
    with only_one(tmp_path), pytest.raises(FolderTaken, match="at work in"), only_one(tmp_path):
        pass
    with only_one(tmp_path):
        pass


def test_a_run_that_outlived_its_master_keeps_the_folder(tmp_path):
    """A killed call leaves its runs behind; a second call must not start them once more beside them."""
    waits = "(out / 'up').write_text(str(os.getpid())); time.sleep(60)"
    code = (
        f"import sys; sys.path[:0] = [{str(Path(__file__).parent)!r}, {str(Path(__file__).parents[2])!r}]\n"
        "from pathlib import Path; from test_schedule import job, run\n"
        f"out = Path({str(tmp_path)!r}); run([job(out / 'a', {waits!r})], out)\n"
    )
    master = subprocess.Popen([sys.executable, "-c", code])
    try:
        wait_for(tmp_path / "a" / "up")
        master.kill()
        master.wait()
        with pytest.raises(FolderTaken, match="or a run it has left"), only_one(tmp_path):
            pass
    finally:
        master.kill()
        if (up := tmp_path / "a" / "up").exists():
            os.kill(int(up.read_text()), signal.SIGKILL)


def test_runs_end_with_their_master(tmp_path):
    said: list[str] = []

    def stop(text: str) -> None:
        said.append(text)
        raise KeyboardInterrupt

    jobs = [
        job(tmp_path / "a", "(out / 'pid').write_text(str(os.getpid())); time.sleep(60)"),
        job(tmp_path / "b", "\nwhile not (out.parent / 'a' / 'pid').exists(): time.sleep(0.05)\n" + DONE),
    ]
    with pytest.raises(KeyboardInterrupt), only_one(tmp_path) as lock:
        run_jobs(jobs, slots=2, budget_s=None, threads=0, lock=lock, versions={}, say=stop)
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "a" / "pid").read_text()), 0)


def wait_for(path: Path) -> None:
    for _ in range(600):
        if path.exists():
            return
        time.sleep(0.05)
    raise AssertionError(f"{path} did not appear")
