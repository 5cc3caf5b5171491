"""Advantages against hand-worked groups, Python's own statistics module, and what must not change them."""

import math
import statistics

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from sapo_vl.learning.advantage import AdvantageConfig, assign_advantages
from sapo_vl.types import Finish, Problem, Prompt, Rollout, RolloutGroup


def group(rewards: list[float | None], problem_id: str = "p") -> RolloutGroup:
    problem = Problem(id=problem_id, task="t", messages=())
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


REWARDS = st.lists(st.one_of(st.none(), st.floats(-10, 10).map(lambda x: round(x, 3))), min_size=2, max_size=12)


@given(rewards=REWARDS, loo=st.booleans(), scaled=st.booleans())
def test_matches_the_statistics_module(rewards, loo, scaled):
    result = advantages(rewards, baseline="leave_one_out" if loo else "mean", scale="std" if scaled else "none")
    scored = [r for r in rewards if r is not None]
    if len(set(scored)) < 2:
        assert result == [None] * len(rewards)
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
    plain = [v for v in advantages([float(r) for r in rewards]) if v is not None]
    if not plain:
        assert moved == [None] * len(rewards)
        return
    assert moved == pytest.approx(plain, rel=1e-6, abs=1e-9)
    assert sum(plain) == pytest.approx(0, abs=1e-9)
    assert sum(v * v for v in plain) / len(plain) == pytest.approx(1)


@pytest.mark.parametrize("value", [0.0, 0.1, 1 / 3, -0.7, 1e6 / 3, 1e-3])
@pytest.mark.parametrize("size", [2, 3, 7, 16])
def test_equal_rewards_are_dead_in_spite_of_rounding(value, size):
    noisy = [math.nextafter(value, math.inf) if k % 2 else value for k in range(size)]
    for rewards in ([value] * size, noisy):
        assert advantages(rewards) == [None] * size
        assert advantages(rewards, keep_dead_groups=True) == [0.0] * size


def test_a_small_real_difference_is_not_dead():
    assert advantages([0.5, 0.501]) == pytest.approx([-1, 1])


def test_groups_with_fewer_than_two_scores_are_dead():
    assert advantages([1.0]) == [None]
    assert advantages([None, None]) == [None, None]
    assert advantages([None, 1.0, None]) == [None, None, None]
    assert advantages([None, 1.0, None], keep_dead_groups=True) == [None, 0.0, None]


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
    for bad in ({"baseline": "median"}, {"scale": "mad"}, {"std_floor": 0}, {"sdt_floor": 1e-6}):
        with pytest.raises(ValidationError):
            AdvantageConfig(**bad)
