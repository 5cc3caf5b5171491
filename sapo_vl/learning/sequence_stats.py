"""Per response: how far its token ratios scatter, and how well one gate for the response stands in for theirs.

SAPO (arXiv 2511.20347) Eq. 17-21, with z_t = log r_t of the T tokens of response i and g(z) = sech^2(tau z / 2):

    mu_i  = mean_t z_t                        log of GSPO's sequence ratio
    Var_i = mean_t (z_t - mu_i)^2             the population variance
    D_i   = |mean_t g(z_t) - g(mu_i)|         what a gate on the sequence ratio would get wrong
    D_i  <= tau^2 / 4 * Var_i                 since |g''| <= tau^2 / 2; near equality where z is small

The bound is a theorem about any z, so a violation beyond rounding is a mistake in this file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from sapo_vl.losses.base import MAX_LOG_RATIO
from sapo_vl.losses.sapo import SapoConfig
from sapo_vl.types import RolloutGroup

SMALL_VAR = 0.02  # most responses of the paper's Fig. 2 and 3 lie below
# Bin i of a histogram of Var_i is [edge i-1, edge i); the first and the last are open.
VAR_EDGES = (1e-6, 1e-5, 1e-4, 3e-4, 1e-3, 3e-3, 0.01, SMALL_VAR, 0.05, 0.1, 0.3, 1.0, 3.0)
# D_i is set against its bound from here on: below, log r is the rounding of float32 log-probs.
BOUND_FROM = 1e-12
# Edges for the log-ratios of single responses: quarters of a decade from 0.001 to 3.2, both ways.
_POSITIVE_EDGES = tuple(10 ** (k / 4) for k in range(-12, 3))
FINE_LOG_RATIO_EDGES = (*(-edge for edge in reversed(_POSITIVE_EDGES)), *_POSITIVE_EDGES)

CLASSES = ("", "pos", "neg", "image", "text")  # all responses; by A > 0, A < 0; by the prompt


@dataclass(frozen=True, slots=True)
class Responses:
    """What was measured of B responses, float64 [B] unless stated. NaN where a token's log-ratio is not finite."""

    tokens: np.ndarray  # [B] int64
    advantage: np.ndarray
    image: np.ndarray  # [B] bool
    finite: np.ndarray  # [B] bool: all log-ratios are
    tau: np.ndarray
    mu: np.ndarray
    var: np.ndarray
    d: np.ndarray
    bound: np.ndarray  # on d
    violates: np.ndarray  # [B] bool: d is above the bound by more than rounding can explain


def measure(
    log_ratio: np.ndarray, lengths: np.ndarray, advantage: np.ndarray, image: np.ndarray, temperatures: SapoConfig
) -> Responses:
    """log_ratio [N], response after response; lengths, each at least 1, advantage and image [B]."""
    given, owner = log_ratio.astype(np.float64), _owner(lengths)
    finite = np.bincount(owner, ~np.isfinite(given), len(lengths)) == 0
    z = np.where(finite[owner], given, 0.0)
    tau = np.where(advantage > 0, temperatures.tau_pos, temperatures.tau_neg)
    mu = _means(z, lengths)
    delta = z - mu[owner]
    rest = _means(delta, lengths)  # what rounding left of the mean; it would count beside a variance of 1e-20
    mu, delta = mu + rest, delta - rest[owner]
    var = _means(delta**2, lengths)
    # g(z) - g(mu) = tanh^2(a mu) - tanh^2(a z) with a = tau / 2, and the difference of two tanh as a product: each
    # term keeps its digits however near z is to mu, and nothing overflows.
    a = (tau / 2)[owner]
    at_mu, at_z = np.tanh(a * mu[owner]), np.tanh(a * (mu[owner] + delta))
    d = np.abs(_means(np.tanh(-a * delta) * (1 - at_mu * at_z) * (at_mu + at_z), lengths))
    bound = tau**2 / 4 * var
    slack = np.finfo(np.float64).eps * (lengths + 8) * (tau * np.sqrt(var) + bound)
    known = {"mu": mu, "var": var, "d": d, "bound": bound}
    return Responses(
        tokens=lengths,
        advantage=advantage,
        image=image,
        finite=finite,
        tau=tau,
        violates=finite & (d > bound + slack),
        **{name: np.where(finite, v, np.nan) for name, v in known.items()},
    )


def local_sums(r: Responses) -> np.ndarray:
    """What `values` takes the sum over ranks of."""
    var, d = np.where(r.finite, r.var, 0.0), np.where(r.finite, r.d, 0.0)
    bins = np.searchsorted(VAR_EDGES, var, side="right")
    hist = (bins == np.arange(len(VAR_EDGES) + 1)[:, None]) & r.finite  # [bins, B]
    by_class = _membership(r) @ np.vstack([r.finite, var, d, hist]).T
    overall = (~r.finite, r.violates, r.finite & (var < SMALL_VAR))
    return np.concatenate([[np.count_nonzero(flags) for flags in overall], by_class.reshape(-1)])


def local_maxima(r: Responses) -> np.ndarray:
    """What `values` takes the maximum over ranks of: D_i over its bound, then Var_i of each of CLASSES."""
    share = (r.d / np.where(r.bound >= BOUND_FROM, r.bound, np.inf)).max(initial=-np.inf, where=r.bound >= BOUND_FROM)
    var = np.where((_membership(r) > 0) & r.finite, r.var, -np.inf)
    return np.array([share, *var.max(axis=1, initial=-np.inf)])


def values(sums: np.ndarray, maxima: np.ndarray) -> dict[str, float | list[float]]:
    """The metrics, from the sums and maxima over all ranks. A mean or maximum of nothing is left out.

    sequence/nonfinite: responses with a log-ratio that is NaN or infinite; they are left out of everything else.
    sequence/bound_violations: responses whose D_i is above its bound. sequence/d_over_bound/max: the largest D_i over
    its bound, of those with a bound from BOUND_FROM on. sequence/var/small_share: with Var_i < SMALL_VAR.

    Overall and by class (sequence/neg/...): responses; var/mean, var/max and var/hist, counts over VAR_EDGES; d/mean.
    """
    nonfinite, violations, small = sums[:3]
    out: dict[str, float | list[float]] = {"sequence/nonfinite": nonfinite, "sequence/bound_violations": violations}
    if maxima[0] > -np.inf:
        out["sequence/d_over_bound/max"] = maxima[0]
    by_class = zip(CLASSES, sums[3:].reshape(len(CLASSES), -1), maxima[1:], strict=True)
    for name, (n, var, d, *hist), largest in by_class:
        prefix = f"sequence/{name}/" if name else "sequence/"
        out |= {f"{prefix}responses": n, f"{prefix}var/hist": [int(c) for c in hist]}
        if n:
            out |= {f"{prefix}var/mean": var / n, f"{prefix}var/max": largest, f"{prefix}d/mean": d / n}
        if n and not name:
            out["sequence/var/small_share"] = small / n
    return out


def sequence_lines(
    r: Responses, log_ratio: np.ndarray, gate: np.ndarray, groups: Sequence[RolloutGroup], **shared: Any
) -> list[dict[str, Any]]:
    """One JSON-like object a response: `shared`, whose it is, and what was measured; null where that is not finite.

    log_ratio and gate [N]: of the tokens that `r` was measured of; groups: whose they are, in the same order.
    "log_ratio_bins" counts tokens by their place among FINE_LOG_RATIO_EDGES: {"16": 3} has three with log r in
    [edge 15, edge 16); those that are not finite are in none. Raises ValueError if groups hold more or fewer
    responses than `r`.
    """
    z, owner = log_ratio.astype(np.float64), _owner(r.tokens)
    held = np.where(np.isfinite(z), z, 0.0)
    numbers = {
        **{"mu": r.mu, "var": r.var, "d": r.d, "bound": r.bound},
        "gate_mean": _means(gate, r.tokens),
        "ratio_mean": _means(np.exp(np.minimum(held, MAX_LOG_RATIO)), r.tokens),
        "max_abs_log_ratio": np.maximum.reduceat(np.abs(held), np.cumsum(r.tokens) - r.tokens) if len(z) else z,
    }
    width = len(FINE_LOG_RATIO_EDGES) + 1
    place = owner * width + np.searchsorted(FINE_LOG_RATIO_EDGES, z, side="right")
    bins = np.bincount(place[np.isfinite(z)], minlength=len(r.tokens) * width).reshape(-1, width)
    problems = [g.prompt.problem for g in groups for _ in g.rollouts]
    lines = []
    for i, (problem, tokens) in enumerate(zip(problems, r.tokens, strict=True)):
        line = shared | {"id": problem.id, "task": problem.task, "image": bool(r.image[i]), "tokens": int(tokens)}
        line |= {"advantage": float(r.advantage[i]), "tau": float(r.tau[i])}
        line |= {name: float(v[i]) if r.finite[i] else None for name, v in numbers.items()}
        lines.append(line | {"log_ratio_bins": {str(b): int(bins[i, b]) for b in np.flatnonzero(bins[i])}})
    return lines


def _owner(lengths: np.ndarray) -> np.ndarray:
    """[N] the response that each token belongs to."""
    return np.repeat(np.arange(len(lengths)), lengths)


def _means(values: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """[N] -> [B] means over the tokens of a response."""
    return np.bincount(_owner(lengths), values, len(lengths)) / lengths


def _membership(r: Responses) -> np.ndarray:
    """[classes, B] float64: 1 where a response belongs to a class."""
    everyone = np.ones(len(r.tokens), bool)
    return np.stack([everyone, r.advantage > 0, r.advantage < 0, r.image, ~r.image]).astype(np.float64)
