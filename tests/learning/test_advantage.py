"""Advantages against hand-worked groups, Python's own statistics module, and what must not change them."""

import json
import math
import statistics
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from sapo_vl.distributed import World
from sapo_vl.learning.advantage import AdvantageConfig, assign_advantages
from sapo_vl.learning.diagnostics import rollout_stats
from sapo_vl.types import Finish, Problem, Prompt, Rollout, RolloutGroup


def group(rewards: list[float | None], problem_id: str = "p", task: str = "t") -> RolloutGroup:
    problem = Problem(id=problem_id, task=task, messages=())
    ids = np.arange(3)
    prompt = Prompt(
        problem=problem,
        ids=ids,
        compact_ids=ids,
        positions=np.tile(ids, (3, 1)),
        pixel_values=None,
        image_grid_thw=None,
    )
    rollouts = tuple(
        Rollout(
            response_ids=np.array([k]),
            logprobs=np.zeros(1, dtype=np.float32),
            finish=Finish.STOP,
            weight_version=0,
            reward=reward,
            advantage=123.0,  # left over from elsewhere; must never survive
        )
        for k, reward in enumerate(rewards)
    )
    return RolloutGroup(prompt=prompt, rollouts=rollouts)


def advantages(rewards: list[float | None], **settings) -> list[float | None]:
    (result,), _ = assign_advantages([group(rewards)], AdvantageConfig(**settings))
    assert [int(r.response_ids[0]) for r in result.rollouts] == list(range(len(rewards)))
    assert [r.reward for r in result.rollouts] == rewards
    return [r.advantage for r in result.rollouts]


def test_by_hand():
    # One of four right: mean 1/4, population std sqrt(3)/4, so (3/4) / (sqrt(3)/4) = sqrt(3) and -1/sqrt(3).
    root3 = math.sqrt(3)
    assert advantages([1, 0, 0, 0]) == pytest.approx([root3, -1 / root3, -1 / root3, -1 / root3])
    assert advantages([1, 0, 0, 0], scale="none") == pytest.approx([0.75, -0.25, -0.25, -0.25])
    # Leave one out: 1 - 0 for the first, 0 - 1/3 for the others.
    loo = [1.0, -1 / 3, -1 / 3, -1 / 3]
    assert advantages([1, 0, 0, 0], scale="none", baseline="leave_one_out") == pytest.approx(loo)
    scaled = [value * 4 / root3 for value in loo]
    assert advantages([1, 0, 0, 0], baseline="leave_one_out") == pytest.approx(scaled)
    assert advantages([0.2, 0.8]) == pytest.approx([-1, 1])


def test_unscored_responses_neither_get_nor_shift_an_advantage():
    assert advantages([1, None, 0, None, 0, 0]) == pytest.approx(
        [math.sqrt(3), None, -1 / math.sqrt(3), None, -1 / math.sqrt(3), -1 / math.sqrt(3)]
    )
    assert advantages([None, 1.0, 0.0], baseline="leave_one_out", scale="none") == [None, 1.0, -1.0]


def test_maxrl_divides_by_the_mean():
    assert advantages([1, 0, 0, 0], scale="mean") == pytest.approx([3, -1, -1, -1])
    assert advantages([1, 1, 0, 0], scale="mean") == pytest.approx([1, 1, -1, -1])
    assert advantages([0.5, None, 1.5], scale="mean") == pytest.approx([-0.5, None, 0.5])
    # (1 - 0) / (1/4) and (0 - 1/3) / (1/4)
    loo = advantages([1, 0, 0, 0], scale="mean", baseline="leave_one_out")
    assert loo == pytest.approx([4, -4 / 3, -4 / 3, -4 / 3])
    assert advantages([-1, 3], scale="mean") == pytest.approx([-2, 2])


@pytest.mark.parametrize("rewards", [[-1.0, 1.0], [-2.0, 1.0], [-0.5, -1.0], [-0.3, 0.1, 0.2], [0.0, -1.0]])
def test_a_mean_that_cannot_be_divided_by_is_counted(rewards):
    assert advantages(rewards, scale="mean") == [0.0] * len(rewards)
    assert advantages(rewards, scale="mean", keep_dead_groups=False) == [None] * len(rewards)
    groups = [group(rewards), group([1, 0]), group([0, 0]), group([None, 1])]
    assigned, stats = assign_advantages(groups, AdvantageConfig(scale="mean"))
    assert (stats.num_dead, stats.num_too_few_scored, stats.num_mean_not_positive) == (3, 1, 1)
    values = rollout_stats(assigned, stats, World.alone())
    assert (values["groups/dead_share"], values["groups/mean_not_positive_share"]) == (3 / 4, 1 / 4)
    assigned, stats = assign_advantages(groups, AdvantageConfig())
    assert (stats.num_dead, stats.num_mean_not_positive) == (2, None)
    assert "groups/mean_not_positive_share" not in rollout_stats(assigned, stats, World.alone())


def test_the_std_of_a_task_is_of_its_responses_in_the_whole_batch():
    groups = [
        group([1, 0, 0, 0], task="a"),
        group([0, 2], task="b"),
        group([1, 1, None, 0, 0], task="a"),
        group([1, 1], task="a"),  # dead, but among the responses of its task
    ]
    (first, other, second, dead), stats = assign_advantages(groups, AdvantageConfig(scale="task_std"))
    # a: 5 of 10 are 1, so the std is 1/2; b: 0 and 2, std 1.
    assert [r.advantage for r in first.rollouts] == pytest.approx([1.5, -0.5, -0.5, -0.5])
    assert [r.advantage for r in second.rollouts] == pytest.approx([1, 1, None, -1, -1])
    assert [r.advantage for r in other.rollouts] == pytest.approx([-1, 1])
    assert [r.advantage for r in dead.rollouts] == [0.0, 0.0] and stats.num_dead == 1
    (loo, *_), _ = assign_advantages(groups, AdvantageConfig(scale="task_std", baseline="leave_one_out"))
    assert [r.advantage for r in loo.rollouts] == pytest.approx([2, -2 / 3, -2 / 3, -2 / 3])


def random_groups(seed: int) -> list[RolloutGroup]:
    """Groups of three tasks, whose sums depend on the order they are added in."""
    rng = np.random.default_rng(seed)
    rows = rng.normal(size=(24, 5)) * 10.0 ** rng.integers(-3, 4, size=(24, 1))
    return [group([float(r) for r in row], str(i), "abc"[i % 3]) for i, row in enumerate(rows)]


def by_problem(groups: list[RolloutGroup]) -> dict[str, list[float | None]]:
    return {g.prompt.problem.id: [r.advantage for r in g.rollouts] for g in groups}


def run_rank(rank: int, folder: str, seed: int) -> None:
    """One of two gloo ranks: dealt in turn; all on rank 0; half and half, last ones first."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    world = World(rank=rank, size=2, device=torch.device("cpu"))
    groups = random_groups(seed)
    parts = [groups[rank::2], groups if rank == 0 else [], groups[12 * rank : 12 * rank + 12][::-1]]
    config = AdvantageConfig(scale="task_std")
    found = [by_problem(assign_advantages(part, config, world)[0]) for part in parts]
    Path(folder, f"{rank}.json").write_text(json.dumps(found))
    dist.destroy_process_group()


@pytest.mark.slow
def test_the_std_of_a_task_is_the_same_to_the_bit_on_any_ranks(tmp_path: Path, seed: int):
    torch.multiprocessing.spawn(run_rank, args=(str(tmp_path), seed), nprocs=2)
    alone = by_problem(assign_advantages(random_groups(seed), AdvantageConfig(scale="task_std"))[0])
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(2))
    for mine, others in zip(first, second, strict=True):
        assert mine | others == alone and not mine.keys() & others.keys()


REWARDS = st.lists(st.one_of(st.none(), st.floats(-10, 10).map(lambda x: round(x, 3))), min_size=2, max_size=12)


@given(rewards=REWARDS, loo=st.booleans(), scaled=st.booleans())
def test_matches_the_statistics_module(rewards, loo, scaled):
    result = advantages(rewards, baseline="leave_one_out" if loo else "mean", scale="std" if scaled else "none")
    scored = [r for r in rewards if r is not None]
    if len(set(scored)) < 2:
        assert result == [0.0 if r is not None and len(scored) > 1 else None for r in rewards]
        return
    for k, (reward, value) in enumerate(zip(rewards, result, strict=True)):
        if reward is None:
            assert value is None
            continue
        others = [r for j, r in enumerate(rewards) if r is not None and j != k]
        expected = reward - statistics.fmean(others if loo else scored)
        if scaled:
            expected /= statistics.pstdev(scored)
        assert value == pytest.approx(expected, rel=1e-9, abs=1e-9)


@given(
    rewards=st.lists(st.integers(-5, 5), min_size=2, max_size=8),
    shift=st.floats(-3, 3),
    scale=st.floats(0.1, 9),
)
def test_standardised_advantages_ignore_the_units_of_the_reward(rewards, shift, scale):
    moved = advantages([scale * r + shift for r in rewards])
    plain = advantages([float(r) for r in rewards])
    if len(set(rewards)) == 1:
        assert moved == plain == [0.0] * len(rewards)
        return
    assert moved == pytest.approx(plain, rel=1e-6, abs=1e-9)
    assert sum(plain) == pytest.approx(0, abs=1e-9)
    assert sum(v * v for v in plain) / len(plain) == pytest.approx(1)


@pytest.mark.parametrize("value", [0.0, 0.1, 1 / 3, -0.7, 1e6 / 3, 1e-3])
@pytest.mark.parametrize("size", [2, 3, 7, 16])
def test_equal_rewards_are_dead_in_spite_of_rounding(value, size):
    noisy = [math.nextafter(value, math.inf) if k % 2 else value for k in range(size)]
    for rewards in ([value] * size, noisy):
        assert advantages(rewards) == [0.0] * size
        assert advantages(rewards, keep_dead_groups=False) == [None] * size


def test_a_small_real_difference_is_not_dead():
    assert advantages([0.5, 0.501]) == pytest.approx([-1, 1])


def test_groups_with_fewer_than_two_scores_are_dead():
    assert advantages([1.0]) == [None]
    assert advantages([None, None]) == [None, None]
    assert advantages([None, 1.0, None]) == [None, None, None]


def test_stats_count_every_group_and_response():
    groups = [group([1, 0, 0, 0]), group([1, 1]), group([None, 1]), group([None, None, 0, 2])]
    result, stats = assign_advantages(groups, AdvantageConfig())
    assert len(result) == 4
    assert (stats.num_groups, stats.num_dead, stats.num_too_few_scored) == (4, 2, 1)
    assert (stats.num_rollouts, stats.num_scored, stats.num_unscored) == (12, 9, 3)
    assert stats.reward_mean == pytest.approx(6 / 9)
    assert stats.reward_std == pytest.approx(math.sqrt(8 / 9 - (6 / 9) ** 2))
    assert stats.group_std_mean == pytest.approx((math.sqrt(3) / 4 + 0 + 1) / 3)
    _, empty = assign_advantages([group([None])], AdvantageConfig())
    assert (empty.reward_mean, empty.reward_std, empty.group_std_mean) == (None, None, None)
    assert assign_advantages([], AdvantageConfig())[0] == []


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e300])
def test_a_reward_that_is_no_number_names_its_problem(bad):
    with pytest.raises(ValueError, match=r"response 1 to problem 'geo-17'"):
        assign_advantages([group([0, 1]), group([0, bad], "geo-17")], AdvantageConfig())


def test_settings_are_checked():
    for bad in (
        {"baseline": "median"},
        {"scale": "mad"},
        {"scale": "task_mean"},
        {"std_floor": 0},
        {"sdt_floor": 1e-6},
    ):
        with pytest.raises(ValidationError):
            AdvantageConfig(**bad)
