"""What the processes that ask a judge share through a folder: its verdicts, limits on requests, an outage.

All of it survives the death of any process at any moment: files are replaced as a whole, and locks end with the
process that holds them. A disk that fails costs what would have been kept, with one warning, and no verdict that was
had.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import json
import logging
import os
import random
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

OUTAGE = 5  # responses without an answer, one after the other, after which the judge counts as down
_LOOK_S = 0.02  # how often a process that waits for its turn looks


class VerdictCache:
    """One small file a verdict, named by `verdict_key`. A file that cannot be read as one is a miss."""

    def __init__(self, folder: Path):
        self._folder = folder / "verdicts"

    def get(self, key: str) -> bool | None:
        found = _read_json(self._path(key))
        return found["correct"] if found.get("key") == key and isinstance(found.get("correct"), bool) else None

    def put(self, key: str, correct: bool) -> None:
        _write_json(self._path(key), {"key": key, "correct": correct})

    def _path(self, key: str) -> Path:
        return self._folder / key[:2] / f"{key}.json"


class Gate:
    """At most `concurrency` requests at a time; none for `pause_s` seconds after OUTAGE failures in a row, and none
    before the time that the server named when it refused one."""

    def __init__(self, folder: Path, concurrency: int, pause_s: float):
        self._slots = folder / "slots"
        self._state, self._quota = folder / "outage.json", folder / "quota.json"
        self._concurrency, self._pause_s = concurrency, pause_s

    @contextlib.contextmanager
    def slot(self, deadline: float) -> Iterator[bool]:
        """Waits for a turn until `deadline` (of time.monotonic), holds it inside; False if there was none.

        Raises OSError if no slot can be opened and locked.
        """
        self._slots.mkdir(parents=True, exist_ok=True)
        while True:
            wait = self.refused()[0]
            lock = None if wait else self._take()
            wait = max(wait, _LOOK_S)
            if lock is not None or time.monotonic() + wait >= deadline:
                break
            time.sleep(wait)
        try:
            yield lock is not None
        finally:
            if lock is not None:
                os.close(lock)

    def down(self) -> str:
        """While the judge counts as down, how the last request failed; else ""."""
        state = _read_json(self._state)
        failures, last = state.get("failures"), state.get("last")
        if not isinstance(failures, int) or not isinstance(last, int | float):
            return ""
        paused = failures >= OUTAGE and 0 <= time.time() - last < self._pause_s
        return str(state.get("why") or "no answer") if paused else ""

    def report(self, failure: str) -> None:
        """How a request failed, or "" if it was answered. Two failures at once may count as one: the pause then starts
        one later."""
        failures = _read_json(self._state).get("failures", 0)
        if failure:
            count = failures + 1 if isinstance(failures, int) else 1
            _write_json(self._state, {"failures": count, "last": time.time(), "why": failure})
        elif failures:
            _remove(self._state)

    def refused(self) -> tuple[float, str]:
        """(Seconds for which the server takes no request, what it said); (0, ...) if it takes one."""
        state = _read_json(self._quota)
        since, seconds = state.get("since"), state.get("seconds")
        if not isinstance(since, int | float) or not isinstance(seconds, int | float):
            return 0.0, ""
        age = time.time() - since  # below 0 by the clock of another machine: then it is asked, and says so again
        return max(0.0, seconds - age) if age >= 0 else 0.0, str(state.get("why"))

    def refuse(self, seconds: float, why: str) -> None:
        """The server takes no request for so many seconds; the longest wait that it asked for holds."""
        if seconds > self.refused()[0]:
            _write_json(self._quota, {"since": time.time(), "seconds": seconds, "why": why})

    def forget(self) -> None:
        """Whatever went wrong before, ask again."""
        _remove(self._state)
        _remove(self._quota)

    def _take(self) -> int | None:
        """The descriptor of a locked slot file; closing it, also by the death of the process, frees the slot."""
        failures: list[OSError] = []
        for number in random.sample(range(self._concurrency), self._concurrency):
            try:
                return _locked(self._slots / str(number))
            except BlockingIOError:
                continue
            except OSError as error:  # on a full disk those slots serve that are there already
                failures.append(error)
        if len(failures) == self._concurrency:
            raise failures[0]
        return None


def _locked(path: Path) -> int:
    """A descriptor that holds the lock of `path`, which is made. BlockingIOError: somebody else holds it."""
    lock = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        os.close(lock)
        raise
    return lock


def _read_json(path: Path) -> dict[str, Any]:
    """The object in a file; {} if there is none, or the file is damaged or cannot be read."""
    try:
        found = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError, RecursionError):
        return {}
    except OSError as error:
        _warn("read", error.strerror or str(error))
        return {}
    return found if isinstance(found, dict) else {}


def _write_json(path: Path, value: dict[str, Any]) -> None:
    """Nothing is written, and nothing left behind, where the disk does not let it."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=".")
        try:
            with os.fdopen(handle, "w") as file:
                json.dump(value, file)
            os.replace(name, path)
        except OSError:
            with contextlib.suppress(OSError):
                os.unlink(name)
            raise
    except OSError as error:
        _warn("written", error.strerror or str(error))


def _remove(path: Path) -> None:
    try:
        path.unlink(missing_ok=True)
    except OSError as error:
        _warn("removed", error.strerror or str(error))


@functools.cache
def _warn(done: str, why: str) -> None:
    """Once a process for each kind of failure."""
    log.warning("files in the folder rewards.params.judge.cache cannot be %s: %s", done, why)
