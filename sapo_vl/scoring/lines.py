"""`sapo-vl reward score NAME FILE.jsonl`: rewards without a model or a run."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rewards import REWARDS, RewardInput
from rewards.weighted import OWN
from rewards.workers.custom import CustomRewardError, read_custom
from rewards.workers.pool import RewardPool, inspect_in_worker
from rewards.workers.preflight import setting_problem
from rewards.workers.worker import Job, Plan, Result

STATUS = {"crash": "error"}  # a worker that died is one more way of not getting a score
BATCH = 1024  # lines scored at a time


class RewardLinesError(ValueError):
    """The reward does not exist or cannot run here, or the file cannot be read. Says what to do."""


def score_lines(
    name: str, lines: Iterable[str], params: Mapping[str, Any], timeout_s: float, workers: int, opened: str = ""
) -> Iterator[dict[str, Any]]:
    """One result a line, in order, through the worker processes that training uses.

    A line is {"id", "response", "answer", "meta"}, for rewards that look at tokens {"token_ids", "max_tokens"}, without
    which every word is a token, and for the judge {"question"}. A result is {"id", "score", "status", "parts",
    "reason"}: score is null unless the status is "scored"; the others are "unscorable", "timeout" and "error". A line
    that is no such object is a result with status "error", and no reason to stop.

    Args:
        name: a reward of REWARDS, or "my_reward.py:function". Lines have no pictures, so a reward that looks at the
            images finds none.
        params: its keyword arguments.
        timeout_s: seconds a response may take.
        opened: what the chat template has opened for every response, such as "<think>"; it goes before each.

    Raises:
        RewardLinesError: there is no such reward, or it cannot run here with these params.
    """
    plan = _plan(name, params, timeout_s)
    with RewardPool(plan, workers) as pool:
        batch: list[RewardInput | str] = []
        for number, line in enumerate(lines, start=1):
            if line.strip():
                batch.append(_input(line, number, opened))
            if len(batch) >= BATCH:
                yield from _scored(pool, name, batch)
                batch = []
        yield from _scored(pool, name, batch)


def _plan(name: str, params: Mapping[str, Any], timeout_s: float) -> Plan:
    if ":" in name:
        return _plan_of_file(name, params, timeout_s)
    if name not in REWARDS:
        known = ", ".join(sorted(REWARDS))
        raise RewardLinesError(f"no reward {name!r}; there are {known}, and yours as my_reward.py:function")
    if problem := setting_problem(name, params, timeout_s):
        raise RewardLinesError(f"{problem}; arguments are key=value words")
    return Plan({OWN: 1.0}, {name: dict(params)}, timeout_s)


def _plan_of_file(spec: str, params: Mapping[str, Any], timeout_s: float) -> Plan:
    """The plan for a reward outside the repository; it goes by its spec, "my_reward.py:function"."""
    try:
        plan = Plan({OWN: 1.0}, {spec: dict(params)}, timeout_s, read_custom(spec, spec))
        inspect_in_worker(plan)
    except CustomRewardError as error:
        raise RewardLinesError(str(error)) from error
    return plan


def _scored(pool: RewardPool, name: str, batch: Sequence[RewardInput | str]) -> Iterator[dict[str, Any]]:
    jobs = [Job(name, x) for x in batch if isinstance(x, RewardInput)]
    results = iter(pool.run(jobs) if jobs else [])
    for x in batch:
        if isinstance(x, str):
            yield {"id": None, "score": None, "status": "error", "parts": {}, "reason": x}
        else:
            yield _line(x.id, next(results))


def _line(name: str, result: Result) -> dict[str, Any]:
    # The sum has one term: its parts without the prefix are those of the reward.
    parts = {key.removeprefix(f"{OWN}/"): value for key, value in result.parts.items() if key != OWN}
    status = STATUS.get(result.status, result.status)
    return {"id": name, "score": result.score, "status": status, "parts": parts, "reason": result.detail}


def _input(line: str, number: int, opened: str) -> RewardInput | str:
    """The reward's input, or what is wrong with the line."""
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        return f"line {number} is no JSON: {error}"
    if not isinstance(row, dict) or not isinstance(row.get("response"), str):
        return f'line {number} must be an object with a text "response"'
    answer, meta = row.get("answer", ""), row.get("meta") or {}
    if not isinstance(answer, str | int | float) or not isinstance(meta, dict):
        return f'line {number}: "answer" must be a text or a number and "meta" an object'
    tokens = row.get("token_ids")
    if tokens is None:
        seen: dict[str, int] = {}
        tokens = [seen.setdefault(word, len(seen)) for word in row["response"].split()]
    if not isinstance(tokens, list) or not all(isinstance(t, int) for t in tokens):
        return f'line {number}: "token_ids" must be a list of integers'
    longest = row.get("max_tokens", max(1, len(tokens)))
    if not isinstance(longest, int) or longest < 1:
        return f'line {number}: "max_tokens" must be a positive integer'
    return RewardInput(
        text=opened + row["response"],
        num_tokens=len(tokens),
        max_tokens=longest,
        finish=str(row.get("finish", "stop")),
        token_ids=tuple(tokens),
        id=str(row.get("id", number)),
        task=str(row.get("task", "")),
        reward=str(row.get("reward", "")),
        answer=str(answer),
        question=str(row.get("question", "")),
        meta=meta,
    )


def write_scores(results: Iterable[dict[str, Any]], out: Path | None) -> None:
    """One JSON object a line, to `out` or the standard output."""
    if out is None:
        for result in results:
            print(json.dumps(result, ensure_ascii=False))
        return
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("w", encoding="utf-8") as file:
        for result in results:
            file.write(json.dumps(result, ensure_ascii=False) + "\n")
