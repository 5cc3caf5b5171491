"""What ran and what came of it: config, summary, versions of a run folder."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sapo_vl.strict import read_mapping
from sapo_vl.viewing.numbers import plain

CONFIG, SUMMARY = "config.yaml", "summary.json"
# What runs of one kind differ in: their seed, where things lie, and what changes no number.
APART = ("seed", "log.", "processes", "resume", "model.path", "data.path", "checkpoint.")
FACTS = ("loss", "seed", "ranks", "steps", "bad_rows")


def read_facts(run: Path, defaults: Mapping[str, Any] | None) -> dict[str, Any]:
    """The overview of a run. `defaults` is the config with nothing set; None: differences are not told.

    {"facts", "versions", "settings": [[key, value, default]], "accuracy", "wall_s", "memory", "scoring", "cold_start",
    "notices", "finished", "kind": equal for runs that differ in their seed only}. Raises Unreadable for a damaged file.
    """
    config = _read(run / CONFIG) or _read(run / "run.yaml")
    summary = _read(run / SUMMARY)
    flat = flatten(config)
    base = flatten(defaults or {})
    facts = {key: summary[key] for key in FACTS if key in summary}
    facts = {"seed": flat.get("seed"), "loss": flat.get("loss.name"), "steps": flat.get("steps")} | facts
    versions = dict(summary.get("versions") or {})
    commit = versions.pop("commit", None) or summary.get("commit")
    return plain(
        {
            "path": str(run.resolve()),
            "facts": facts | {"commit": commit},
            "versions": versions,
            "settings": [] if defaults is None else _differences(flat, base),
            "accuracy": summary.get("accuracy") or {},
            "wall_s": summary.get("wall_s") or {},
            "memory": summary.get("peak_memory") or {},
            "scoring": summary.get("scoring") or {},
            "cold_start": summary.get("cold_start") or {},
            "notices": list(summary.get("notices") or {}),
            "finished": (run / SUMMARY).is_file(),
            "group_size": flat.get("rollout.group_size"),
            "kind": _kind(flat),
        }
    )


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}; an empty section is a value."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def _differences(flat: Mapping[str, Any], base: Mapping[str, Any]) -> list[list[Any]]:
    """[key, value, default] of what is set otherwise; default None where the config has no such key by default."""
    rows = [[key, _text(value), _text(base[key]) if key in base else None] for key, value in flat.items()]
    whole = [row for row in rows if row[1] != row[2]]
    return [row for row in whole if not (row[2] is None and row[1] in ("{}", "null"))]


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _kind(flat: Mapping[str, Any]) -> str:
    own = {key: value for key, value in flat.items() if not key.startswith(APART)}
    return hashlib.sha256(json.dumps(own, sort_keys=True, default=str).encode()).hexdigest()[:16]


def _read(path: Path) -> dict[str, Any]:
    return read_mapping(path) if path.is_file() else {}
