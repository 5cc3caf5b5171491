"""Arguments of a recipe from the command line."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, get_type_hints

import yaml


class UsageError(ValueError):
    """The command line cannot be used; the message says what to write instead."""


def recipe_arguments(build: Callable[..., Any], pairs: Sequence[str], name: str) -> dict[str, Any]:
    """`key=value` texts as keyword arguments of a recipe, checked against its signature."""
    known = {k: p for k, p in inspect.signature(build).parameters.items() if p.kind is inspect.Parameter.KEYWORD_ONLY}
    hints = get_type_hints(build)
    out: dict[str, Any] = {}
    for text in pairs:
        key, sep, value = text.partition("=")
        if not sep or key not in known:
            raise UsageError(f"recipe {name}: {text!r}; its arguments are {', '.join(known)}, written key=value")
        wanted = hints.get(key)
        try:
            parsed = value if wanted is str else yaml.safe_load(value)
        except yaml.YAMLError:
            parsed = None
        if wanted in (int, float, bool, str) and not _is(parsed, wanted):
            raise UsageError(f"recipe {name}: {key}={value!r} is not of type {wanted.__name__}")
        out[key] = parsed
    return out


def _is(value: Any, wanted: type) -> bool:
    """Whether a value is of a type: a whole number will do for a float, but true is no number."""
    return type(value) in (int, float) if wanted is float else type(value) is wanted


def build_recipe(build: Callable[..., Any], out: Path, arguments: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Calls a recipe and returns what it returns. Raises UsageError for arguments it refuses, and for files it cannot
    read or write."""
    try:
        return build(out, **arguments)
    except (ValueError, OSError) as error:
        raise UsageError(f"recipe {name}: {error}") from error
