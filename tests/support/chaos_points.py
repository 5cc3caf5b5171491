"""Where a run can be killed, by name, without a word of it in the product: `arm` puts the kill into this process.

A kill is at the n-th time that a function of the product is called (`before` it, `in` it after so many calls of Python,
`after` it) or that Python asks the system to change a file under a folder.
"""

from __future__ import annotations

import dataclasses
import importlib
import mmap
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

# name -> functions, of which every call counts: module, then the name in it
POINTS: dict[str, tuple[str, ...]] = {
    "data": ("sapo_vl.data.feed:ProblemFeed.next",),
    "sampling": ("sapo_vl.rollout.source:RolloutSource.next",),
    "scoring": ("sapo_vl.scoring.scorer:Scorer.score",),
    "advantages": ("sapo_vl.learning.advantage:assign_advantages",),
    "update": ("sapo_vl.learning.engine:PolicyEngine.update",),
    "sync": ("sapo_vl.rollout.hf:TransformersEngine.sync", "sapo_vl.rollout.vllm.engine:VllmEngine.sync"),
    "metrics": ("sapo_vl.record.run_log:RunLog.metrics",),
    "rollouts": ("sapo_vl.record.rollout_log:RolloutLog.write",),
    "evaluation": ("sapo_vl.evaluation.accuracy:evaluate",),
    "save": ("sapo_vl.learning.checkpoint:save_checkpoint",),
    "publish": ("sapo_vl.learning.checkpoint:publish",),
    "prune": ("sapo_vl.learning.checkpoint:prune",),
    "final": ("sapo_vl.learning.final:save_model",),
    "rename of final": ("sapo_vl.model.export:put_in_place",),
    "result": ("sapo_vl.record.run_log:write_json",),
    "load": ("sapo_vl.learning.resuming:load_checkpoint",),
    "setting aside": ("sapo_vl.learning.checkpoint:set_aside_from",),
    "cutting metrics": ("sapo_vl.record.run_log:RunLog.truncate_from",),
    "end": ("sapo_vl.distributed:shutdown_world",),
}
FILE = "file"  # the point of changes to files


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Kill:
    point: str  # a key of POINTS, FILE, or "" for a moment of the clock, which the harness keeps
    when: str = "before"  # before, in, after; torn: of "metrics", half of a line is on the disk
    nth: int = 1  # passage of the point
    share: float = 0.0  # in place of nth: of the changes to files that a run makes when it is left alone
    calls: int = 1000  # for `in`: calls of Python inside before it dies; at its return if there are not so many
    rank: int = 0
    alone: bool = False  # the rank alone, and not the whole process group
    at_s: float = 0.0  # with point "": so long after the start

    @property
    def kind(self) -> str:
        who = "one rank, " if self.alone else ""
        if not self.point:
            return f"{who}a moment of the clock"
        return f"{who}{self.when} {self.point}" if self.point != FILE else f"{who}before a change to a file"


def arm(kill: Kill | None, out: Path, note: Callable[[str], None]) -> None:
    """Puts `kill` into this process. `note` is told what is about to die; without a kill, each change to a file."""

    def die(where: str) -> None:
        note(where)
        os.kill(os.getpid(), signal.SIGKILL) if kill and kill.alone else os.killpg(0, signal.SIGKILL)

    if kill is None or kill.point == FILE:
        _watch_files(out, kill.nth if kill else 0, die, note)
    elif kill.when == "torn":
        _tear(kill.nth, die)
    elif kill.point:
        for target in POINTS[kill.point]:
            _wrap(target, kill, die)


def _wrap(target: str, kill: Kill, die: Callable[[str], None]) -> None:
    module, _, path = target.partition(":")
    *owners, name = path.split(".")
    owner: Any = importlib.import_module(module)
    for part in owners:
        owner = getattr(owner, part)
    original = getattr(owner, name)
    passed = [0]

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        passed[0] += 1
        if passed[0] != kill.nth:
            return original(*args, **kwargs)
        where = f"{kill.when} {kill.point}, passage {kill.nth}"
        if kill.when == "before":
            die(where)
        if kill.when == "in":
            _die_after(kill.calls, lambda: die(where))
        result = original(*args, **kwargs)
        die(where)
        return result

    for held in [owner, *sys.modules.values()] if not owners else [owner]:  # modules that have imported it by name too
        if getattr(held, "__dict__", {}).get(name) is original:
            setattr(held, name, wrapped)


def _die_after(calls: int, die: Callable[[], None]) -> None:
    left = [calls]

    def count(frame: Any, event: str, arg: Any) -> None:
        left[0] -= 1
        if left[0] == 0:
            die()

    sys.setprofile(count)


def _tear(nth: int, die: Callable[[str], None]) -> None:
    from sapo_vl.record.run_log import RunLog

    original, passed = RunLog._write, [0]

    def torn(self: Any) -> None:
        passed[0] += bool(self._unwritten)
        if passed[0] == nth:
            self._file.write(self._unwritten.encode()[: len(self._unwritten) // 2])
            die(f"in the middle of line {nth} of the metrics")
        original(self)

    RunLog._write = torn  # type: ignore[method-assign]


def _watch_files(out: Path, nth: int, die: Callable[[str], None], note: Callable[[str], None]) -> None:
    # Shared with forks of this process: the stages of a run.
    root, count, busy = str(out), memoryview(mmap.mmap(-1, 8)).cast("q"), [False]

    def look(event: str, args: tuple[Any, ...]) -> None:
        if event == "open":
            if not isinstance(args[0], str | Path) or not (isinstance(args[2], int) and args[2] & 3):
                return
        elif event not in ("os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.truncate"):
            return
        # os.truncate is told of a descriptor too, and vLLM takes an error in here for one of its own.
        path = os.readlink(f"/proc/self/fd/{args[0]}") if isinstance(args[0], int) else os.fspath(args[0])
        if event in ("os.remove", "os.rmdir") and args[1] != -1:  # as shutil.rmtree does it
            path = f"{os.readlink(f'/proc/self/fd/{args[1]}')}/{path}"
        if busy[0] or not str(path).startswith(root) or ".lock" in str(path):
            return
        count[0] += 1
        busy[0] = True
        if count[0] == nth:
            die(f"{event} {path}")
        elif not nth:
            note(f"{event} {path}")
        busy[0] = False

    sys.addaudithook(look)
