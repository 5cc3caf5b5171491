"""The cold start's own words; its trainings are in tests/test_pipeline.py, test_life.py and learning/."""

import pytest

from sapo_vl.config import ColdStartConfig
from sapo_vl.sft import missed_target


@pytest.mark.parametrize(("target", "reached"), [(0.0, None), (0.0, 0.1), (0.4, 0.4), (0.4, 0.7)])
def test_a_cold_start_that_reached_its_target_or_has_none_says_nothing(target: float, reached: float | None) -> None:
    assert missed_target(ColdStartConfig(target_pass_rate=target), reached) == ""


def test_a_cold_start_that_ended_below_its_target_says_so_with_the_numbers() -> None:
    told = missed_target(ColdStartConfig(steps=60, target_pass_rate=0.4), 0.399)
    assert "after cold_start.steps=60 with a pass rate of 0.399, not at cold_start.target_pass_rate=0.4" in told


def test_a_cold_start_too_short_to_be_measured_says_so() -> None:
    told = missed_target(ColdStartConfig(steps=10, measure_every=25, target_pass_rate=0.4), None)
    assert "before its pass rate was measured (cold_start.measure_every=25)" in told
