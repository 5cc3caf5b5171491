"""How often each reward fails, and the stop."""

import pytest
import torch

from sapo_vl.distributed import World
from sapo_vl.scoring.failure_watch import Attempt, FailureWatch, ScoringStopped
from sapo_vl.types import ScoreStatus

FINE, HUNG, DIED = ScoreStatus.SCORED, ScoreStatus.TIMEOUT, ScoreStatus.CRASH


def attempts(reward: str, *statuses: ScoreStatus) -> list[Attempt]:
    return [Attempt(reward, status, f"{reward} {status}") for status in statuses]


def test_shares_of_a_batch() -> None:
    watch = FailureWatch(World.alone(), max_share=1.0)
    watch.add(attempts("math", FINE, HUNG, HUNG, DIED) + attempts("count", FINE, FINE))
    none = {"unscorable": 0, "error": 0, "timeout": 0, "crash": 0}
    math = none | {"n": 4, "timeout": 0.5, "crash": 0.25}
    expected = {f"failed/math/{k}": v for k, v in math.items()} | {f"failed/count/{k}": v for k, v in none.items()}
    assert watch.shares == expected | {"failed/count/n": 2}
    watch.add(attempts("count", FINE))
    assert watch.shares == {f"failed/count/{k}": v for k, v in none.items()} | {"failed/count/n": 1}


def test_a_broken_reward_does_not_hide_behind_the_others() -> None:
    """4 of 20 responses of every batch are for a reward that always fails: a fifth of all, but all of its own."""
    watch = FailureWatch(World.alone(), max_share=0.5)
    batch = attempts("count", *[FINE] * 16) + attempts("code", *[HUNG] * 4)
    for _ in range(7):
        watch.add(batch)  # 28 responses of it are too few to judge by
    with pytest.raises(ScoringStopped, match=r"32 of the latest 32 responses .* by the reward 'code'") as error:
        watch.add(batch)
    assert "32 x code timeout" in str(error.value)


def test_only_the_latest_count() -> None:
    """256 of each reward: 150 failures are forgotten as 256 good ones push them out, and 129 then are too many."""
    watch = FailureWatch(World.alone(), max_share=0.5)
    watch.add(attempts("math", *[HUNG] * 150, *[FINE] * 150))  # of 300: half, which is not more than half
    watch.add(attempts("math", *[FINE] * 256))
    watch.add(attempts("math", *[HUNG] * 128))
    with pytest.raises(ScoringStopped, match="129 of the latest 256"):
        watch.add(attempts("math", HUNG))


class TwoRanks(World):
    """Rank 0 of two, where the other one has the same attempts."""

    def gather(self, item):  # type: ignore[no-untyped-def]
        return [item, item]


def test_ranks_are_counted_together() -> None:
    world = TwoRanks(rank=0, size=2, device=torch.device("cpu"))
    watch = FailureWatch(world, max_share=0.5)
    with pytest.raises(ScoringStopped, match="22 of the latest 40"):
        watch.add(attempts("math", *[DIED] * 11, *[FINE] * 9))
