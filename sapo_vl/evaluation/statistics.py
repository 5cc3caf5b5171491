"""What can be said about a mean over items, and about the difference of two."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from sapo_vl.record.stats import Z_95, wilson_interval

# 97.5% points of Student's t with 1 to 6 degrees of freedom; the series below is good to 0.002 from 7 on.
_T_SMALL = (12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469)
EXACT_SIGNS = 16  # so many differences have 65,536 ways of flipping signs: all of them are looked at
DRAWS = 20_000  # else so many of them


def pass_at_k(n: int, correct: int, k: int) -> float:
    """Probability that one of k responses, drawn without replacement from n with `correct` right ones, is right.

    Unbiased for k independent responses: 1 - C(n - c, k) / C(n, k), Chen et al. 2021 (arXiv 2107.03374), eq. 1.
    Raises ValueError unless 1 <= k <= n and 0 <= correct <= n.
    """
    if not 1 <= k <= n or not 0 <= correct <= n:
        raise ValueError(f"pass@k needs 1 <= k <= n and 0 <= correct <= n, got k={k}, n={n}, correct={correct}")
    return 1.0 - math.comb(n - correct, k) / math.comb(n, k)


def t_975(freedom: int) -> float:
    """97.5% point of Student's t (Abramowitz & Stegun 26.7.5)."""
    if freedom <= len(_T_SMALL):
        return _T_SMALL[freedom - 1]
    z = Z_95
    return (
        z
        + (z**3 + z) / (4 * freedom)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * freedom**3)
    )


def half_width(values: Sequence[float]) -> float | None:
    """Half of a 95% interval of the mean of `values`: t(n - 1) * s / sqrt(n). None for fewer than two."""
    n = len(values)
    return t_975(n - 1) * float(np.std(values, ddof=1)) / math.sqrt(n) if n > 1 else None


def mean_and_interval(item_means: Sequence[float]) -> dict[str, float | int | str | list[float] | None]:
    """{"mean", "n", "ci95", "method"} of means per item, each between 0 and 1.

    Items are the clusters: responses to one item are alike, so only the n item means count as independent.
    "wilson" where every mean is 0 or 1 (one response an item), or all are equal and so have no spread to go by;
    else "t": mean +- t(n - 1) * s / sqrt(n) over the item means, cut to [0, 1].
    """
    n = len(item_means)
    if not n:
        return {"mean": None, "n": 0, "ci95": None, "method": None}
    total = math.fsum(item_means)
    mean = total / n
    if all(x in (0.0, 1.0) for x in item_means) or len(set(item_means)) == 1:
        return {"mean": mean, "n": n, "ci95": list(wilson_interval(total, n)), "method": "wilson"}
    half = half_width(item_means)
    assert half is not None  # two different values
    return {"mean": mean, "n": n, "ci95": [max(0.0, mean - half), min(1.0, mean + half)], "method": "t"}


def paired_difference(differences: Sequence[float]) -> dict[str, Any]:
    """{"mean", "n", "ci95"}: mean +- t(n - 1) * s / sqrt(n) over the items, cut to [-1, 1].

    ci95 is None without a spread to go by: for a single item, or equal differences.
    """
    half = half_width(differences)
    mean = math.fsum(differences) / len(differences)
    interval = [max(-1.0, mean - half), min(1.0, mean + half)] if half else None
    return {"mean": mean, "n": len(differences), "ci95": interval}


def mcnemar_exact(only_first: int, only_second: int) -> float:
    """Two-sided p of McNemar's exact test: items that one of two models solves and the other does not."""
    n = only_first + only_second
    tail = sum(math.comb(n, i) for i in range(min(only_first, only_second) + 1))
    return min(1.0, 2 * tail / 2**n)


def sign_flip_p(differences: Sequence[float], seed: int = 0) -> float:
    """Two-sided p of the paired permutation test: how often flipped signs give a sum as far from 0 as the real one.

    All 2^n flips for up to EXACT_SIGNS differences other than 0, else (1 + hits) / (1 + DRAWS) of random ones.
    """
    d = np.asarray([x for x in differences if x], np.float64)
    if not len(d):
        return 1.0
    seen = abs(d.sum()) - 1e-9  # sums of the same terms in another order
    if len(d) <= EXACT_SIGNS:
        flips = (np.arange(2 ** len(d))[:, None] >> np.arange(len(d))) & 1
        return float((np.abs((1 - 2 * flips) @ d) >= seen).mean())
    generator = np.random.default_rng(seed)
    hits = sum(abs(float(generator.choice((-1.0, 1.0), len(d)) @ d)) >= seen for _ in range(DRAWS))
    return (1 + hits) / (1 + DRAWS)
