"""Statistics of a few seeds: means with intervals, paired differences, corrections, and what counts as a collapse."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum

from sapo_vl.evaluation.statistics import half_width, sign_flip_p

LEVEL = 0.05  # a difference is told apart from 0 below this p, after Holm's correction


class Verdict(StrEnum):
    """What a measured difference says of a claim."""

    SEEN = "seen"
    CONTRADICTED = "contradicted"
    NOT_APART = "cannot be told apart"
    MISSING = "not measured"


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """A mean over seeds: mean +- t(n - 1) s / sqrt(n). No interval for a single one."""

    mean: float
    n: int
    ci95: tuple[float, float] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """First minus second of two arms over the seeds that both have.

    p: of the paired t-test; None for a single seed. p_sign: of the paired sign-flip test, whose least value is
    2 / 2^n: with three seeds nothing below 0.25 is possible.
    """

    mean: float
    n: int
    ci95: tuple[float, float] | None
    p: float | None
    p_sign: float


def estimate(values: Sequence[float]) -> Estimate:
    """Raises ValueError for no values."""
    if not values:
        raise ValueError("a mean of no values")
    mean, half = math.fsum(values) / len(values), half_width(values)
    return Estimate(mean=mean, n=len(values), ci95=None if half is None else (mean - half, mean + half))


def paired(first: Mapping[int, float], second: Mapping[int, float]) -> Difference | None:
    """Seed -> value of two arms that start alike and see the same rows for a seed. None without a common seed."""
    seeds = sorted(first.keys() & second.keys())
    if not seeds:
        return None
    differences = [first[seed] - second[seed] for seed in seeds]
    e = estimate(differences)
    return Difference(mean=e.mean, n=e.n, ci95=e.ci95, p=paired_t_p(differences), p_sign=sign_flip_p(differences))


def paired_t_p(differences: Sequence[float]) -> float | None:
    """Two-sided p of the t-test that their mean is 0; None for fewer than two."""
    n = len(differences)
    if n < 2:
        return None
    mean = math.fsum(differences) / n
    variance = math.fsum((d - mean) ** 2 for d in differences) / (n - 1)
    if variance == 0:
        return 1.0 if mean == 0 else 0.0
    return t_two_sided(mean / math.sqrt(variance / n), n - 1)


def t_two_sided(t: float, freedom: int) -> float:
    """P(|T| >= |t|) of Student's t with a whole number of degrees of freedom (Abramowitz & Stegun 26.7.3-4).

    Raises ValueError for freedom below 1.
    """
    if freedom < 1:
        raise ValueError(f"Student's t needs 1 degree of freedom at least, got {freedom}")
    theta = math.atan(abs(t) / math.sqrt(freedom))
    sine, cosine = math.sin(theta), math.cos(theta)
    # term: cos^k theta times its quotient of products, from k = 1 (odd freedom) or 0 (even) in steps of 2.
    odd = freedom % 2
    k, term, total = odd, cosine if odd else 1.0, 0.0
    while k <= freedom - 2:
        total += term
        term *= cosine**2 * (k + 1) / (k + 2)
        k += 2
    inside = 2 / math.pi * (theta + sine * total) if odd else sine * total
    return min(1.0, max(0.0, 1.0 - inside))


def holm(ps: Sequence[float]) -> list[float]:
    """Holm's step-down adjustment of p values of one family, in their order."""
    order = sorted(range(len(ps)), key=lambda i: ps[i])
    adjusted, largest = [0.0] * len(ps), 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, (len(ps) - rank) * ps[i]))
        adjusted[i] = largest
    return adjusted


def verdict(difference: Difference | None, adjusted_p: float | None) -> Verdict:
    """Of the claim that the difference is above 0."""
    if difference is None:
        return Verdict.MISSING
    if adjusted_p is None or adjusted_p >= LEVEL:
        return Verdict.NOT_APART
    return Verdict.SEEN if difference.mean > 0 else Verdict.CONTRADICTED


def by_items(
    first: Sequence[Mapping[str, float]], second: Sequence[Mapping[str, float]]
) -> tuple[Estimate, float] | None:
    """(first minus second over items, p of the paired sign-flip test over items); None without a common item.

    Each argument has item -> score for every seed; an item's value is its mean over the seeds that have it. This is
    about these trained models on items like these: that other seeds would give other models is not in it.
    """
    a, b = _item_means(first), _item_means(second)
    common = sorted(a.keys() & b.keys())
    if not common:
        return None
    differences = [a[item] - b[item] for item in common]
    return estimate(differences), sign_flip_p(differences)


def _item_means(runs: Sequence[Mapping[str, float]]) -> dict[str, float]:
    values: dict[str, list[float]] = {}
    for run in runs:
        for item, score in run.items():
            values.setdefault(item, []).append(score)
    return {item: math.fsum(v) / len(v) for item, v in values.items()}


def best_window(curve: Sequence[float], width: int) -> float:
    """The largest mean of `width` neighbouring values; of all of them where there are fewer. Raises ValueError for
    an empty curve."""
    if not curve:
        raise ValueError("a curve without values")
    width = min(width, len(curve))
    total = math.fsum(curve[:width])
    largest = total
    for i in range(width, len(curve)):
        total += curve[i] - curve[i - width]
        largest = max(largest, total)
    return largest / width


def collapsed(end: float, start: float, drop: float) -> bool:
    """Whether a run ends more than `drop` below where it began."""
    return end < start - drop
