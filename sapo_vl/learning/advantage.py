"""Group-relative advantages: how much better a response scored than its siblings.

    A_i = (R_i - baseline_i) / std        SAPO paper (arXiv 2511.20347) Sec. 2, as in GRPO (arXiv 2402.03300)

Mean and standard deviation run over the SCORED responses of a group. A response that could not be scored
(reward None) is neither right nor wrong: it gets no advantage and does not shift the baseline of the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from pydantic import Field

from sapo_vl.strict import Strict
from sapo_vl.types import RolloutGroup


class AdvantageConfig(Strict):
    """How rewards of a group become advantages."""

    baseline: Literal["mean", "leave_one_out"] = "mean"
    """What is subtracted: the mean of the group, or of the OTHER responses of the group (as in RLOO)."""
    scale: Literal["std", "none"] = "std"
    """What it is divided by: the population standard deviation (1/n) of the group, or 1."""
    std_floor: float = Field(default=1e-6, gt=0, allow_inf_nan=False)
    """A group is dead if its std is at most this times max(1, largest |reward|): rounding, no difference."""
    keep_dead_groups: bool = False
    """Give the scored responses of a dead group advantage 0, so that they still count in the means."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AdvantageStats:
    """Counts and reward statistics of one call. A mean is None where there is nothing to average."""

    num_groups: int
    num_dead: int  # groups that give no gradient, for whichever reason
    num_too_few_scored: int  # of those: fewer than 2 scored responses; the rest had equal rewards
    num_rollouts: int
    num_scored: int
    num_unscored: int
    reward_mean: float | None  # over all scored responses
    reward_std: float | None  # population std over all scored responses
    group_std_mean: float | None  # mean population std of the groups with >= 2 scored responses


def assign_advantages(
    groups: Sequence[RolloutGroup], config: AdvantageConfig
) -> tuple[list[RolloutGroup], AdvantageStats]:
    """The same groups in the same order, every rollout with its advantage set; float64 inside.

    advantage is None for an unscored response and for all of a dead group (0.0 for its scored ones if
    keep_dead_groups). A dead group has fewer than 2 scored responses, or rewards that are equal up to
    rounding.

    Raises ValueError naming the problem for a reward that is NaN or infinite, or too large to average.
    """
    assigned: list[RolloutGroup] = []
    num_dead = num_too_few = num_rollouts = 0
    all_rewards: list[np.ndarray] = []
    stds: list[float] = []
    for group in groups:
        scored = [i for i, rollout in enumerate(group.rollouts) if rollout.reward is not None]
        rewards = _finite_rewards(group, scored)
        std, values = _group_advantages(rewards, config)
        num_rollouts += len(group.rollouts)
        num_too_few += len(scored) < 2
        num_dead += values is None
        all_rewards.append(rewards)
        if len(scored) >= 2:
            stds.append(std)
        if values is None and config.keep_dead_groups:
            values = np.zeros(len(scored))
        advantages: list[float | None] = [None] * len(group.rollouts)
        if values is not None:
            for i, value in zip(scored, values, strict=True):
                advantages[i] = float(value)
        rollouts = tuple(replace(rollout, advantage=a) for rollout, a in zip(group.rollouts, advantages, strict=True))
        assigned.append(replace(group, rollouts=rollouts))

    flat = np.concatenate(all_rewards) if all_rewards else np.empty(0)
    stats = AdvantageStats(
        num_groups=len(groups),
        num_dead=num_dead,
        num_too_few_scored=num_too_few,
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


def _group_advantages(rewards: np.ndarray, config: AdvantageConfig) -> tuple[float, np.ndarray | None]:
    """(population std, advantages [n]) of scored rewards [n]; advantages are None for a dead group."""
    n = len(rewards)
    if n < 2:
        return 0.0, None
    std = float(rewards.std())
    # Equal rewards such as 0.1, 0.1, 0.1 leave a std of 1e-17 rather than 0; dividing by it would give
    # advantages of +-1.
    if std <= config.std_floor * max(1.0, float(np.abs(rewards).max())):
        return std, None
    advantages = rewards - rewards.mean()
    if config.baseline == "leave_one_out":
        advantages *= n / (n - 1)  # R_i - mean of the others = n / (n - 1) * (R_i - mean of all)
    if config.scale == "std":
        advantages /= std
    return std, advantages
