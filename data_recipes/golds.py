"""Asking a reward what it gives to golds: a gold that its own reward rejects must never be trained on."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from rewards import IN_PROCESS, REWARDS, RewardInput
from rewards.base import needs_images
from rewards.weighted import OWN
from rewards.workers.pool import RewardPool
from rewards.workers.preflight import setting_problem
from rewards.workers.worker import Job, Plan, Result, score_one
from sapo_vl.data.problem_set import DataError
from sapo_vl.types import Problem

TIMEOUT_S = 10.0
UNCHECKED = "no reference solution"
_NUMBER = r"-?[0-9]+(?:\.[0-9]+)?"
_BOX = re.compile(rf"(?<!\w)({_NUMBER})([\s,]+)({_NUMBER})([\s,]+)({_NUMBER})([\s,]+)({_NUMBER})(?!\w)")


def gold_response(problem: Problem) -> str | None:
    """A response that says the gold; None where the gold is no answer (programs and mazes without a solution)."""
    if problem.reward in ("code", "maze"):
        return problem.solution or None
    return f"<answer>{_in_unit_of_answer(problem) if problem.reward == 'box' else problem.answer}</answer>"


def _in_unit_of_answer(problem: Problem) -> str:
    """The gold boxes as they would be answered (rewards.box has the rules of the units)."""
    asked, size = problem.meta.get("coords"), problem.meta.get("size")
    given = problem.meta.get("gold_coords") or ("pixel" if size else asked)
    if not size or given == asked:
        return problem.answer
    x, y = ((1000 / side if asked == "0-1000" else side / 1000) for side in size)

    def scaled(match: re.Match[str]) -> str:
        numbers = [f"{float(match[i]) * by:.3f}" for i, by in zip((1, 3, 5, 7), (x, y, x, y), strict=True)]
        return ", ".join(numbers)

    return _BOX.sub(scaled, problem.answer)


def _no_solution(problem: Problem) -> str:
    """What shows whether a problem without a reference solution makes sense. Tests that are texts are looked at with no
    program to run, for there may be hundreds; asserts must be Python, which one run of all of them tells."""
    texts_alone = problem.reward == "code" and not problem.meta.get("asserts")
    return "<answer></answer>" if texts_alone else "<answer>```python\npass\n```</answer>"


class Judge:
    """Scores responses by the rewards that the problems name, those that may hang in workers that can be killed.

    Use it as a context manager.
    """

    def __init__(
        self, workers: int = 2, timeout_s: float = TIMEOUT_S, params: Mapping[str, Mapping[str, Any]] | None = None
    ) -> None:
        """params: name of a reward -> its arguments."""
        self._plan, self._workers = Plan({OWN: 1.0}, params or {}, timeout_s), workers
        self._pool: RewardPool | None = None
        self._checked: set[str] = set()

    def __enter__(self) -> Judge:
        return self

    def __exit__(self, *_: object) -> None:
        if self._pool is not None:
            self._pool.close()

    def results(self, pairs: Iterable[tuple[Problem, str]]) -> list[Result]:
        """What each response is worth, in order. Raises DataError for a reward that is not there or cannot run here."""
        jobs = [self._job(problem, response) for problem, response in pairs]
        slow = [i for i, job in enumerate(jobs) if job.own not in IN_PROCESS]
        if slow and self._pool is None:
            self._pool = RewardPool(self._plan, self._workers)
        pooled = self._pool.run([jobs[i] for i in slow]) if slow and self._pool is not None else []
        by_index = dict(zip(slow, pooled, strict=True))
        return [by_index.get(i) or score_one(self._plan, job) for i, job in enumerate(jobs)]

    def _job(self, problem: Problem, response: str) -> Job:
        name = problem.reward
        if name not in self._checked:
            if wrong := setting_problem(name, self._plan.params.get(name, {}), self._plan.timeout_s):
                raise DataError(f"problem {problem.id} of task {problem.task}: its gold cannot be checked: {wrong}")
            self._checked.add(name)
        length = len(response.split())
        images = tuple(problem.images) if needs_images(REWARDS[name], {}) else ()
        return Job(
            name,
            RewardInput(
                text=response, num_tokens=length, max_tokens=max(1, length), finish="stop", id=problem.id,
                task=problem.task, answer=problem.answer, meta=problem.meta, images=images,
            ),
        )  # fmt: skip


def gold_reasons(judge: Judge, problems: Sequence[Problem]) -> list[tuple[str, str]]:
    """(reason, detail) of each problem's gold; the reason is "" if its own reward gives it 1, UNCHECKED if there is
    nothing to check. A program's tests are checked as such even without a reference program."""
    responses = [gold_response(p) for p in problems]
    given = [r if r is not None else _no_solution(p) for r, p in zip(responses, problems, strict=True)]
    reasons = []
    for response, result in zip(responses, judge.results(zip(problems, given, strict=True)), strict=True):
        if result.status == "unscorable":
            reasons.append(("gold unparsable", result.detail))
        elif result.status != "scored":
            reasons.append((f"gold not scored: {result.status}", result.detail))
        elif response is None:
            reasons.append((UNCHECKED, ""))
        elif result.score != 1:
            reasons.append(("gold rejected", f"score {result.score}: {result.detail}"))
        else:
            reasons.append(("", ""))
    return reasons
