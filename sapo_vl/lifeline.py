"""The processes of a run end together, and a run that is told to stop saves what it has and says how to go on."""

from __future__ import annotations

import contextlib
import ctypes
import errno
import io
import logging
import math
import os
import select
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, NoReturn

if TYPE_CHECKING:
    from sapo_vl.distributed import World

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)
STOPPED = 75  # exit status of a run that was told to stop and has saved; EX_TEMPFAIL of sysexits.h
CUT_OFF = 76  # of one that ended before it could: what it did since its last checkpoint is lost
JOIN_LIMIT_S = 600.0  # for all ranks to meet, once one is there; torchrun gives its machines as long
LAUNCHER = "SAPO_VL_LAUNCHER"  # process id of the launcher, for the ranks it starts
_PR_SET_PDEATHSIG = 1  # linux/prctl.h
# Ctrl-C and schedulers signal every process of a group, and a launcher passes on what it gets: signals so close
# together are one.
_ONE_S = 1.0
_MARGIN = 1.25  # a step counts on so many times what its rest took last time
_CLOSED = 0  # in place of a signal's number: nobody watches any more
log = logging.getLogger(__name__)


class Stopped(RuntimeError):
    """The run was told to stop. `status` is what the process should end with; "" as message: another one says it."""

    def __init__(self, message: str, status: int = STOPPED) -> None:
        super().__init__(message)
        self.status = status


def stopped(told: str, step: int, of: str, saved: int, out: Path) -> Stopped:
    """What a run says that was told to stop by `told` after `step` steps, the newest saved one being `saved`."""
    if step == saved:
        return Stopped(
            f"stopped by {told} after step {step} {of}, which is saved; the same command goes on from there: {out}"
        )
    return Stopped(
        f"stopped by {told} after step {step} {of}, which could not be saved; the same command goes on after step "
        f"{saved}: {out}",
        CUT_OFF,
    )


def die_with_launcher() -> None:
    """From now on the kernel kills this process when the one that started it is gone, whatever that died of.

    Only for a rank that a launcher started: a run in the background of a shell that ends shall go on.
    """
    launched = LAUNCHER in os.environ or "TORCHELASTIC_RUN_ID" in os.environ
    if not launched:
        return
    launcher = int(os.environ.get(LAUNCHER) or os.getppid())
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        log.warning("this rank may outlive its launcher: prctl failed (%s)", os.strerror(ctypes.get_errno()))
    if os.getppid() != launcher:  # it was gone before
        raise SystemExit(CUT_OFF)


@contextlib.contextmanager
def joined_in_time() -> Iterator[None]:
    """Inside `with`, this rank ends with CUT_OFF after JOIN_LIMIT_S: for what waits until all ranks have met.

    If a machine, or the network to it, is gone by then, it would wait as long as a collective may take.
    """

    def end() -> None:
        env = os.environ.get
        print(
            f"rank {env('RANK')} of {env('WORLD_SIZE')} has waited {JOIN_LIMIT_S:g} s for the others at "
            f"{env('MASTER_ADDR')}:{env('MASTER_PORT')}: one of them has not started, or cannot be reached",
            file=sys.stderr, flush=True,
        )  # fmt: skip
        os._exit(CUT_OFF)

    timer = threading.Timer(JOIN_LIMIT_S, end)
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


class StoppedRanks:
    """Inside `with`, a rank that `launcher` has started on this machine and that does nothing because it was stopped
    (SIGSTOP, not a debugger) is killed after `limit_s`: the others would wait in their next collective for an hour, and
    a stopped process does not end on a lesser signal.

    A thread looks once a second. Time in which this process was stopped itself does not count.
    """

    def __init__(self, launcher: int, limit_s: float) -> None:
        self._launcher, self._limit_s = launcher, limit_s
        self._over = threading.Event()

    def __enter__(self) -> StoppedRanks:
        self._thread = threading.Thread(target=self._watch, name="stopped ranks", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._over.set()
        self._thread.join()

    def _watch(self) -> None:
        seen: dict[tuple[int, str], float] = {}  # (process, its start) -> seconds that it was seen stopped
        while not self._over.wait(_ONE_S):
            stopped = [(pid, start_time(pid)) for pid in children_of(self._launcher) if state_of(pid) == "T"]
            seen = {who: seen.get(who, 0.0) + _ONE_S for who in stopped}
            for (pid, _), silent in seen.items():
                rank = _rank_of(pid)
                if silent > self._limit_s and rank:
                    log.error(
                        "rank %s (process %d) has been stopped (SIGSTOP) for %g s (checkpoint.stopped_s): it is killed",
                        rank, pid, self._limit_s,
                    )  # fmt: skip
                    with contextlib.suppress(ProcessLookupError):
                        os.kill(pid, signal.SIGKILL)


class StopRequest:
    """Whether this run was told to stop: by SIGTERM, SIGINT, SIGUSR1 or SIGHUP to any of its ranks.

    A rank that is not done `grace_s` seconds later ends at once, as it does on a second signal: with status CUT_OFF, or
    STOPPED where nothing is lost by that (`between_steps`). The signals are its own inside `with`, in the main thread;
    one that is ignored, as by nohup, stays so. A thread sees them, so that a main thread in the middle of a collective
    does not delay it.
    """

    def __init__(self, grace_s: float, tell: Callable[[Stopped], None] = lambda _: None) -> None:
        """`tell` leaves for the launcher what a rank says that ends with nothing lost. It may raise OSError."""
        self._grace_s, self._name, self._until = grace_s, "", math.inf
        self._tell = tell
        self._between: Callable[[str], Stopped | None] | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopRequest:
        outlive_terminal()
        self._signals, self._written = os.pipe()
        os.set_blocking(self._written, False)
        self._wakeup_before = signal.set_wakeup_fd(self._written, warn_on_full_buffer=False)
        for number in STOP_SIGNALS:
            if (before := signal.getsignal(number)) is not signal.SIG_IGN:
                self._before[number] = before
                signal.signal(number, lambda *_: None)  # what is to be done the thread does
        self._thread = threading.Thread(target=self._watch, name="stop request", daemon=True)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        signal.set_wakeup_fd(self._wakeup_before)
        for number, before in self._before.items():
            signal.signal(number, before)
        os.close(self._written)
        self._thread.join()
        os.close(self._signals)

    def agreed(self, world: World) -> str:
        """The name of the signal if any rank was told to stop, on all of them; else "". All ranks call it together."""
        return next(filter(None, world.gather(self._name)), "") if world.any(bool(self._name)) else ""

    @contextlib.contextmanager
    def between_steps(self, stopped: Callable[[str], Stopped | None]) -> Iterator[None]:
        """Around what may last long and is done again anyway, as an evaluation: a rank that must end inside `with` ends
        as `stopped` says for the name of the signal, with CUT_OFF where that is None. All ranks are inside together,
        but for the way in and out; none may begin a step before all are out."""
        self._between = stopped
        try:
            yield
        finally:
            self._between = None

    def too_late(self, world: World, rest_s: float) -> str:
        """As `agreed`, if on any rank less time is left than the step still needs, with a margin; else "".

        `rest_s`: seconds that this rank expects what is left of the step, its save with it, to take.
        """
        short = _MARGIN * rest_s - (self._until - time.monotonic())
        if not world.any(short > 0):
            return ""
        if world.is_main:
            log.warning(
                "this step is given up: its updates and a save take about %.3g s, and not so much is left of "
                "checkpoint.grace_s=%g",
                rest_s, self._grace_s,
            )  # fmt: skip
        return self.agreed(world)

    def _watch(self) -> None:
        while (first := self._next(None)) is None:
            pass
        told_at = time.monotonic()
        if first == _CLOSED:
            return
        self._until = told_at + self._grace_s
        self._name = signal.Signals(first).name
        if _rank_is_gone():
            log.error("another rank of this machine has ended; this one ends too")
            os._exit(CUT_OFF)
        log.warning("%s: this run stops after this step, or in %g s", self._name, self._grace_s)
        while (left := self._until - time.monotonic()) > 0:
            found = self._next(left)
            if found == _CLOSED:
                return
            if found is not None and time.monotonic() > told_at + _ONE_S:
                log.error("a second signal: this run ends at once")
                self._end()
        log.error(
            "the step was not done %g s after %s (checkpoint.grace_s): this run ends, and goes on from its newest "
            "checkpoint when it is started again",
            self._grace_s, self._name,
        )  # fmt: skip
        self._end()

    def _end(self) -> NoReturn:
        """Ends this process. The main thread may be anywhere: it is not waited for."""
        between = self._between
        said = between(self._name) if between else None
        if said is None or said.status != STOPPED:
            os._exit(CUT_OFF)
        try:
            log.warning("%s", said)
            self._tell(said)
        except OSError as error:
            log.error("the launcher could not be told so: %s", error)
        finally:
            os._exit(STOPPED)

    def _next(self, timeout_s: float | None) -> int | None:
        """The number of a signal of ours, or _CLOSED; None if another one came, or none in so many seconds."""
        ready, _, _ = select.select([self._signals], [], [], timeout_s)
        if not ready:
            return None
        read = os.read(self._signals, 1)
        number = read[0] if read else _CLOSED
        return number if number in (_CLOSED, *STOP_SIGNALS) else None


class _Terminal(io.FileIO):
    """A terminal that may go: what is written from then on goes nowhere."""

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data) or 0
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            with open(os.devnull, "wb") as nowhere:  # for whoever else writes there, and for children to come
                os.dup2(nowhere.fileno(), self.fileno())
            return memoryview(data).nbytes


def outlive_terminal() -> None:
    """From now on this process may print to a terminal that is gone: each print would raise.

    Also in the moment before it learns of that by SIGHUP. Output to a file or a pipe is left alone.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if isinstance(stream, io.TextIOWrapper) and stream.isatty():
            stream.flush()
            terminal = io.BufferedWriter(_Terminal(stream.fileno(), "w", closefd=False))
            setattr(sys, name, io.TextIOWrapper(terminal, stream.encoding, stream.errors, line_buffering=True))


def _rank_is_gone() -> bool:
    """Whether fewer ranks than there should be are left of those that this one's launcher started: a launcher tells the
    others to end when one has failed, by the same signal as somebody who wants the run to stop."""
    expected = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if LAUNCHER not in os.environ and "TORCHELASTIC_RUN_ID" not in os.environ:
        return False
    mine = Path("/proc/self/cmdline").read_bytes()
    alive = 0
    for child in children_of(os.getppid()):
        with contextlib.suppress(OSError):
            alive += state_of(child) not in ("Z", "") and Path(f"/proc/{child}/cmdline").read_bytes() == mine
    return alive < expected


def start_time(pid: int) -> str:
    """When a process of this machine was started, in ticks since the boot; "" if it is gone."""
    found = _stat(pid)
    return found[19] if found else ""


def state_of(pid: int) -> str:
    """R, S, D, T (stopped), t (by a debugger), Z and others of proc(5); "" if it is gone."""
    found = _stat(pid)
    return found[0] if found else ""


def _stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat from the third on; [] if there is no such process."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return []


def children_of(pid: int) -> list[int]:
    """Those that have ended too, until they are waited for."""
    found: list[str] = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        with contextlib.suppress(OSError):
            found += task.read_text().split()
    return list(map(int, found))


def _rank_of(pid: int) -> str:
    """What a process was given as its RANK; "" if nothing."""
    with contextlib.suppress(OSError):
        for entry in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
            if entry.startswith(b"RANK="):
                return entry.removeprefix(b"RANK=").decode()
    return ""
