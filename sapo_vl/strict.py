"""Reading what others wrote, strictly: the base of every config class, and JSON and YAML files."""

import json
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ConfigDict


class Strict(BaseModel):
    """A config section. An unknown key or a wrong type is an error when the file is read."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


class Unreadable(ValueError):
    """A file that is not there, or not what its name says. The message has its path and the reason."""


def parse_json(text: str | bytes) -> Any:
    """Raises ValueError for whatever is no JSON, brackets nested deeper than Python's stack among it."""
    try:
        return json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def read_json(path: Path) -> Any:
    """The content of a JSON file. Raises Unreadable."""
    try:
        return parse_json(path.read_bytes())
    except (OSError, ValueError) as error:
        raise Unreadable(f"{path} cannot be read as JSON ({_why(error)})") from error


def read_mapping(path: Path) -> dict[str, Any]:
    """The object in a file of JSON, or of YAML if its name ends so. Raises Unreadable."""
    found = read_json(path) if path.suffix == ".json" else _read_yaml(path)
    if not isinstance(found, dict) or not all(isinstance(key, str) for key in found):
        raise Unreadable(f"{path} holds a {type(found).__name__} where names with values should be")
    return found


def _read_yaml(path: Path) -> Any:
    try:
        return yaml.safe_load(path.read_bytes())
    except (OSError, ValueError, yaml.YAMLError, RecursionError) as error:
        raise Unreadable(f"{path} cannot be read as YAML ({_why(error)})") from error


def _why(error: BaseException) -> str:
    text = getattr(error, "strerror", None) or str(error) or type(error).__name__
    return " ".join(text.split())[:200]
