"""One run folder, one run: whoever works in a folder holds its lock, and everybody else is told who that is."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from sapo_vl.strict import parse_json

LOCK_FILE = ".lock"
BEAT_S = 10.0  # how often the holder shows that it is alive
SILENT_S = 60.0  # a holder on another machine that was not heard of for so long is gone
_HELD = "SAPO_VL_HOLDS"  # names the folders to the holder's own processes, which are let in


class FolderTaken(RuntimeError):
    """Two at once would write over each other's results."""


@contextlib.contextmanager
def hold_folder(out: Path, what: str, life: str = "") -> Iterator[None]:
    """Holds `out` for this process and the ranks it starts; it is made if it is not there. `what` is for messages.

    `life` names a start of a run with all its restarts: after one on another machine the last holder is the run itself.

    The kernel lets go of the lock when the holder ends, whatever it dies of. A disk that machines share may keep no
    locks between them: there the file tells who holds it, and its time of change whether that one is alive.

    Raises FolderTaken, naming host, process and since when, if somebody else holds it.
    """
    folder = out.resolve()
    before = os.environ.get(_HELD, "")
    if str(folder) in before.split(os.pathsep):
        yield
        return
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK_FILE).open("a+", encoding="utf-8") as file:
        _take(file, folder, life)
        about = {"host": socket.gethostname(), "pid": os.getpid(), "what": what, "since": time.ctime(), "life": life}
        _write(file, about)
        os.environ[_HELD] = f"{before}{os.pathsep}{folder}" if before else str(folder)
        released = threading.Event()
        threading.Thread(target=_beat, args=(folder / LOCK_FILE, released), name="run lock", daemon=True).start()
        try:
            yield
        finally:
            released.set()
            os.environ[_HELD] = before
            _write(file, {})


def _take(file: IO[str], folder: Path, life: str) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        locks = True
    except BlockingIOError:
        raise _taken(folder, _read(file)) from None
    except OSError:  # this disk has none
        locks = False
    holder = _read(file)
    if life and holder.get("life") == life:
        return
    elsewhere = holder.get("host") not in (None, socket.gethostname())
    if holder and (elsewhere or not locks) and (silent := _silence(folder)) < SILENT_S:
        raise _taken(
            folder, holder, f"; it was heard of {silent:.0f} s ago, and if it is gone this will do in {SILENT_S:.0f} s"
        )


def _taken(folder: Path, holder: dict[str, Any], more: str = "") -> FolderTaken:
    who = "another process"
    if holder:
        who = "{what}, process {pid} on {host} since {since},".format_map(holder)
    return FolderTaken(f"{who} is at work in {folder}{more}; give another --out, or stop it first")


def _silence(folder: Path) -> float:
    """Seconds since the lock file was written or touched, by the clock of the disk it is on."""
    with tempfile.TemporaryFile(dir=folder) as now:
        return os.fstat(now.fileno()).st_mtime - (folder / LOCK_FILE).stat().st_mtime


def _beat(path: Path, released: threading.Event) -> None:
    while not released.wait(BEAT_S):
        with contextlib.suppress(OSError):  # the folder was deleted, or its disk is away
            os.utime(path)


def _read(file: IO[str]) -> dict[str, Any]:
    """Who the file says holds it; {} if nobody does, or if it was cut off."""
    file.seek(0)
    with contextlib.suppress(ValueError):
        found = parse_json(file.read())
        if isinstance(found, dict) and {"host", "pid", "what", "since"} <= found.keys():
            return found
    return {}


def _write(file: IO[str], holder: dict[str, Any]) -> None:
    with contextlib.suppress(OSError):  # a full disk: the lock holds all the same
        file.seek(0)
        file.truncate()
        file.write(json.dumps(holder) if holder else "")
        file.flush()
