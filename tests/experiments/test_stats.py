"""Statistics of a few seeds, against values from tables and worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from sapo_vl.experiments.stats import (
    Difference,
    Verdict,
    best_window,
    by_items,
    collapsed,
    estimate,
    holm,
    paired,
    paired_t_p,
    t_two_sided,
    verdict,
)


@pytest.mark.parametrize(
    ("t", "freedom", "p"),
    # 97.5% and 99.5% points of the usual table; t = 1 with one degree of freedom is the quartile of Cauchy's law.
    [
        (12.7062, 1, 0.05),
        (1.0, 1, 0.5),
        (4.3027, 2, 0.05),
        (9.9248, 2, 0.01),
        (3.1824, 3, 0.05),
        (2.7764, 4, 0.05),
        (2.2622, 9, 0.05),
        (3.2498, 9, 0.01),
        (2.0423, 30, 0.05),
        (0.0, 5, 1.0),
    ],
)
def test_students_t_as_in_the_table(t, freedom, p):
    assert t_two_sided(t, freedom) == pytest.approx(p, abs=2e-5)
    assert t_two_sided(-t, freedom) == t_two_sided(t, freedom)


def test_students_t_is_the_integral_of_its_density(seed):
    """By the midpoint rule, for random t and degrees of freedom."""
    rng = np.random.default_rng(seed)
    for freedom in rng.integers(1, 40, 5):
        t = float(rng.uniform(0.1, 4))
        x = (np.arange(200_000) + 0.5) / 200_000 * t
        scale = math.exp(math.lgamma((freedom + 1) / 2) - math.lgamma(freedom / 2)) / math.sqrt(freedom * math.pi)
        inside = 2 * float(np.mean(scale * (1 + x**2 / freedom) ** (-(freedom + 1) / 2))) * t
        assert t_two_sided(t, int(freedom)) == pytest.approx(1 - inside, abs=1e-8)


def test_a_mean_of_three_seeds():
    """0.5, 0.6, 0.7: s = 0.1, t(2) = 4.3027, half width 4.3027 * 0.1 / sqrt 3 = 0.24842."""
    e = estimate([0.5, 0.6, 0.7])
    assert (e.mean, e.n) == (pytest.approx(0.6), 3)
    assert e.ci95 == pytest.approx((0.6 - 0.24842, 0.6 + 0.24842), abs=1e-5)
    assert estimate([0.5]).ci95 is None
    with pytest.raises(ValueError, match="no values"):
        estimate([])


def test_pairs_are_of_the_same_seed():
    """Differences .01, .02, .03 (mean .02, s .01): t = .02 / (.01 / sqrt 3) = 2 sqrt 3, and with two degrees of
    freedom p = 1 - t / sqrt(t^2 + 2) = 1 - sqrt(12 / 14)."""
    first = {0: 0.51, 1: 0.72, 2: 0.43, 7: 9.0}
    second = {2: 0.40, 1: 0.70, 0: 0.50, 8: -9.0}
    d = paired(first, second)
    assert d is not None and d.n == 3
    assert d.mean == pytest.approx(0.02)
    assert d.p == pytest.approx(1 - math.sqrt(12 / 14), abs=1e-9)
    assert d.p_sign == 0.25, "two of the eight flips of three signs are as far from 0"
    assert paired({0: 1.0}, {1: 1.0}) is None
    alone = paired({0: 1.0}, {0: 0.5})
    assert alone is not None and alone.p is None and alone.ci95 is None


def test_differences_without_spread():
    assert paired_t_p([0.0, 0.0]) == 1.0
    assert paired_t_p([0.5, 0.5]) == 0.0
    assert paired_t_p([0.5]) is None


def test_holm_by_hand():
    # sorted .01 .02 .03 .04 times 4 3 2 1 = .04 .06 .06 .04, then never below the one before
    assert holm([0.03, 0.01, 0.04, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([0.03]) == [0.03]
    assert holm([]) == []


def test_verdicts():
    def of(mean: float) -> Difference:
        return Difference(mean=mean, n=3, ci95=None, p=0.01, p_sign=0.25)

    assert verdict(of(0.1), 0.04) is Verdict.SEEN
    assert verdict(of(-0.1), 0.04) is Verdict.CONTRADICTED
    assert verdict(of(0.1), 0.05) is Verdict.NOT_APART
    assert verdict(of(0.1), None) is Verdict.NOT_APART, "one seed says nothing"
    assert verdict(None, None) is Verdict.MISSING


def test_items_are_averaged_over_seeds_first():
    """x: (1 + 0) / 2 - 0 = .5; y: 1 - (1 + 0) / 2 = .5; z is in one arm only."""
    found = by_items([{"x": 1.0, "y": 1.0}, {"x": 0.0}], [{"x": 0.0, "y": 1.0}, {"y": 0.0, "z": 1.0}])
    assert found is not None
    e, p = found
    assert (e.mean, e.n, p) == (0.5, 2, 0.5), "two of four flips are as far from 0"
    assert by_items([{"x": 1.0}], [{"y": 1.0}]) is None


def test_the_best_window():
    assert best_window([1, 5, 3, 1], 2) == 4.0
    assert best_window([1, 2], 10) == 1.5
    with pytest.raises(ValueError, match="without values"):
        best_window([], 3)


def test_a_collapse_is_more_than_the_drop():
    assert not collapsed(end=0.41, start=0.45, drop=0.05)
    assert collapsed(end=0.39, start=0.45, drop=0.05)
