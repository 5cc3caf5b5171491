"""Files and folders that must not get in each other's way, and what the disk does not take."""

from __future__ import annotations

import logging
import os
import re
import shutil
from collections import Counter
from collections.abc import Callable, Collection
from pathlib import Path

log = logging.getLogger(__name__)
# What a process names things that are not what they will be, or are no longer what they were.
_HALF_DONE = re.compile(r"\.(?P<name>.+)\.(?:\d+\.tmp|writing-\d+|deleting-\d+|(?P<replaced>replaced-\d+))")
_HALF_SAVED = re.compile(r"\.writing_step_\d+")


class Unwritten:
    """What could not be written on a disk that is full or away: told, counted, and no reason to end a run."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()  # by what it was

    def attempt(self, what: str, write: Callable[..., object], *args: object) -> bool:
        """Whether `write(*args)` got through; an OSError of it is a warning."""
        try:
            write(*args)
        except OSError as error:
            self.counts[what] += 1
            log.warning("%s could not be written (%s); the run goes on without", what, error)
            return False
        return True


def set_aside(folder: Path) -> Path:
    """Renames a file or folder to superseded_NAME, or superseded_NAME.2 and so on where that is taken."""
    aside, n = folder.with_name(f"superseded_{folder.name}"), 1
    while aside.exists():
        n += 1
        aside = folder.with_name(f"superseded_{folder.name}.{n}")
    os.rename(folder, aside)
    return aside


def write_text(path: Path, text: str) -> None:
    """Puts `text` on the disk beside `path` and renames it over `path`: the old or the new is there, never a part."""
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    with beside.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    beside.replace(path)


def delete(folder: Path) -> None:
    """Deletes a folder that must not be found with a part of its files: it loses its name first."""
    going = folder.with_name(f".{folder.name}.deleting-{os.getpid()}")
    os.rename(folder, going)
    shutil.rmtree(going)


def replace(written: Path, final: Path) -> None:
    """Gives a folder its name. What has that name is deleted only when the new one is in place."""
    old = final.with_name(f".{final.name}.replaced-{os.getpid()}")
    replaced = final.exists()
    if replaced:
        os.rename(final, old)
    try:
        os.rename(written, final)
    except OSError:
        if replaced:
            os.rename(old, final)
        raise
    if replaced:
        shutil.rmtree(old)


def sweep(folder: Path, names: Collection[str] | None = None) -> None:
    """Deletes what killed processes left half done in `folder`: of `names` only, or of all. Nobody may be at work.

    A folder that was to be replaced, and was not, gets its name back.
    """
    for path in sorted(folder.iterdir()) if folder.is_dir() else []:
        half = _HALF_DONE.fullmatch(path.name)
        if half is None and not _HALF_SAVED.fullmatch(path.name):
            continue
        if half is not None and names is not None and half["name"] not in names:
            continue
        final = path.with_name(half["name"]) if half is not None and half["replaced"] else None
        if final is not None and not final.exists():
            log.warning("a process was killed while it replaced %s, which has its name back", final)
            os.rename(path, final)
        elif path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
