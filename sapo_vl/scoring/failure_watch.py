"""Which rewards fail how often, over all ranks; stops a run that would go on training on the rest."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

from sapo_vl.distributed import World
from sapo_vl.types import ScoreStatus

# The share of failures is taken over this many scorings of all ranks, the latest ones, or over the latest batch if it
# is larger: the last rank must not speak for all.
FAILURE_WINDOW = 256
FAILURE_MINIMUM = 32  # and not before there are this many
FAILURES = tuple(status for status in ScoreStatus if status is not ScoreStatus.SCORED)


class ScoringStopped(RuntimeError):
    """Too many responses could not be scored; training on the rest would be training on a broken grader."""


@dataclass(frozen=True, slots=True)
class Attempt:
    """What came of scoring one response."""

    reward: str  # name of the problem's own reward
    status: ScoreStatus
    why: str = ""  # unless scored: the reward's or the worker's words


class FailureWatch:
    """Counts attempts of all ranks, for all rewards together and for each one.

    `max_share` bounds both: one broken reward among several must not hide behind those that work.
    """

    def __init__(self, world: World, max_share: float) -> None:
        self._world, self._max_share = world, max_share
        self._windows: dict[str, list[str]] = {}  # reward, "" for all -> of each of the latest: why it failed, or ""
        self.shares: dict[str, float] = {}
        """Of the latest batch: failed/{reward}/{status} is the share of the reward's attempts that ended so,
        failed/{reward}/n the number of its attempts. Equal on all ranks."""

    def add(self, attempts: Sequence[Attempt]) -> None:
        """Takes a batch in. All ranks call it together.

        Raises:
            ScoringStopped: on all ranks, if of the latest attempts, or of those of one reward, more than max_share
                failed.
        """
        everywhere = [attempt for part in self._world.gather(list(attempts)) for attempt in part]
        by_reward: dict[str, list[Attempt]] = defaultdict(list)
        for attempt in everywhere:
            by_reward[attempt.reward].append(attempt)
        self.shares = {}
        for reward, own in sorted(by_reward.items()):
            self.shares[f"failed/{reward}/n"] = len(own)
            for status in FAILURES:
                self.shares[f"failed/{reward}/{status}"] = sum(a.status is status for a in own) / len(own)
        for reward, own in [("", everywhere), *sorted(by_reward.items())]:
            self._extend(reward, own)
            self._check(reward)

    def _extend(self, reward: str, attempts: Sequence[Attempt]) -> None:
        latest = ["" if a.status is ScoreStatus.SCORED else a.why or str(a.status) for a in attempts]
        self._windows[reward] = [*self._windows.get(reward, []), *latest][-max(FAILURE_WINDOW, len(latest)) :]

    def _check(self, reward: str) -> None:
        window = self._windows[reward]
        reasons = [reason for reason in window if reason]
        if len(window) < FAILURE_MINIMUM or len(reasons) / len(window) <= self._max_share:
            return
        common = "\n".join(f"  {count} x {reason}" for reason, count in Counter(reasons).most_common(5))
        by = f" by the reward {reward!r}" if reward else ""
        raise ScoringStopped(
            f"{len(reasons)} of the latest {len(window)} responses could not be scored{by}, more than "
            f"rewards.max_failure_share={self._max_share}. The commonest reasons:\n{common}\n"
            "Correct the reward or the data set; raise rewards.max_failure_share only if this is expected."
        )
