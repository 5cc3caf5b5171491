"""Accuracy on problems, one response each: over all of them and by task, with intervals."""

from __future__ import annotations

import logging
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sapo_vl.data.feed import read_prompt
from sapo_vl.data.problem_set import BadRow, ProblemSet
from sapo_vl.evaluation.config import EvalConfig, Mode
from sapo_vl.model.chat import Chat
from sapo_vl.record.stats import wilson_interval
from sapo_vl.rollout import SamplingParams
from sapo_vl.scoring.scorer import Scorer
from sapo_vl.session import SamplingSession
from sapo_vl.types import Finish, Prompt, RolloutGroup, ScoreStatus

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """One evaluated problem."""

    id: str
    task: str
    accuracy: float | None  # None: unreadable, or not scorable; left out of the mean and counted
    truncated: bool
    reason: str = ""  # why it has no accuracy, in fixed words


def evaluate(
    session: SamplingSession,
    problems: ProblemSet,
    scorer: Scorer,
    config: EvalConfig,
    *,
    mode: Mode,
    max_new_tokens: int,
    seed: int,
) -> dict[str, Any]:
    """One response per problem; the result is the same on every rank and for any number of ranks.

    Returns {"mean", "n", "ci95", "by_task": {task: {"mean", "n", "ci95"}}, "left_out", "reasons", "truncated_share"};
    the mean is over problems, intervals are Wilson's at 95 %, "reasons" has how many were left out by what.
    A row that cannot become a prompt is left out; if none can, there is no mean.
    """
    world, chat = session.world, session.chat
    rows = _rows(problems.tasks, config.max_per_task)
    if not rows:
        return summarise([])
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
        rows_read = [(row, *read_prompt(problems, row, chat)) for row in mine[i : i + config.batch]]
        for _, _, bad in rows_read:
            if bad is not None:
                log.warning("evaluation leaves out %s", bad)
        if fallback is None:  # on every rank
            outcomes += [_unread(problems, row, bad) for row, _, bad in rows_read]
            continue
        prompts = [prompt or fallback for _, prompt, _ in rows_read]
        groups = scorer.score(session.rollouts.generate(prompts, params), max_new_tokens)
        for group, (row, _, bad) in zip(groups, rows_read, strict=True):
            outcomes.append(_unread(problems, row, bad) if bad is not None else _outcome(group))
    everyone = [o for part in world.gather(outcomes) for o in part][: len(rows)]
    return summarise(everyone)


def _unread(problems: ProblemSet, row: int, bad: BadRow | None) -> Outcome:
    """Of a row that never became a prompt."""
    assert bad is not None
    return Outcome(id=bad.id, task=problems.tasks[row], accuracy=None, truncated=False, reason=bad.kind)


def _outcome(group: RolloutGroup) -> Outcome:
    rollout, problem = group.rollouts[0], group.prompt.problem
    scored = rollout.score_status is ScoreStatus.SCORED
    return Outcome(
        id=problem.id,
        task=problem.task,
        accuracy=rollout.parts["accuracy"] if scored else None,
        truncated=rollout.finish is Finish.LENGTH,
        reason="" if scored else f"not scored: {rollout.score_status or rollout.finish}",
    )


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
        "reasons": dict(sorted(Counter(o.reason or "not scored" for o in outcomes if o.accuracy is None).items())),
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


def _first_readable(problems: ProblemSet, chat: Chat) -> Prompt | None:
    """What an engine is asked in the place of a row that cannot be; the same on every rank."""
    for row in range(len(problems)):
        prompt, _ = read_prompt(problems, row, chat)
        if prompt is not None:
            return prompt
    return None
