"""Names of files and folders that must not get in each other's way."""

from __future__ import annotations

import os
from pathlib import Path


def set_aside(folder: Path) -> Path:
    """Renames a file or folder to superseded_NAME, or superseded_NAME.2 and so on where that is taken."""
    aside, n = folder.with_name(f"superseded_{folder.name}"), 1
    while aside.exists():
        n += 1
        aside = folder.with_name(f"superseded_{folder.name}.{n}")
    os.rename(folder, aside)
    return aside
