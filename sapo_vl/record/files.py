"""Files and folders that must not get in each other's way, and what the disk does not take."""

from __future__ import annotations

import logging
import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path

log = logging.getLogger(__name__)


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
