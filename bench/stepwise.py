"""A training run that goes on step by step, at the word of another process: how two programs are timed turn by turn.

Standard library and psutil only, since it runs in the environment of either program. The word comes over standard
input; what is told are lines of JSON over a pipe of its own, since libraries print what they like.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

import psutil


class Over(Exception):
    """The other process wants no further step."""


class Stepper:
    """The end inside the run: `wait` before the first step, `done` after each. `told`: the number of the pipe."""

    def __init__(self, told: int) -> None:
        self._out: IO[str] = os.fdopen(told, "w", buffering=1)
        self._process = psutil.Process()
        self._wall = self._cpu = 0.0

    def wait(self) -> None:
        """Raises Over if there is to be no further step."""
        if sys.stdin.readline().strip() != "go":
            raise Over
        self._wall, self._cpu = time.perf_counter(), self._cpu_seconds()

    def done(self, **values: Any) -> None:
        """Tells what the step took, with `values`, and waits for the word for the next one."""
        seconds = {"seconds": time.perf_counter() - self._wall, "cpu": self._cpu_seconds() - self._cpu}
        self._out.write(json.dumps(seconds | self._memory() | values) + "\n")
        self.wait()

    def _family(self) -> list[psutil.Process]:
        return [self._process, *self._process.children(recursive=True)]

    def _cpu_seconds(self) -> float:
        """Of this process, to the nanosecond, and its children, to a hundredth."""
        spent = [p.cpu_times() for p in self._family()[1:] if p.is_running()]
        return time.process_time() + sum(s.user + s.system for s in spent)

    def _memory(self) -> dict[str, float]:
        """MB: the most this process had, what it has, and what its children have now."""
        with open("/proc/self/status") as f:
            sizes = {line.split(":")[0]: line.split()[1] for line in f if line.startswith("Vm")}
        children = sum(p.memory_info().rss for p in self._family()[1:] if p.is_running())
        own = {"peak_mb": int(sizes["VmHWM"]) * 1024 / 1e6, "rss_mb": int(sizes["VmRSS"]) * 1024 / 1e6}
        return own | {"children_mb": children / 1e6}


class Side:
    """The end outside: a run in a process of its own that waits for the word."""

    def __init__(self, name: str, command: Sequence[str | Path], environment: Mapping[str, str], log: Path) -> None:
        """The number of its pipe is added to the command."""
        self.name, self.log = name, log
        reader, writer = os.pipe()
        self._told: IO[str] = os.fdopen(reader)
        with log.open("w") as printed:
            self._process = subprocess.Popen(
                [*map(str, command), str(writer)], stdin=subprocess.PIPE, stdout=printed, stderr=printed, text=True,
                env=dict(environment), pass_fds=(writer,),
            )  # fmt: skip
        os.close(writer)

    def step(self) -> dict[str, Any]:
        """Lets the run do a step and returns what it tells. Raises RuntimeError with the end of its log if it died."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write("go\n")
            self._process.stdin.flush()
            line = self._told.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            self._process.wait()
            raise RuntimeError(f"{self.name} ended; its log {self.log}:\n{self.log.read_text()[-3000:]}")
        return json.loads(line)

    def finish(self, timeout_s: float = 3600) -> None:
        """Lets the run go on to its end, which takes no further step. Raises RuntimeError if it fails there."""
        assert self._process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self._process.stdin.write("go\n")
            self._process.stdin.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(timeout_s)
        self._process.kill()  # nothing to it that has ended
        self._told.close()
        if status := self._process.wait():
            raise RuntimeError(f"{self.name} ended with {status}; its log {self.log}:\n{self.log.read_text()[-3000:]}")

    def close(self) -> int:
        """Ends the run, however far it is, and returns its exit status."""
        try:
            self._process.communicate("stop\n", timeout=60)
        except (BrokenPipeError, subprocess.TimeoutExpired):
            self._process.kill()
        self._told.close()
        return self._process.wait()
