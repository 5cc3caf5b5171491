"""The harness of a result as it lies in its folder: reading it, and what two of them differ in.

Apart from harness.py, so that two results are compared without loading what a model needs.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sapo_vl.evaluation.errors import EvaluationError
from sapo_vl.strict import read_mapping

HARNESS_FILE = "harness.json"


def differences(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Dotted key -> (value here, value there) where two harnesses differ; None for a key that one has not."""
    a, b = _flat(ours), _flat(theirs)
    return {key: (a.get(key), b.get(key)) for key in sorted(a.keys() | b.keys()) if a.get(key) != b.get(key)}


def read_harness(folder: Path) -> tuple[dict[str, Any], str]:
    """The harness of a benchmark's folder, and its spec. Raises EvaluationError if there is none that can be read."""
    path = folder / HARNESS_FILE
    try:
        found = read_mapping(path)
        harness = dict(found["harness"])
        written, spec = found.get("hash"), found["spec"]
        if written is not None and written != hash_of(harness):
            raise ValueError("it has another hash than when it was written")
        harness.setdefault("rule", "ours")  # results from before there was a choice
        about = harness["benchmark"]
        texts = (spec, harness["rule"], *(about[key] for key in ("name", "source", "split")))
        counts = (harness["k"], harness["sampling"]["max_new_tokens"])
        if not all(isinstance(v, str) for v in texts) or not all(type(v) is int and v > 0 for v in counts):
            raise ValueError("it does not say what was asked, and how")
        if not all(isinstance(params, dict) for params in harness["rules"].values()):
            raise ValueError("its rules have no params")
        return harness, spec
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        why = " ".join((str(error) if isinstance(error, ValueError) else repr(error)).split())[:300]
        raise EvaluationError(
            f"{path} cannot be used ({why}); give the folder of a benchmark that `sapo-vl eval` wrote"
        ) from error


def same_harness(folder: Path, harness: Mapping[str, Any]) -> None:
    """Raises EvaluationError, naming what differs, if `folder` holds results of another harness."""
    if not (folder / HARNESS_FILE).exists():
        return
    if differ := differences(harness, read_harness(folder)[0]):
        listed = "; ".join(f"{key}: {_short(here)}, there {_short(there)}" for key, (here, there) in differ.items())
        raise EvaluationError(
            f"{folder} holds results of another harness ({listed}). Give another --out, or delete this folder"
        )


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and value:
            flat |= _flat(value, f"{name}.")
        else:
            flat[name] = value
    return flat


def hash_of(value: Any) -> str:
    """SHA-256 of the canonical JSON of `value`, 64 hex digits."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()
