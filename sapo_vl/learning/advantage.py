"""Group-relative advantages: how much better a response scored than its siblings.

    A_i = (R_i - baseline_i) / scale      SAPO paper (arXiv 2511.20347) Sec. 2, as in GRPO (arXiv 2402.03300)

Means and standard deviations run over SCORED responses. A response that could not be scored (reward None) is
neither right nor wrong: it gets no advantage and does not shift the baseline of the others. docs/losses.md has the
choices with their sources.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from pydantic import Field

from sapo_vl.distributed import World
from sapo_vl.strict import Strict
from sapo_vl.types import RolloutGroup


class AdvantageConfig(Strict):
    """How rewards of a group become advantages."""

    baseline: Literal["mean", "leave_one_out"] = "mean"
    """What is subtracted: the mean of the group, or of the OTHER responses of the group (as in RLOO)."""
    scale: Literal["std", "none", "mean", "task_std"] = "std"
    """What it is divided by: the population standard deviation (1/n) of the group; 1 (as in Dr. GRPO); the mean of the
    group (MaxRL; a group whose mean is not above 0 is dead); or the population standard deviation of all responses
    of the rollout batch that belong to the task of the problem, over all ranks."""
    std_floor: float = Field(default=1e-6, gt=0, allow_inf_nan=False)
    """A group is dead if its std is at most this times max(1, largest |reward|): rounding, no difference."""
    keep_dead_groups: bool = True
    """The responses of a dead group with 2 scores or more count in the means of the loss, as in SAPO Eq. 5 and in other
    trainers: an update weighs by how much of it has a signal. They are not run through the model, unless loss.kl_coef
    gives them a gradient."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AdvantageStats:
    """Counts and reward statistics of one call. A mean is None where there is nothing to average."""

    num_groups: int
    num_dead: int  # groups that give no gradient, for whichever reason
    num_too_few_scored: int  # of those: fewer than 2 scored responses; the rest had equal rewards ...
    num_mean_not_positive: int | None  # ... or a mean not above 0 with scale=mean; None with another scale
    num_rollouts: int
    num_scored: int
    num_unscored: int
    reward_mean: float | None  # over all scored responses
    reward_std: float | None  # population std over all scored responses
    group_std_mean: float | None  # mean population std of the groups with >= 2 scored responses


def assign_advantages(
    groups: Sequence[RolloutGroup], config: AdvantageConfig, world: World | None = None
) -> tuple[list[RolloutGroup], AdvantageStats]:
    """The same groups in the same order, every rollout with its advantage set; float64 inside.

    advantage is None for an unscored response, and where fewer than 2 of the group were scored. The rewards of a dead
    group are equal up to rounding, or with scale=mean their mean is not above 0: advantage 0.0, or None without
    keep_dead_groups.

    `groups` are those of this rank of `world` (None = a world of one). With scale=task_std all ranks call it
    together, also one without groups; the result does not depend, by a bit, on which rank holds which group.

    Raises ValueError naming the problem for a reward that is NaN or infinite, or too large to average.
    """
    assigned: list[RolloutGroup] = []
    num_dead = num_too_few = num_not_positive = num_rollouts = 0
    stds: list[float] = []
    scored = [[i for i, rollout in enumerate(group.rollouts) if rollout.reward is not None] for group in groups]
    all_rewards = [_finite_rewards(group, indices) for group, indices in zip(groups, scored, strict=True)]
    tasks = [group.prompt.problem.task for group in groups]
    task_stds = _task_stds(tasks, all_rewards, world or World.alone()) if config.scale == "task_std" else {}
    for group, task, indices, rewards in zip(groups, tasks, scored, all_rewards, strict=True):
        std, differs = _spread(rewards, config)
        values = None
        if differs:
            values = _group_advantages(rewards, config, std, task_stds.get(task, std))
            num_not_positive += values is None
        num_rollouts += len(group.rollouts)
        num_too_few += len(indices) < 2
        num_dead += values is None
        if len(indices) >= 2:
            stds.append(std)
        if values is None and config.keep_dead_groups and len(indices) >= 2:
            values = np.zeros(len(indices))
        advantages: list[float | None] = [None] * len(group.rollouts)
        if values is not None:
            for i, value in zip(indices, values, strict=True):
                advantages[i] = float(value)
        rollouts = tuple(replace(rollout, advantage=a) for rollout, a in zip(group.rollouts, advantages, strict=True))
        assigned.append(replace(group, rollouts=rollouts))

    flat = np.concatenate(all_rewards) if all_rewards else np.empty(0)
    stats = AdvantageStats(
        num_groups=len(groups),
        num_dead=num_dead,
        num_too_few_scored=num_too_few,
        num_mean_not_positive=num_not_positive if config.scale == "mean" else None,
        num_rollouts=num_rollouts,
        num_scored=len(flat),
        num_unscored=num_rollouts - len(flat),
        reward_mean=float(flat.mean()) if len(flat) else None,
        reward_std=float(flat.std()) if len(flat) else None,
        group_std_mean=float(np.mean(stds)) if stds else None,
    )
    return assigned, stats


def _finite_rewards(group: RolloutGroup, scored: Sequence[int]) -> np.ndarray:
    """Rewards [n] float64 of the responses at the given indices."""
    rewards = np.array([group.rollouts[i].reward for i in scored], dtype=np.float64)
    for i, reward in zip(scored, rewards, strict=True):
        # The bound keeps sums of squares inside float64; a reward that large is a broken grader anyway.
        if not abs(reward) < 1e100:
            raise ValueError(
                f"reward {reward} of response {i} to problem {group.prompt.problem.id!r} is not a finite "
                "number of usable size; a response that cannot be scored has reward None"
            )
    return rewards


def _task_stds(tasks: Sequence[str], rewards: Sequence[np.ndarray], world: World) -> dict[str, float]:
    """Population std, by task, of the rewards of all groups of all ranks.

    The sums are exactly rounded (fsum), so that their order, and with it the number of ranks, does not matter.
    """
    mine: dict[str, list[float]] = defaultdict(list)
    for task, values in zip(tasks, rewards, strict=True):
        mine[task] += values.tolist()
    together: dict[str, list[float]] = defaultdict(list)
    for part in world.gather(dict(mine)):
        for task, values in part.items():
            together[task] += values
    stds: dict[str, float] = {}
    for task, values in together.items():
        n = max(1, len(values))
        mean = math.fsum(values) / n
        stds[task] = math.sqrt(math.fsum((value - mean) ** 2 for value in values) / n)
    return stds


def _spread(rewards: np.ndarray, config: AdvantageConfig) -> tuple[float, bool]:
    """(population std of scored rewards [n], whether it is more than rounding); (0, False) for fewer than 2."""
    if len(rewards) < 2:
        return 0.0, False
    std = float(rewards.std())
    # Equal rewards such as 0.1, 0.1, 0.1 leave a std of 1e-17 rather than 0; dividing by it would give
    # advantages of +-1.
    return std, std > _rounding(rewards, config)


def _rounding(rewards: np.ndarray, config: AdvantageConfig) -> float:
    return config.std_floor * max(1.0, float(np.abs(rewards).max()))


def _group_advantages(rewards: np.ndarray, config: AdvantageConfig, std: float, task_std: float) -> np.ndarray | None:
    """Advantages [n] of scored rewards [n] that differ; None if scale=mean and their mean is not above 0."""
    n, mean = len(rewards), rewards.mean()
    advantages = rewards - mean
    if config.baseline == "leave_one_out":
        advantages *= n / (n - 1)  # R_i - mean of the others = n / (n - 1) * (R_i - mean of all)
    match config.scale:
        case "std":
            advantages /= std
        case "task_std":
            advantages /= task_std
        case "mean":
            if mean <= _rounding(rewards, config):
                return None  # the sign of every advantage would turn, or there is nothing to divide by
            advantages /= mean
        case "none":
            pass
    return advantages
