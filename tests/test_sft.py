"""The cold start's own words; its trainings are in tests/test_pipeline.py, test_life.py and learning/."""

from collections import Counter

import pytest

from sapo_vl.config import ColdStartConfig, ConfigError, load_config
from sapo_vl.data.sampler import QuotaError
from sapo_vl.sft import cold_start_sampler, missed_target, pass_rate_of


@pytest.mark.parametrize(("target", "reached"), [(0.0, None), (0.0, 0.1), (0.4, 0.4), (0.4, 0.7)])
def test_a_cold_start_that_reached_its_target_or_has_none_says_nothing(target: float, reached: float | None) -> None:
    assert missed_target(ColdStartConfig(target_pass_rate=target), reached) == ""


def test_a_cold_start_that_ended_below_its_target_says_so_with_the_numbers() -> None:
    told = missed_target(ColdStartConfig(steps=60, target_pass_rate=0.4), 0.399)
    assert "after cold_start.steps=60 with a pass rate of 0.399, not at cold_start.target_pass_rate=0.4" in told


def test_a_cold_start_too_short_to_be_measured_says_so() -> None:
    told = missed_target(ColdStartConfig(steps=10, measure_every=25, target_pass_rate=0.4), None)
    assert "before its pass rate was measured (cold_start.measure_every=25)" in told


@pytest.mark.parametrize(
    ("settings", "counts"),
    [
        (["data.quotas={geo: 1, text: 3, math: 4}"], {"geo": 1, "text": 3}),  # math has no solutions
        (["data.quotas={geo: 0, text: 1, math: 1}"], {"geo": 0, "text": 4}),
        (["data.quotas={geo: 1, math: 1}", "cold_start.quotas={geo: 3, text: 1}"], {"geo": 3, "text": 1}),
        ([], {"geo": 2, "text": 2}),
    ],
)
def test_quotas_of_the_training_hold_for_the_tasks_that_have_solutions(
    settings: list[str], counts: dict[str, int]
) -> None:
    config = load_config(None, ["cold_start.batch_size=4", *settings])
    assert config.cold_start is not None
    tasks = ["geo", "text"] * 10
    batch = next(cold_start_sampler(config, config.cold_start, tasks))
    assert Counter(tasks[row] for row in batch) == Counter(counts)


def test_a_task_with_solutions_alone_needs_a_quota_of_its_own() -> None:
    config = load_config(None, ["data.quotas={geo: 1}", "cold_start.batch_size=4"])
    assert config.cold_start is not None
    with pytest.raises(QuotaError, match=r"the data has the tasks \['warm'\] without a quota"):
        cold_start_sampler(config, config.cold_start, ["geo", "warm"] * 10)


def test_quotas_that_name_no_task_of_the_split_are_refused() -> None:
    config = load_config(None, ["data.quotas={math: 1, code: 2}", "cold_start.batch_size=4"])
    assert config.cold_start is not None
    with pytest.raises(QuotaError, match=r"name \['code', 'math'\].*only the tasks \['geo'\]; give cold_start.quotas"):
        cold_start_sampler(config, config.cold_start, ["geo"] * 10)


def test_the_pass_rate_is_that_of_a_batch_of_the_training() -> None:
    by_task = {"easy": {"mean": 0.9}, "hard": {"mean": 0.1}, "unscored": {"mean": None}}
    measured = {"mean": 0.8, "by_task": by_task}  # over rows, of which "easy" has more
    assert pass_rate_of(measured, {}) == pytest.approx(0.5)
    assert pass_rate_of(measured, {"easy": 1, "hard": 0}) == pytest.approx(0.9)
    assert pass_rate_of(measured, {"easy": 3, "hard": 1, "unscored": 9}) == pytest.approx((3 * 0.9 + 0.1) / 4)
    assert pass_rate_of(measured, {"unscored": 1}) is None


def test_a_sum_of_tokens_has_nothing_to_divide_by() -> None:
    with pytest.raises(ConfigError, match=r"cold_start.reduction.*token_sum"):
        load_config(None, ["cold_start.reduction=token_sum"])
