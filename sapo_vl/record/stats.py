"""Small statistics: intervals of a proportion, and quantiles of values that lie scattered over ranks."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from sapo_vl.distributed import World

Z_95 = 1.959964  # half-width of the central 95% of a standard normal, in standard deviations


def wilson_interval(successes: float, n: int, z: float = Z_95) -> tuple[float, float]:
    """(low, high) of the Wilson score interval of a proportion, Wilson 1927; default 95%.

    Unlike mean +- z * se it stays inside [0, 1] and keeps a width at 0 and at n successes. It takes the n
    trials as independent. `successes` may be fractional (partial credit). n = 0 gives (0, 1).

    Raises ValueError if successes is not within [0, n].
    """
    if not 0 <= successes <= n:
        raise ValueError(f"successes must be between 0 and n={n}, got {successes}")
    if n == 0:
        return 0.0, 1.0
    p, zz = successes / n, z * z / n
    centre = (p + zz / 2) / (1 + zz)
    half = math.sqrt(p * (1 - p) * zz + zz * zz / 4) / (1 + zz)
    return max(0.0, centre - half), min(1.0, centre + half)


def global_quantiles(
    samples: Sequence[np.ndarray], probabilities: Sequence[float], world: World
) -> list[np.ndarray | None]:
    """Exact quantiles over all ranks, for several samples at once. Equal on all ranks.

    samples: this rank's part of each sample, [n_i] float32 without NaN; the same number of samples on every
    rank, a part may be empty. Returns per sample [len(probabilities)] float64, interpolated linearly between
    neighbours (numpy's default), or None where no rank has a value.

    No values are exchanged: the k-th smallest is found by its float32 bit pattern, eight bits a round, with one
    sum over ranks in each of the four rounds, whatever the size of the samples. How values are spread over ranks
    cannot matter.
    """
    keys = [np.sort(_ordered_bits(sample)) for sample in samples]
    totals = world.sum([len(k) for k in keys]).astype(np.int64)
    # [samples, probabilities], 0 = the smallest value
    position = np.outer(np.maximum(totals - 1, 0), probabilities)
    below = np.floor(position)
    wanted = np.concatenate([below, np.ceil(position)], axis=1).astype(np.int64) + 1  # ranks counted from 1
    ends = _from_ordered_bits(_kth_smallest(keys, wanted, world))
    low, high = np.split(ends, 2, axis=1)
    values = low + (high - low) * (position - below)
    return [values[i] if totals[i] else None for i in range(len(samples))]


def _kth_smallest(keys: Sequence[np.ndarray], wanted: np.ndarray, world: World) -> np.ndarray:
    """For sample i and column j the wanted[i, j]-th smallest key over all ranks; keys[i] is sorted."""
    found = np.zeros(wanted.shape, np.int64)  # the leading bits that are known, the others 0
    for shift in (24, 16, 8, 0):
        last = found[..., None] + (np.arange(1, 257) << shift) - 1  # largest key with each value of the next 8 bits
        counts = [np.searchsorted(k, ends, side="right") for k, ends in zip(keys, last, strict=True)]
        enough = world.sum(np.stack(counts)) >= wanted[..., None]
        found += enough.argmax(axis=-1) << shift
    return found


def _ordered_bits(values: np.ndarray) -> np.ndarray:
    """int64 keys in [0, 2^32) that sort as the float32 values do."""
    bits = values.astype(np.float32).view(np.uint32).astype(np.int64)
    return np.where(bits >> 31, 2**32 - 1 - bits, bits + 2**31)  # a negative float counts downwards


def _from_ordered_bits(keys: np.ndarray) -> np.ndarray:
    """The float32 values of `keys`, as float64."""
    bits = np.where(keys >= 2**31, keys - 2**31, 2**32 - 1 - keys)
    return bits.astype(np.uint32).view(np.float32).astype(np.float64)
