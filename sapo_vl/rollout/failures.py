"""Failed rollouts are counted, and too many of them stop the run."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Sequence

from sapo_vl.types import Finish, RolloutGroup

WINDOW = 512  # latest responses that the share is taken over
MINIMUM = 32  # fewer say nothing about a share


class RolloutStopped(RuntimeError):
    """Too many responses could not be used; the reasons are named."""


class FailureWatch:
    """Share of failed responses among the latest ones."""

    def __init__(self, max_share: float) -> None:
        self._max_share = max_share
        self._latest: deque[str] = deque(maxlen=WINDOW)  # why each failed, "" if it did not

    def record(self, groups: Sequence[RolloutGroup]) -> None:
        """Raises RolloutStopped past the allowed share."""
        self._latest.extend(r.score_detail if r.finish is Finish.FAILED else "" for g in groups for r in g.rollouts)
        reasons = [reason for reason in self._latest if reason]
        if len(self._latest) < MINIMUM or len(reasons) <= self._max_share * len(self._latest):
            return
        common = "; ".join(f"{count} x {reason}" for reason, count in Counter(reasons).most_common(3))
        raise RolloutStopped(
            f"{len(reasons)} of the latest {len(self._latest)} responses could not be used, more than "
            f"rollout.max_failed_share={self._max_share}: {common}"
        )
