"""The figures of an evaluation, against values worked out by hand."""

from __future__ import annotations

import pytest
from evaluation_helpers import record, response

from sapo_vl.benchmarks import BENCHMARKS
from sapo_vl.evaluation.rules import rule_scoring
from sapo_vl.evaluation.statistics import (
    half_width,
    mcnemar_exact,
    mean_and_interval,
    pass_at_k,
    sign_flip_p,
    t_975,
)
from sapo_vl.evaluation.summary import blank_control, majority_score, summarise
from sapo_vl.scoring.scorer import ScoringConfig


@pytest.mark.parametrize(
    ("n", "correct", "k", "value"),
    [
        (4, 1, 1, 1 / 4),
        (4, 1, 2, 1 / 2),  # 3 of the 6 pairs hold the right one
        (5, 2, 3, 9 / 10),  # of the 10 triples only the one of the three wrong ones fails
        (4, 3, 2, 1.0),
        (4, 0, 4, 0.0),
        (1, 1, 1, 1.0),
    ],
)
def test_pass_at_k_by_hand(n: int, correct: int, k: int, value: float) -> None:
    assert pass_at_k(n, correct, k) == pytest.approx(value, abs=1e-12)


@pytest.mark.parametrize(("n", "correct", "k"), [(2, 1, 3), (2, 3, 1), (2, 1, 0)])
def test_pass_at_k_refuses(n: int, correct: int, k: int) -> None:
    with pytest.raises(ValueError, match="pass@k needs"):
        pass_at_k(n, correct, k)


def test_students_t() -> None:
    # Printed tables of the 97.5% points.
    table = {1: 12.706, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 9: 2.262, 29: 2.045, 99: 1.984}
    assert {f: t_975(f) for f in table} == pytest.approx(table, abs=2e-3)


def test_interval_of_clustered_items() -> None:
    # Item means 0, 1/2, 1/2, 1: s^2 = (1/4 + 1/4) / 3 = 1/6, standard error sqrt(1/24) = 0.20412, t(3) = 3.1824.
    found = mean_and_interval([0.0, 0.5, 0.5, 1.0])
    assert (found["mean"], found["n"], found["method"]) == (0.5, 4, "t")
    assert half_width([0.0, 0.5, 0.5, 1.0]) == pytest.approx(0.64960, abs=1e-4)
    assert found["ci95"] == [0.0, 1.0], "0.5 +- 0.65 is cut to what a mean can be"
    narrow = mean_and_interval([0.25, 0.5] * 8)  # s^2 = 16 * (1/8)^2 / 15 = 1/60, error sqrt(1/960), t(15) = 2.1314
    assert narrow["ci95"] == pytest.approx([0.375 - 0.06879, 0.375 + 0.06879], abs=1e-4)


def test_intervals_without_spread_are_wilsons() -> None:
    one = mean_and_interval([1.0])
    assert one["method"] == "wilson" and one["ci95"] == pytest.approx([0.2065, 1.0], abs=1e-4)  # 1 / (1 + z^2)
    # Wilson for 0 of 5: the upper end is z^2 / (n + z^2) = 3.8415 / 8.8415.
    assert mean_and_interval([0.0] * 5)["ci95"] == pytest.approx([0.0, 0.43448], abs=1e-4)
    assert mean_and_interval([0.5, 0.5])["method"] == "wilson"
    assert mean_and_interval([])["mean"] is None


@pytest.mark.parametrize(
    ("first", "second", "p"),
    [(0, 0, 1.0), (1, 6, 0.125), (6, 1, 0.125), (0, 5, 0.0625), (3, 3, 1.0)],  # 2 (1 + 7) / 128, 2 / 32
)
def test_mcnemar_by_hand(first: int, second: int, p: float) -> None:
    assert mcnemar_exact(first, second) == pytest.approx(p)


def test_sign_flips_by_hand() -> None:
    assert sign_flip_p([0.5, 0.5, 0.5, 0.0]) == 0.25  # of 8 ways only +++ and --- are as far out; ties say nothing
    assert sign_flip_p([1.0, -1.0]) == 1.0
    assert sign_flip_p([3.0, 1.0, 1.0]) == 0.25  # |sum| = 5: all of one sign
    assert sign_flip_p([]) == 1.0


def test_many_sign_flips_are_drawn() -> None:
    drawn = sign_flip_p([1.0] * 12 + [-1.0] * 5)  # 17 differences: McNemar's case, 2 * P(X <= 5) = 0.14346
    assert drawn == pytest.approx(mcnemar_exact(12, 5), abs=0.01)
    assert drawn == sign_flip_p([1.0] * 12 + [-1.0] * 5), "the seed is fixed"


def test_majority() -> None:
    assert majority_score(record("a", response(0.0, "5"), response(1.0, "7"), response(1.0, " 7 "))) == 1.0
    # 2 against 2: the one that came first.
    tie = [response(0.0, "5"), response(1.0, "7"), response(1.0, "7"), response(0.0, "5")]
    assert majority_score(record("a", *tie)) == 0.0
    assert majority_score(record("a", response(0.0, "Red"), response(1.0, "blue"), response(0.0, "red"))) == 0.0
    # None without a vote, and a response that could not be scored has none either.
    votes = [response(None, "9"), response(None, "9"), response(0.0, None), response(1.0, "7")]
    assert majority_score(record("a", *votes)) == 1.0
    assert majority_score(record("a", response(0.0, None))) == 0.0
    assert majority_score(record("a", response(None, "9"))) is None


def test_a_summary_by_hand() -> None:
    records = [
        record("a", *[response(1.0)] * 3, response(0.0, "y", reason="wrong"), groups={"level": "1"}),
        record("b", *[response(0.0, None, reason="no answer", finish="length")] * 4, groups={"level": "2"}),
        record("c", response(1.0), response(0.5, "z"), response(None, None), response(None, None, status="failed")),
        record("d", *[response(None, None)] * 4, groups={"level": "1"}),
        record("e", skipped="prompt too long"),
    ]
    found = summarise(records, 4, lambda items: {"n": len(items), "best": max(i.mean or 0 for i in items)})
    assert found["pass@1"]["mean"] == pytest.approx((0.75 + 0 + 0.75) / 3) and found["pass@1"]["n"] == 3
    # pass@2: 1 - C(1,2)/C(4,2) = 1 for a, 0 for b, 1 - C(1,2)/C(2,2) = 1 for c, whose 0.5 is not right but not all.
    assert found["pass@k"]["2"] == {"mean": pytest.approx(2 / 3), "n": 3}
    assert found["pass@k"]["4"] == {"mean": 0.5, "n": 2}, "c has only two scored responses"
    assert list(found["pass@k"]) == ["1", "2", "4"]
    assert found["maj@k"] == pytest.approx((1 + 0 + 1) / 3)
    assert found["items"] == {"asked": 4, "without a score": 1, "skipped": {"prompt too long": 1}}
    counted = {key: found["responses"][key] for key in ("n", "truncated", "no answer", "scored", "failed", "timeout")}
    assert counted == {"n": 16, "truncated": 4, "no answer": 4, "scored": 10, "failed": 1, "timeout": 5}
    assert found["responses"]["reasons"] == {"wrong": 1, "no answer": 4}
    assert {level: g["mean"] for level, g in found["groups"]["level"].items()} == {"1": 0.75, "2": 0.0}
    assert found["metrics"] == {"n": 4, "best": 0.75}


def test_nobody_votes_where_there_are_no_answers() -> None:
    assert summarise([record("a", response(1.0, None), response(0.0, None))], 2)["maj@k"] is None


def test_the_control_compares_the_same_items() -> None:
    records = [record("a", response(1.0)), record("b", response(1.0)), record("text only", response(0.0))]
    blank = [record("a#blank", response(0.0)), record("b#blank", response(1.0)), record("z#blank", response(1.0))]
    found = blank_control(records, blank)
    assert found is not None
    assert (found["mean"], found["n"], found["with images"]) == (0.5, 2, 1.0)
    assert found["difference"] == {"mean": 0.5, "n": 2, "ci95": [-1.0, 1.0]}, "t(1) / 2 is 6.35: cut to what can be"
    assert blank_control(records, []) is None


def test_a_benchmark_may_give_its_rule_arguments() -> None:
    """LiveCodeBench's programs need longer than the defaults of `code`; what a config says goes before it."""
    benchmark = BENCHMARKS["livecodebench"]
    plain = rule_scoring(ScoringConfig(params={"code": {"wall_s": 3.0}, "overlong": {"buffer": 9}}), benchmark)
    assert plain.params["code"] == {**benchmark.params["code"], "wall_s": 3.0} and plain.params["code"]["cpu_s"] == 6
    assert plain.params["overlong"] == {"buffer": 9} and plain.timeout_s == benchmark.timeout_s > 100
    assert rule_scoring(ScoringConfig(timeout_s=9000.0), benchmark).timeout_s == 9000
    assert rule_scoring(ScoringConfig(), BENCHMARKS["aime25"]) == rule_scoring(ScoringConfig(), None)
