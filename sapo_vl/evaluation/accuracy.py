"""Accuracy on problems, one response each: over all of them and by task, with intervals."""

from __future__ import annotations

import logging
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sapo_vl.data.feed import read_prompt
from sapo_vl.data.problem_set import DataError, ProblemSet
from sapo_vl.evaluation.config import EvalConfig, Mode
from sapo_vl.model.chat import Chat
from sapo_vl.record.stats import wilson_interval
from sapo_vl.rollout import SamplingParams
from sapo_vl.scoring.scorer import Scorer
from sapo_vl.session import Session
from sapo_vl.types import Finish, Prompt, ScoreStatus

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One evaluated problem."""

    id: str
    task: str
    accuracy: float | None  # None: unreadable, or not scorable; left out of the mean and counted
    truncated: bool


def evaluate(
    session: Session,
    problems: ProblemSet,
    scorer: Scorer,
    config: EvalConfig,
    *,
    mode: Mode,
    max_new_tokens: int,
    seed: int,
) -> dict[str, Any]:
    """One response per problem; the result is the same on every rank and for any number of ranks.

    Returns {"mean", "n", "ci95", "by_task": {task: {"mean", "n", "ci95"}}, "left_out", "truncated_share"}; the
    mean is over problems, intervals are Wilson's at 95 %.
    """
    world, chat = session.world, session.chat
    rows = _rows(problems.tasks, config.max_per_task)
    # Every rank needs equally many prompts, since sharded engines run in step: the surplus repeats the last row.
    each = -(-len(rows) // world.size)
    padded = rows + [rows[-1]] * (each * world.size - len(rows))
    mine = padded[world.rank * each : (world.rank + 1) * each]
    fallback = _first_readable(problems, chat)
    params = SamplingParams(
        n=1,
        max_new_tokens=max_new_tokens,
        temperature=0.0 if mode == "greedy" else config.temperature,
        seed=seed,
    )
    outcomes: list[Outcome] = []
    for i in range(0, each, config.batch):
        prompts: list[Prompt] = []
        broken: list[str | None] = []
        for row in mine[i : i + config.batch]:
            prompt, bad = read_prompt(problems, row, chat)
            if bad is not None:
                log.warning("evaluation leaves out %s", bad)
            prompts.append(prompt or fallback)
            broken.append(problems.tasks[row] if prompt is None else None)
        groups = scorer.score(session.rollouts.generate(prompts, params), max_new_tokens)
        for group, broken_task in zip(groups, broken, strict=True):
            rollout = group.rollouts[0]
            scored = rollout.score_status is ScoreStatus.SCORED and broken_task is None
            outcomes.append(
                Outcome(
                    id=group.prompt.problem.id,
                    task=broken_task or group.prompt.problem.task,
                    accuracy=rollout.parts["accuracy"] if scored else None,
                    truncated=rollout.finish is Finish.LENGTH,
                )
            )
    everyone = [o for part in world.gather(outcomes) for o in part][: len(rows)]
    return summarise(everyone)


def summarise(outcomes: Sequence[Outcome]) -> dict[str, Any]:
    """Means, counts and intervals of outcomes. A part "accuracy" between 0 and 1 counts as that share of a success."""
    by_task: dict[str, list[float]] = defaultdict(list)
    for o in outcomes:
        if o.accuracy is not None:
            by_task[o.task].append(o.accuracy)
    everything = [a for values in by_task.values() for a in values]
    return {
        **_mean(everything),
        "by_task": {task: _mean(values) for task, values in sorted(by_task.items())},
        "left_out": sum(o.accuracy is None for o in outcomes),
        "truncated_share": sum(o.truncated for o in outcomes) / max(1, len(outcomes)),
    }


def _mean(values: Sequence[float]) -> dict[str, Any]:
    if not values:
        return {"mean": None, "n": 0, "ci95": None}
    return {
        "mean": sum(values) / len(values),
        "n": len(values),
        "ci95": list(wilson_interval(sum(values), len(values))),
    }


def _rows(tasks: Sequence[str], max_per_task: int) -> list[int]:
    taken: dict[str, int] = defaultdict(int)
    rows = []
    for row, task in enumerate(tasks):
        taken[task] += 1
        if not max_per_task or taken[task] <= max_per_task:
            rows.append(row)
    return rows


def _first_readable(problems: ProblemSet, chat: Chat) -> Prompt:
    for row in range(len(problems)):
        prompt, _ = read_prompt(problems, row, chat)
        if prompt is not None:
            return prompt
    raise DataError(f"no row of {problems.path} split {problems.split!r} can be read")
