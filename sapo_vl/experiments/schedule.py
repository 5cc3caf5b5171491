"""Jobs side by side: finished ones are kept, failed ones are counted, none is started once the time is spent.

A job's folder has job.json, what it is a result of and how it ended, and log.txt, what its processes printed.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import IO, Any

from sapo_vl.experiments.jobs import Job
from sapo_vl.record.files import set_aside
from sapo_vl.record.run_lock import LOCK_FILE, FolderTaken

JOB_FILE, LOG_FILE = "job.json", "log.txt"
POLL_S = 0.2
REASON_LINES = 3  # last ones of the log that tell why a job failed


class Status(StrEnum):
    """How a job ended."""

    FINISHED = "finished"
    KEPT = "kept"  # finished by an earlier call
    FAILED = "failed"
    NOT_STARTED = "not started"  # the time was spent
    NO_START = "no start"  # what it starts from failed, or was not made


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """Of one job in one call."""

    status: Status
    seconds: float = 0.0
    reason: str = ""


@dataclass(slots=True)
class _Running:
    job: Job
    process: subprocess.Popen[bytes]
    output: IO[bytes]
    started: float
    left: list[tuple[str, ...]]  # commands after the current one


@contextlib.contextmanager
def only_one(out: Path) -> Iterator[int]:
    """Holds `out` for this call and the processes it starts, which inherit the lock: one that outlived a killed call
    keeps it too. Raises FolderTaken if somebody else has it."""
    out.mkdir(parents=True, exist_ok=True)
    with (out / LOCK_FILE).open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise FolderTaken(f"another `sapo-vl reproduce`, or a run it has left, is at work in {out}") from None
        yield file.fileno()


def outcome_before(job: Job) -> Outcome | None:
    """What an earlier call has made of the job; None if nothing, or something else under its name."""
    path = job.folder / JOB_FILE
    if not path.exists():
        return None
    record = json.loads(path.read_text(encoding="utf-8"))
    if record["hash"] != job.hash:
        return None
    if record["status"] == Status.FINISHED and job.result.exists():
        return Outcome(status=Status.KEPT, seconds=record["seconds"])
    if record["status"] == Status.FAILED:
        return Outcome(status=Status.FAILED, seconds=record["seconds"], reason=record["reason"])
    return None


def run_jobs(
    jobs: Sequence[Job],
    *,
    slots: int,
    budget_s: float | None,
    threads: int,
    lock: int,
    versions: Mapping[str, Any],
    say: Callable[[str], None],
    done: Callable[[Job], None] = lambda job: None,
) -> dict[str, Outcome]:
    """Name -> outcome of every job, run in this order, `slots` at a time; one waits for the job it names in `after`.

    budget_s: no job is started after so many seconds. versions: goes into job.json. done: called after a success.
    """
    return _Scheduler(jobs, slots, budget_s, threads, lock, versions, say, done).run()


class _Scheduler:
    def __init__(
        self,
        jobs: Sequence[Job],
        slots: int,
        budget_s: float | None,
        threads: int,
        lock: int,
        versions: Mapping[str, Any],
        say: Callable[[str], None],
        done: Callable[[Job], None],
    ) -> None:
        self._slots, self._budget_s, self._threads, self._lock = slots, budget_s, threads, lock
        self._versions, self._say, self._done = versions, say, done
        self._began = time.monotonic()
        self._total = len(jobs)
        self._outcomes: dict[str, Outcome] = {}
        self._waiting: list[Job] = []
        for job in jobs:
            before = outcome_before(job)
            if before is not None and before.status is Status.KEPT:
                self._outcomes[job.name] = before
            else:
                self._waiting.append(job)
        self._running: list[_Running] = []

    def run(self) -> dict[str, Outcome]:
        if self._outcomes:
            self._say(f"{len(self._outcomes)} of {self._total} jobs are finished already")
        try:
            while self._waiting or self._running:
                self._start_some()
                self._end_some()
                time.sleep(POLL_S)
        finally:
            for running in self._running:
                _kill(running.process)
        return self._outcomes

    def _start_some(self) -> None:
        spent = self._budget_s is not None and time.monotonic() - self._began >= self._budget_s
        for job in list(self._waiting):
            before = self._outcomes.get(job.after)
            if spent:
                self._end(job, Outcome(status=Status.NOT_STARTED, reason="the time was spent"))
            elif job.after and before is None:
                continue  # on its way
            elif before is not None and before.status not in (Status.FINISHED, Status.KEPT):
                self._end(job, Outcome(status=Status.NO_START, reason=f"{job.after}: {before.status}"))
            elif len(self._running) < self._slots:
                self._waiting.remove(job)
                self._running.append(self._launch(job))

    def _launch(self, job: Job) -> _Running:
        record = job.folder / JOB_FILE
        if record.exists() and json.loads(record.read_text(encoding="utf-8"))["hash"] != job.hash:
            aside = set_aside(job.folder)
            self._say(f"{job.folder.name} of {job.name} was made with other settings; it is kept as {aside.name}")
        job.folder.mkdir(parents=True, exist_ok=True)
        self._write(job, "started", 0.0, "")
        output = (job.folder / LOG_FILE).open("ab")
        first, *left = job.commands
        return _Running(job, self._spawn(job, first, output), output, time.monotonic(), left)

    def _spawn(self, job: Job, command: tuple[str, ...], output: IO[bytes]) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            [sys.executable, *command],
            stdout=output,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env=_environment(job.ranks, self._threads, in_place="--prepare" not in command),
            start_new_session=True,
            pass_fds=[self._lock],
        )

    def _end_some(self) -> None:
        for running in list(self._running):
            status = running.process.poll()
            if status is None:
                continue
            if status == 0 and running.left:
                running.process = self._spawn(running.job, running.left.pop(0), running.output)
                continue
            self._running.remove(running)
            running.output.close()
            job, seconds = running.job, time.monotonic() - running.started
            if status == 0 and job.result.exists():
                self._write(job, Status.FINISHED, seconds, "")
                self._done(job)
                self._end(job, Outcome(status=Status.FINISHED, seconds=seconds))
            else:
                reason = f"exit status {status}: {_last_lines(job.folder / LOG_FILE)}"
                self._write(job, Status.FAILED, seconds, reason)
                self._end(job, Outcome(status=Status.FAILED, seconds=seconds, reason=reason))

    def _end(self, job: Job, outcome: Outcome) -> None:
        self._outcomes[job.name] = outcome
        if job in self._waiting:
            self._waiting.remove(job)
        if outcome.status in (Status.FINISHED, Status.FAILED):
            self._say(self._line(job, outcome))

    def _line(self, job: Job, outcome: Outcome) -> str:
        left = len(self._waiting) + len(self._running)
        took = [o.seconds for name, o in self._outcomes.items() if o.seconds and not name.startswith("start ")]
        eta = ""
        if took and left:
            now = time.monotonic()
            mean = sum(took) / len(took)
            under_way = sum(min(mean, now - r.started) for r in self._running)
            eta = f", about {_span(max(0.0, left * mean - under_way) / self._slots)} more"
        how = f"{outcome.status} after {_span(outcome.seconds)}"
        reason = f" ({outcome.reason.splitlines()[0][:200]})" if outcome.reason else ""
        return f"[{len(self._outcomes)}/{self._total}] {job.name}: {how}{reason}; {left} left{eta}"

    def _write(self, job: Job, status: str, seconds: float, reason: str) -> None:
        about = {**job.about, "hash": job.hash, "status": status, "seconds": seconds, "reason": reason}
        about |= {"commands": job.commands, "versions": dict(self._versions)}
        beside = job.folder / f".{JOB_FILE}"
        beside.write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
        beside.replace(job.folder / JOB_FILE)


def _environment(ranks: int, threads: int, *, in_place: bool) -> dict[str, str]:
    """Of a job's process. One of a single rank is that rank itself and needs no launcher, which would import everything
    a second time; `run --prepare` launches a stage of its own and cannot be one."""
    env = {k: v for k, v in os.environ.items() if k not in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR")}
    if threads:
        env["OMP_NUM_THREADS"] = str(threads)
    if ranks == 1 and in_place:
        env |= {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    return env


def _last_lines(path: Path) -> str:
    lines = [line for line in path.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    return " | ".join(lines[-REASON_LINES:])


def _kill(process: subprocess.Popen[bytes]) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    try:
        process.wait(10)
    except subprocess.TimeoutExpired:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def _span(seconds: float) -> str:
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60} min"
