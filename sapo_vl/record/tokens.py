"""What the updates of a step saw of every token of its saved rollouts: a compact file beside the lines of a rank.

`step_000012.rank0.tokens.safetensors` belongs to `step_000012.rank0.jsonl`: response i of the one is line i of the
other. n responses with T tokens in all, response after response. docs/metrics.md says what each array is of.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from sapo_vl.strict import Unreadable

FORMAT = "sapo_vl tokens 1"
SUFFIX = ".tokens.safetensors"
ABOUT = (
    "about"  # format and CRC-32. One entry: safetensors writes several in any order, and runs must be equal to the byte
)
HALF_MAX = float(np.finfo(np.float16).max)
# As they lie in the file, 19 bytes a token. A ratio is float32: float16 cannot tell 1.0003 from 1.
DTYPES: Mapping[str, str] = {
    "offsets": "int32",
    "update": "int32",
    "token_ids": "int32",
    "ratio": "float32",
    "gate": "float16",
    "logp_old": "float16",
    "logp_new": "float16",
    "entropy": "float16",
    "gap": "float16",
    "mask": "uint8",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokens:
    """The tokens of n responses. NaN = not known: nothing looked at the token, or the engine gave no log-prob."""

    offsets: np.ndarray  # [n + 1] int32, from 0 to T: response i has the tokens offsets[i] to offsets[i + 1]
    update: np.ndarray  # [n] int32, from 1: the update of the step that the response took part in; 0 = in none
    token_ids: np.ndarray  # [T] int32
    ratio: np.ndarray  # [T] float32, r = pi_theta / pi_old of the token, held at e^20
    gate: np.ndarray  # [T] float16, f'(r) of the loss in use: 0 or 1 for a clip
    logp_old: np.ndarray  # [T] float16, log pi_old in nats
    logp_new: np.ndarray  # [T] float16, log pi_theta: of the weights right before the response's own update
    entropy: np.ndarray  # [T] float16, nats, of the law that pi_theta drew the token from
    gap: np.ndarray  # [T] float16, log-prob by the engine - log-prob by the trainer before the step's first update
    mask: np.ndarray  # [T] uint8, 1 = in the loss

    def __len__(self) -> int:
        """Responses."""
        return len(self.offsets) - 1

    def span(self, response: int) -> slice:
        """Where the tokens of a response lie: `tokens.gate[tokens.span(3)]`."""
        return slice(int(self.offsets[response]), int(self.offsets[response + 1]))


def tokens_path(lines: Path) -> Path:
    """The file that belongs to a step_*.jsonl."""
    return lines.with_name(lines.name.removesuffix(".jsonl") + SUFFIX)


def write_tokens(lines: Path, tokens: Tokens) -> Path:
    """Writes the file that belongs to `lines`. It appears when complete.

    What float16 cannot hold is written as its largest number.
    """
    arrays = {}
    for name, dtype in DTYPES.items():
        values = getattr(tokens, name)
        bounded = np.clip(values, -HALF_MAX, HALF_MAX) if dtype == "float16" else values
        arrays[name] = np.ascontiguousarray(bounded, dtype)
    path = tokens_path(lines)
    beside = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        beside.write_bytes(save(arrays, {ABOUT: f"{FORMAT} {_checksum(arrays)}"}))
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
    return path


def read_tokens(path: Path, responses: Sequence[Sequence[int]] | None = None) -> Tokens:
    """Reads a file of `write_tokens`, given by its own path or that of its step_*.jsonl.

    responses: the response_ids of the lines; those of the file must be the same. Raises FileNotFoundError if there is
    none, as where log.save_tokens was off, and Unreadable, a ValueError, naming the file that is damaged or of others.
    """
    path = tokens_path(path) if path.name.endswith(".jsonl") else path
    if not path.exists():
        raise FileNotFoundError(f"no {path}: the run did not save per-token numbers of this step (log.save_tokens)")
    try:
        data = path.read_bytes()
        arrays = load(data)
        told = _metadata(data)
    except (OSError, SafetensorError, ValueError, KeyError) as error:
        raise _damaged(path, f"it is cut off, or no safetensors file ({error})") from error
    form, _, checksum = told.get(ABOUT, "").rpartition(" ")
    if form != FORMAT:
        raise _damaged(path, f"its format is {form!r}, where {FORMAT!r} is read")
    if arrays.keys() != DTYPES.keys() or any(arrays[name].dtype != dtype for name, dtype in DTYPES.items()):
        held = {name: str(array.dtype) for name, array in sorted(arrays.items())}
        raise _damaged(path, f"it holds {held}, where {dict(DTYPES)} should be")
    if checksum != _checksum(arrays):
        raise _damaged(path, "its content does not have the checksum that it was written with")
    tokens = Tokens(**{f.name: arrays[f.name] for f in fields(Tokens)})
    if why := _misfit(tokens):
        raise _damaged(path, why)
    if responses is not None:
        _check_responses(path, tokens, responses)
    return tokens


def _metadata(data: bytes) -> Mapping[str, str]:
    """Of bytes that safetensors could read: 8 bytes of length, then that much JSON."""
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]).get("__metadata__") or {}


def _checksum(arrays: Mapping[str, np.ndarray]) -> str:
    sum_ = 0
    for name in DTYPES:
        sum_ = zlib.crc32(arrays[name].tobytes(), sum_)
    return f"{sum_:08x}"


def _misfit(tokens: Tokens) -> str:
    """Why the arrays do not fit each other; "" if they do."""
    if any(getattr(tokens, name).ndim != 1 for name in DTYPES):
        return "an array has more than one dimension"
    if len(tokens.offsets) == 0 or tokens.offsets[0] != 0 or (np.diff(tokens.offsets) < 0).any():
        return "offsets do not climb from 0"
    if len(tokens.update) != len(tokens):
        return f"it has {len(tokens)} responses and {len(tokens.update)} updates of responses"
    total = int(tokens.offsets[-1])
    if short := [name for name in DTYPES if name not in ("offsets", "update") and len(getattr(tokens, name)) != total]:
        return f"offsets end at {total} tokens, and {', '.join(short)} are of another length"
    return "mask has other values than 0 and 1" if (tokens.mask > 1).any() else ""


def _check_responses(path: Path, tokens: Tokens, responses: Sequence[Sequence[int]]) -> None:
    if len(responses) != len(tokens):
        raise _damaged(path, f"it has {len(tokens)} responses, the lines {len(responses)}")
    for i, ids in enumerate(responses):
        if not np.array_equal(tokens.token_ids[tokens.span(i)], np.asarray(ids, np.int64)):
            raise _damaged(path, f"response {i} has other tokens than line {i + 1} of the step_*.jsonl beside it")


def _damaged(path: Path, why: str) -> Unreadable:
    return Unreadable(f"{path} cannot be used: {why}; delete it, and the rollouts are shown without it")
