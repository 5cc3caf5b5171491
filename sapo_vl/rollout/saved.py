"""Sampled responses as JSON-like values, to the bit: what a checkpoint keeps of the batch that was sampled ahead.

Prompts are not kept. They are drawn again on a resume, and a digest says whether they are the same ones.
"""

from __future__ import annotations

import base64
import dataclasses
import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from sapo_vl.types import Finish, Prompt, Rollout, RolloutGroup, ScoreStatus

_ARRAY = "array"  # key of a value that stands for an array


def pack_groups(groups: Sequence[RolloutGroup]) -> list[dict[str, Any]]:
    """Everything of the groups but their prompts. Arrays become base64 of their bytes: 16 bytes a token."""
    return [
        {**_packed(group, but=("prompt", "rollouts")), "prompt": _digest(group.prompt)}
        | {"rollouts": [_packed(rollout) for rollout in group.rollouts]}
        for group in groups
    ]


def unpack_groups(saved: Sequence[Mapping[str, Any]], prompts: Sequence[Prompt]) -> list[RolloutGroup] | None:
    """The groups again, in order; None if `prompts` are not those that they answer."""
    if [group["prompt"] for group in saved] != [_digest(prompt) for prompt in prompts]:
        return None
    return [
        RolloutGroup(**_unpacked(group) | {"prompt": prompt, "rollouts": tuple(map(_rollout, group["rollouts"]))})
        for group, prompt in zip(saved, prompts, strict=True)
    ]


def _rollout(saved: Mapping[str, Any]) -> Rollout:
    values = _unpacked(saved)
    status = values["score_status"]
    words = {"finish": Finish(values["finish"]), "score_status": None if status is None else ScoreStatus(status)}
    return Rollout(**values | words)


def _packed(thing: Any, but: Sequence[str] = ()) -> dict[str, Any]:
    values = {f.name: getattr(thing, f.name) for f in dataclasses.fields(thing) if f.name not in but}
    return {name: _array(v) if isinstance(v, np.ndarray) else v for name, v in values.items()}


def _array(value: np.ndarray) -> dict[str, Any]:
    text = base64.b64encode(np.ascontiguousarray(value).tobytes()).decode("ascii")
    return {_ARRAY: text, "dtype": value.dtype.str, "shape": list(value.shape)}


def _unpacked(saved: Mapping[str, Any]) -> dict[str, Any]:
    return {name: _read(v) if isinstance(v, Mapping) and _ARRAY in v else v for name, v in saved.items()}


def _read(saved: Mapping[str, Any]) -> np.ndarray:
    flat = np.frombuffer(base64.b64decode(saved[_ARRAY]), np.dtype(saved["dtype"]))
    return flat.reshape(saved["shape"]).copy()  # the view on the bytes could not be written to


def _digest(prompt: Prompt) -> str:
    """Of the problem's name and the ids that the model reads."""
    ids = np.ascontiguousarray(prompt.ids, np.int64).tobytes()
    return hashlib.blake2b(prompt.problem.id.encode() + b"\0" + ids, digest_size=16).hexdigest()
