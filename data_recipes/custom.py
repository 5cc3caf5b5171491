"""A recipe in a file outside of the repository, named as "path/to/my_recipe.py:build"."""

from __future__ import annotations

import importlib.util
import sys
import types
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

from data_recipes.arguments import UsageError


def load_recipe(spec: str) -> Callable[..., dict[str, Any]]:
    """Runs the file and returns its function. Modules beside the file can be imported from it.

    Raises:
        UsageError: the file is not there, or has no such function. What the file itself raises is raised.
    """
    module, function = load_file(spec)
    build: Any = getattr(module, function, None)
    if not callable(build):
        there = sorted(n for n, v in vars(module).items() if isinstance(v, types.FunctionType))
        raise UsageError(f"{module.__file__} has no function {function!r} (it has: {', '.join(there) or 'none'})")
    return cast(Callable[..., dict[str, Any]], build)


def load_file(spec: str) -> tuple[types.ModuleType, str]:
    """Runs the file of "path/to/file.py:name": the module, and the name, which it need not have."""
    path_text, _, function = spec.rpartition(":")
    path = Path(path_text).expanduser().absolute()
    if not function.isidentifier() or not path.is_file():
        raise UsageError(f"no recipe file {path_text or spec!r}; write path/to/my_recipe.py:build, from {Path.cwd()}")
    if str(path.parent) not in sys.path:
        sys.path.append(str(path.parent))
    name = f"custom_recipe_{path.stem}"
    found = importlib.util.spec_from_file_location(name, path)
    assert found is not None and found.loader is not None  # it ends in .py: is_custom
    module = importlib.util.module_from_spec(found)
    sys.modules[name] = module  # dataclasses and typing look a class's module up by name
    found.loader.exec_module(module)
    return module, function


def is_custom(name: str) -> bool:
    """Whether a recipe's name means a file."""
    return ".py:" in name
