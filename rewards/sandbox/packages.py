"""Packages that programs may import in the sandbox, where a caller lets them: a fixed list, each by itself.

What the checkers of programming contests have besides the standard library. A package is a folder (or a file) of the
environment that the trainer runs in, shown read-only under /packages; the folder that it lies in is not shown.
"""

from __future__ import annotations

import functools
import importlib.util
from pathlib import Path

FOLDER = "packages"  # beside the program; rewards/sandbox/inside/boot.py knows the name
PACKAGES = ("numpy", "scipy", "pandas", "sympy", "networkx", "sortedcontainers", "numba")
ALWAYS = "numpy"  # a requirement of ours; the others are there if they are installed
_NEEDED = {"pandas": ("dateutil", "pytz", "six"), "sympy": ("mpmath",), "numba": ("llvmlite",)}


@functools.cache
def package_files() -> dict[str, str]:
    """Name under /packages -> path here, of the packages that are installed and what they need. Imports none."""
    names = [name for package in PACKAGES for name in (package, *_NEEDED.get(package, ())) if _place(package)]
    places = [place for name in names if (place := _place(name)) is not None]
    libraries = [place.with_name(f"{place.name}.libs") for place in places]  # shared objects that wheels bring along
    return {place.name: str(place) for place in (*places, *(path for path in libraries if path.is_dir()))}


def _place(name: str) -> Path | None:
    """The folder or the file of a package; None if it is not installed."""
    found = importlib.util.find_spec(name)
    if found is None or found.origin is None:
        return None
    origin = Path(found.origin)
    return origin.parent if origin.name.startswith("__init__.") else origin
