"""Dynamic sampling: what takes the place of a dead group, in how many rounds, the same on any number of ranks."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sapo_vl.distributed import World
from sapo_vl.learning.advantage import AdvantageConfig
from sapo_vl.rollout.resample import Resampled, resample
from sapo_vl.scoring.scorer import metrics_of_step
from sapo_vl.types import Finish, Problem, Prompt, Rollout, RolloutGroup


def prompt(name: str) -> Prompt:
    """Its task is its first letter."""
    ids = np.arange(3)
    return Prompt(
        problem=Problem(id=name, task=name[0], messages=()),
        ids=ids,
        compact_ids=ids,
        positions=np.zeros((3, 3), int),
        pixel_values=None,
        image_grid_thw=None,
    )


def group(p: Prompt, rewards: Sequence[float | None]) -> RolloutGroup:
    r = Rollout(response_ids=np.array([1]), logprobs=np.zeros(1), finish=Finish.STOP, weight_version=0)
    return RolloutGroup(prompt=p, rollouts=tuple(replace(r, reward=reward) for reward in rewards))


def names(groups: Sequence[RolloutGroup]) -> list[str]:
    return [g.prompt.problem.id for g in groups]


LIVE, DEAD = (0.0, 1.0), (1.0, 1.0)


@dataclass
class Bench:
    """One rank's problems a0, a1, ..., b0, b1, ..., drawn in order from `at`; every group is live or not by name."""

    live: set[str]
    at: dict[str, int]
    rewards: dict[str, Sequence[float | None]] = field(default_factory=dict)
    log: list[Any] = field(default_factory=list)

    def draw(self, tasks: Sequence[str]) -> list[Prompt]:
        drawn = []
        for task in tasks:
            drawn.append(prompt(f"{task}{self.at[task]}"))
            self.at[task] += 1
        return drawn

    def sample(self, prompts: Sequence[Prompt], turn: int) -> list[RolloutGroup]:
        self.log.append((turn, [p.problem.id for p in prompts]))
        return [group(p, (None, None)) for p in prompts]

    def score(self, groups: Sequence[RolloutGroup]) -> list[RolloutGroup]:
        self.log.append(names(groups))
        return [self.scored(g.prompt.problem.id) for g in groups]

    def scored(self, name: str) -> RolloutGroup:
        return group(prompt(name), self.rewards.get(name, LIVE if name in self.live else DEAD))

    def run(self, batch: Sequence[str], rounds: int, world: World | None = None) -> Resampled:
        return resample(
            [self.scored(name) for name in batch],
            rounds,
            AdvantageConfig(),
            world or World.alone(),
            draw=self.draw,
            sample=self.sample,
            score=self.score,
        )


def values(rounds: int, prompts: int, before: float, after: float) -> dict[str, float]:
    return {
        "resample/rounds": rounds,
        "resample/prompts": prompts,
        "resample/dead_share/before": before,
        "resample/dead_share/after": after,
        # Each further group is thrown away, or throws one of the four away; all have two responses of one token.
        "resample/thrown_away_share": 1 - 4 / (4 + prompts),
    }


@pytest.mark.parametrize(
    ("rounds", "batch", "expected"),
    [
        (1, ["a0", "b0", "a3", "b1"], values(1, 2, 0.5, 0.25)),  # a2 for a0 is dead as well, and a0 stays
        (2, ["a0", "b0", "a3", "b1"], values(2, 3, 0.5, 0.25)),  # a4 neither
        (3, ["a5", "b0", "a3", "b1"], values(3, 4, 0.5, 0.0)),
        (9, ["a5", "b0", "a3", "b1"], values(3, 4, 0.5, 0.0)),  # nothing is left to do
    ],
)
def test_dead_groups_are_replaced_by_the_next_of_their_task(
    rounds: int, batch: list[str], expected: dict[str, float]
) -> None:
    bench = Bench(live={"b0", "b1", "a3", "a5", "a6"}, at={"a": 2, "b": 2})
    found = bench.run(["a0", "b0", "a1", "b1"], rounds)
    assert names(found.groups) == batch and found.values == expected
    asked = [["a2", "a3"], ["a4"], ["a5"]][:rounds]
    assert bench.log == [entry for turn, ids in enumerate(asked, start=1) for entry in ((turn, ids), ids)]
    assert names(found.further) == [name for ids in asked for name in ids]


def test_without_rounds_nothing_is_asked() -> None:
    bench = Bench(live=set(), at={})
    batch = ["a0", "b0"]
    found = bench.run(batch, 0)
    assert names(found.groups) == batch and found.values == {} and found.further == [] and bench.log == []


def test_a_live_batch_asks_for_nothing() -> None:
    bench = Bench(live={"a0", "b0"}, at={})
    assert bench.run(["a0", "b0"], 3).values == values(0, 0, 0.0, 0.0) and bench.log == []


def test_dead_is_what_gives_no_gradient() -> None:
    """One score, none, and equal scores up to rounding are dead; an unscored response beside two others is not."""
    rewards = {"a0": (0.1 + 0.2, 0.3), "a1": (None, 1.0), "a2": (None, None), "a3": (None, 0.0, 1.0), "a4": (0.5, 0.4)}
    bench = Bench(live={"a5", "a6", "a7"}, at={"a": 5}, rewards=rewards)
    assert names(bench.run(["a0", "a1", "a2", "a3", "a4"], 1).groups) == ["a5", "a6", "a7", "a3", "a4"]


class Together:
    """What the ranks of a world of threads share."""

    def __init__(self, size: int) -> None:
        self.slots: list[Any] = [None] * size
        self.meet = threading.Barrier(size, timeout=60)


class ThreadRank(World):
    """A rank that is a thread, for the collectives that are built on gather."""

    @classmethod
    def of(cls, together: Together, rank: int) -> ThreadRank:
        return cls(rank=rank, size=len(together.slots), device=torch.device("cpu"), group=together)

    def gather(self, item: Any) -> list[Any]:
        self.group.slots[self.rank] = item
        self.group.meet.wait()
        everyone = list(self.group.slots)
        self.group.meet.wait()
        return everyone

    def sum(self, values: Any) -> np.ndarray:
        return np.sum(self.gather(np.asarray(values, np.float64)), axis=0)

    def maxima(self, values: Any) -> np.ndarray:
        return np.max(self.gather(np.asarray(values, np.float64)), axis=0)


class Shared(Bench):
    """Draws for all ranks in their order, as the feed does, and scores together."""

    world: World

    def draw(self, tasks: Sequence[str]) -> list[Prompt]:
        shares = self.world.gather(list(tasks))
        drawn = super().draw([task for share in shares for task in share])
        start = sum(map(len, shares[: self.world.rank]))
        return drawn[start : start + len(tasks)]

    def score(self, groups: Sequence[RolloutGroup]) -> list[RolloutGroup]:
        self.world.gather(None)  # a rank that did not come would be waited for
        return super().score(groups)


def on_ranks(size: int, batch: list[str], live: set[str], rounds: int) -> list[tuple[Resampled, list[Any]]]:
    """(result, log) of each rank."""
    together = Together(size)
    out: list[Any] = [None] * size

    def rank(i: int) -> None:
        bench = Shared(live=live, at=Counter(name[0] for name in batch))
        bench.world = ThreadRank.of(together, i)
        share = len(batch) // size
        out[i] = bench.run(batch[i * share : (i + 1) * share], rounds, bench.world), bench.log

    threads = [threading.Thread(target=rank, args=(i,)) for i in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return out


@settings(max_examples=60)
@given(
    st.lists(st.sampled_from("ab"), min_size=12, max_size=12),
    st.sets(st.builds("{}{}".format, st.sampled_from("ab"), st.integers(0, 30))),
    st.integers(0, 5),
)
def test_two_ranks_do_what_one_does(tasks: list[str], live: set[str], rounds: int) -> None:
    count = Counter[str]()
    batch = []
    for task in tasks:
        batch.append(f"{task}{count[task]}")
        count[task] += 1
    ((alone, log),) = on_ranks(1, batch, live, rounds)
    assert Counter(name[0] for name in names(alone.groups)) == count, "quotas"
    for size in (2, 3):
        ranks = on_ranks(size, batch, live, rounds)
        assert [name for found, _ in ranks for name in names(found.groups)] == names(alone.groups)
        assert all(found.values == alone.values for found, _ in ranks)
        assert sorted(n for found, _ in ranks for n in names(found.further)) == sorted(names(alone.further))
        # Equally many prompts on each rank in every round, as rollout engines want, and what was missing is not scored.
        calls = [[(turn, len(ids)) for turn, ids in log_of[::2]] for _, log_of in ranks]
        assert all(call == calls[0] for call in calls)
        assert len(calls[0]) == len(log[::2])
        for turn in range(len(calls[0])):
            scored = [name for _, log_of in ranks for name in log_of[2 * turn + 1]]
            assert scored == log[2 * turn + 1]


def test_what_scoring_says_of_a_step_is_of_all_its_batches() -> None:
    first = {"failed/math/n": 4, "failed/math/error": 0.25, "judge/asked": 3, "judge/canary_false_positive_rate": 0.5}
    second = {"failed/math/n": 2, "failed/math/error": 1.0, "failed/box/n": 2, "failed/box/error": 0.5}
    second |= {"judge/asked": 1, "judge/canary_false_positive_rate": 0.25}
    assert metrics_of_step([first]) == first
    assert metrics_of_step([first, second]) == {
        "failed/math/n": 6,
        "failed/math/error": 0.5,  # 1 of 4 and 2 of 2
        "failed/box/n": 2,
        "failed/box/error": 0.5,
        "judge/asked": 4,
        "judge/canary_false_positive_rate": 0.25,
    }
