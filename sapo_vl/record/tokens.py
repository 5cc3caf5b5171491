"""What the updates of a step saw of every token of its saved rollouts: a compact file beside the lines of a rank.

`step_000012.rank0.tokens.safetensors` belongs to `step_000012.rank0.jsonl`: response i of the one is line i of the
other. n responses with T tokens in all, response after response. docs/metrics.md says what each array is of. Of a step
with many tokens only a part is written, see `bytes_of_rank` and `choose`: a response that is left out has no tokens
here, and its update is LEFT_OUT.
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

from sapo_vl.record.sampling import coarse_to_fine
from sapo_vl.strict import Unreadable

FORMAT = "sapo_vl tokens 1"
SUFFIX = ".tokens.safetensors"
ABOUT = (
    "about"  # format and CRC-32. One entry: safetensors writes several in any order, and runs must be equal to the byte
)
LEFT_OUT = -1
HALF_MAX = float(np.finfo(np.float16).max)
# As they lie in the file, BYTES_PER_TOKEN. A ratio is float32: float16 cannot tell 1.0003 from 1.
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
BYTES_PER_TOKEN = sum(np.dtype(dtype).itemsize for name, dtype in DTYPES.items() if name not in ("offsets", "update"))


@dataclass(frozen=True, slots=True, kw_only=True)
class Tokens:
    """The tokens of n responses. NaN = not known: nothing looked at the token, or the engine gave no log-prob."""

    offsets: np.ndarray  # [n + 1] int32, from 0 to T: response i has the tokens offsets[i] to offsets[i + 1]
    update: np.ndarray  # [n] int32, from 1: the update that the response took part in; 0 = in none; or LEFT_OUT
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


def bytes_of_rank(limit: int, rank: int, ranks: int, step: int, group: int) -> int:
    """Bytes of tokens that a rank may write of a step, all ranks together at most `limit`.

    group: bytes of a group at its longest. Where an equal share would not hold one, fewer ranks write, others in the
    next step.
    """
    writers = max(1, min(ranks, limit // max(1, group)))
    return limit // writers if (rank + step) * writers % ranks < writers else 0


def choose(lengths: Sequence[Sequence[int]], taught: Sequence[bool], limit: int) -> list[list[bool]]:
    """Which responses are written, by group: all where they fit in `limit` bytes.

    Else whole groups, evenly spaced, those that taught something first; where not one of them fits, responses of the
    first. lengths: tokens of each response, by group.
    """
    sizes = [BYTES_PER_TOKEN * sum(group) for group in lengths]
    kept = [[False] * len(group) for group in lengths]
    for wanted in (True, False):
        some = [i for i, one in enumerate(taught) if one == wanted]
        for i in (some[j] for j in coarse_to_fine(len(some))):
            if sizes[i] <= limit:
                kept[i], limit = [True] * len(kept[i]), limit - sizes[i]
        if some and not any(map(any, kept)):
            for j, length in enumerate(lengths[some[0]]):
                if BYTES_PER_TOKEN * length <= limit:
                    kept[some[0]][j], limit = True, limit - BYTES_PER_TOKEN * length
    return kept


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

    responses: the response_ids of the lines; those of the file must be the same, where it has any. Raises
    FileNotFoundError if there is none, as where log.save_tokens was off, and Unreadable, a ValueError, naming the file
    that is damaged or of others.
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
    if (tokens.update < LEFT_OUT).any() or np.diff(tokens.offsets)[tokens.update == LEFT_OUT].any():
        return "a response that was left out has tokens, or the number of an update is below -1"
    total = int(tokens.offsets[-1])
    if short := [name for name in DTYPES if name not in ("offsets", "update") and len(getattr(tokens, name)) != total]:
        return f"offsets end at {total} tokens, and {', '.join(short)} are of another length"
    return "mask has other values than 0 and 1" if (tokens.mask > 1).any() else ""


def _check_responses(path: Path, tokens: Tokens, responses: Sequence[Sequence[int]]) -> None:
    if len(responses) != len(tokens):
        raise _damaged(path, f"it has {len(tokens)} responses, the lines {len(responses)}")
    for i, ids in enumerate(responses):
        if tokens.update[i] != LEFT_OUT and not np.array_equal(
            tokens.token_ids[tokens.span(i)], np.asarray(ids, np.int64)
        ):
            raise _damaged(path, f"response {i} has other tokens than line {i + 1} of the step_*.jsonl beside it")


def _damaged(path: Path, why: str) -> Unreadable:
    return Unreadable(f"{path} cannot be used: {why}; delete it, and the rollouts are shown without it")
