"""Saved rollouts as groups, with the numbers of their tokens where a run saved them."""

from __future__ import annotations

import base64
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sapo_vl.record.tokens import LEFT_OUT, Tokens, read_tokens, tokens_path
from sapo_vl.strict import Unreadable, parse_json
from sapo_vl.viewing.numbers import finite, plain

Group = dict[str, Any]
QUANTITIES = ("ratio", "gate", "logp_old", "logp_new", "entropy", "gap")
SHARED = ("step", "id", "task", "answer", "prompt", "images", "box")
# Of a group in the index, in this order; the page reads them by it.
INDEX = (
    "key", "step", "id", "task", "n", "rewards", "mean", "spread", "dead", "truncated", "unscored", "tokens"
)  # fmt: skip


def read_groups(
    files: Sequence[Path], group_size: int | None = None, *, numbers: bool = True
) -> tuple[list[Group], list[str]]:
    """(the groups of one step, what of it cannot be shown and why).

    Lines of one problem that follow each other are a group, of `group_size` at most. A group is {"key", "step", "id",
    "task", "answer", "prompt", "images", "box": what its boxes are in, or None, "responses"}; of "tokens" in a response
    see `pack_tokens`; without `numbers` it is empty where there are some. Raises Unreadable for a line that is no
    rollout.
    """
    groups: list[Group] = []
    troubles: list[str] = []
    for file in files:
        lines = list(_lines(file))
        tokens, trouble = _tokens(file, lines)
        troubles += trouble
        rank = file.name.split(".")[1].removeprefix("rank")
        for group in _split(lines, group_size):
            first = group[0][1]
            groups.append(
                {
                    "key": f"{first['step']}.{rank}.{group[0][0]}",
                    **{name: plain(first.get(name)) for name in SHARED},
                    "responses": [_response(line, tokens, i, numbers) for i, line in group],
                }
            )
    return groups, troubles


def index_row(group: Mapping[str, Any]) -> list[Any]:
    """The group in one line, see INDEX. "spread" is the standard deviation of its rewards."""
    responses = group["responses"]
    rewards = [r["reward"] for r in responses]
    known = [reward for reward in rewards if reward is not None]
    mean = sum(known) / len(known) if known else None
    variance = sum((x - mean) ** 2 for x in known) / len(known) if mean is not None else None
    spread = None if variance is None else finite(math.sqrt(variance) if variance > 1e-18 else 0.0)
    return [
        group["key"], group["step"], group["id"], group["task"], len(responses), rewards, finite(mean), spread,
        int(not any(r["advantage"] for r in responses)),
        sum(r["finish"] == "length" for r in responses),
        sum(r["score_status"] != "scored" for r in responses),
        int(any("tokens" in r for r in responses)),
    ]  # fmt: skip


def pack_tokens(tokens: Tokens, response: int) -> dict[str, Any]:
    """The tokens of a response: base64 of little-endian arrays, float32 for the ratio and float16 for the others."""
    span = tokens.span(response)
    arrays = {"ids": tokens.token_ids[span].astype("<i4"), "mask": tokens.mask[span].astype("u1")}
    arrays |= {name: getattr(tokens, name)[span].astype("<f4" if name == "ratio" else "<f2") for name in QUANTITIES}
    packed = {name: base64.b64encode(np.ascontiguousarray(array).tobytes()).decode() for name, array in arrays.items()}
    return {"update": int(tokens.update[response]), **packed}


def _split(lines: Sequence[dict[str, Any]], group_size: int | None) -> Iterator[list[tuple[int, dict[str, Any]]]]:
    for _, same in itertools.groupby(enumerate(lines), key=lambda pair: pair[1].get("id")):
        members = list(same)
        size = group_size or len(members)
        yield from (members[start : start + size] for start in range(0, len(members), size))


def _response(line: Mapping[str, Any], tokens: Tokens | None, i: int, numbers: bool) -> dict[str, Any]:
    ids = line.get("response_ids")
    shown = {
        "text": str(line.get("response", "")),
        "n": len(ids) if isinstance(ids, list) else None,
        "finish": line.get("finish"),
        "reward": finite(line.get("reward")),
        "parts": plain(line.get("parts") or {}),
        "score_status": line.get("score_status"),
        "score_detail": line.get("score_detail"),
        "advantage": finite(line.get("advantage")),
        "weight_version": finite(line.get("weight_version")),
        "mean_logprob": finite(line.get("mean_logprob")),
    }
    if tokens is None or tokens.update[i] == LEFT_OUT:
        return shown
    return {**shown, "tokens": pack_tokens(tokens, i) if numbers else {}}


def _tokens(file: Path, lines: Sequence[Mapping[str, Any]]) -> tuple[Tokens | None, list[str]]:
    if not tokens_path(file).exists():
        return None, []
    try:
        return read_tokens(file, [line.get("response_ids") or [] for line in lines]), []
    except Unreadable as error:  # the rollouts can still be looked at
        return None, [str(error)]


def _lines(file: Path) -> Iterator[dict[str, Any]]:
    with file.open("rb") as lines:
        for number, text in enumerate(lines, start=1):
            try:
                line = parse_json(text)
                if not isinstance(line, dict) or type(line.get("step")) is not int:
                    raise ValueError("it is no rollout")
            except ValueError as error:
                raise Unreadable(f"{file}:{number} cannot be read ({error}); delete the line") from error
            yield line
