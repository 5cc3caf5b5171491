"""Where results go: `--out` is tried before anything else, so that nobody waits for a result that cannot be written."""

from __future__ import annotations

import tempfile
from pathlib import Path

from data_recipes.arguments import UsageError


def check_folder(out: Path, *, new: bool = False) -> None:
    """Raises UsageError if `out` cannot be a folder that is written to; `new`: also if it is there already."""
    if new and (out.exists() or out.is_symlink()):
        raise UsageError(f"--out {out} exists already; choose another folder or delete this one")
    _check_writable(out, f"--out {out}")


def check_file(out: Path | None, option: str = "--out") -> None:
    """Raises UsageError if `out` cannot be a file that is written to. None: there is no such file to write."""
    if out is None:
        return
    if out.is_dir():
        raise UsageError(f"{option} {out} is a folder; name a file")
    _check_writable(out.parent, f"{option} {out}")


def _check_writable(folder: Path, what: str) -> None:
    """Tries the nearest folder that is there: permissions alone do not tell of a read-only disk."""
    there = folder
    try:
        while not there.exists():
            there = there.parent
        if not there.is_dir():
            raise UsageError(f"{what}: {there} is a file, not a folder; choose another place")
        with tempfile.TemporaryDirectory(prefix=".sapo_vl-", dir=there):
            pass
    except OSError as error:
        reason = error.strerror or error
        raise UsageError(f"{what}: nothing can be written to {there} ({reason}); choose another place") from error
