"""How far trainer and rollout engine are apart on the sampled tokens, and what the corrections did about it.

Everything is a sum or a maximum over all ranks, so the numbers are equal on every rank and do not depend on how
the batch was split over micro-batches and ranks (float sums up to rounding).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from sapo_vl.distributed import World
from sapo_vl.learning.mismatch import LossWeights
from sapo_vl.losses.base import MAX_LOG_RATIO
from sapo_vl.model.batching import MicroBatch

# A gap may sit in the vision path (positions, resizing, a stale encoder cache) or grow with the length of the
# context: each response counts overall (""), by its kind of prompt, and by its length in tokens.
LENGTHS = {"len_1_16": 16, "len_17_128": 128, "len_129_1024": 1024, "len_1025_8192": 8192, "len_8193_up": np.inf}
CLASSES = ("", "text", "image", *LENGTHS)

# Columns of the sums that are kept for each class.
GAP_SUMS = ("tokens", "nonfinite", "gap", "k1", "k3", "chi2", "rho", "rho2", "responses", "rho_y", "rho_y2")
WEIGHT_SUMS = ("tokens", "weight", "dropped", "truncated", "responses", "gone", "off_policy")


class MismatchStats:
    """Statistics of ONE step. Make one per step and rank, add micro-batches, then call `reduce` on every rank."""

    def __init__(self) -> None:
        self._gaps = np.zeros((len(CLASSES), len(GAP_SUMS)))
        self._weights = np.zeros((len(CLASSES), len(WEIGHT_SUMS)))
        self._largest = np.full(len(CLASSES), -np.inf)  # |log rho|

    def add_gap(self, mb: MicroBatch, log_rho: Tensor) -> None:
        """One micro-batch; log_rho [N] = log pi_old - log pi_rollout of its tokens, response after response."""
        given = log_rho.detach().double().cpu().numpy()
        known = np.isfinite(given)
        d = np.where(known, given, 0.0)
        bounded = np.minimum(d, MAX_LOG_RATIO)
        rho = np.where(known, np.exp(bounded), 0.0)
        # expm1, not rho - 1: a k3 of 1e-12 would drown in rounding.
        k3, chi2 = np.expm1(bounded) - bounded, np.expm1(2 * bounded)
        sums = _by_response(mb, known, ~known, np.abs(d), -d, k3, chi2, rho, rho**2)  # [8, B]
        whole = sums[1] == 0  # responses without a nonfinite token
        rho_y = np.where(whole, np.exp(np.minimum(_by_response(mb, d)[0], MAX_LOG_RATIO)), 0.0)
        classes = _classes(mb)
        self._gaps += classes @ np.vstack([sums, whole, rho_y, rho_y**2]).T
        largest = np.maximum.reduceat(np.where(known, np.abs(d), -np.inf), _starts(mb))
        self._largest = np.maximum(self._largest, np.where(classes > 0, largest, -np.inf).max(axis=1))

    def add_weights(self, mb: MicroBatch, weights: LossWeights) -> None:
        """One micro-batch of one update."""
        mask = mb.mask()
        values = weights.values[mask].double().cpu().numpy()
        truncated = weights.truncated[mask].cpu().numpy()
        tokens, weight, dropped, truncated = _by_response(mb, np.ones_like(values), values, values == 0, truncated)
        gone, off_policy = dropped == tokens, weights.off_policy.cpu().numpy()
        columns = np.vstack([tokens, weight, dropped, truncated, np.ones_like(tokens), gone, off_policy])
        self._weights += _classes(mb) @ columns.T

    def reduce(self, world: World) -> dict[str, float]:
        """The statistics over all ranks. Every rank must call it, also one that added nothing.

        Names start with mismatch/, then nothing, text/ or image/ (whether the prompt has an image), or a key of
        LENGTHS (response tokens). A class without tokens is left out.

        Of the tokens given to `add_gap`, d = log rho_t, rho_t = pi_old / pi_rollout:
        tokens; nonfinite: tokens whose d is NaN or infinite, which are left out of everything else.
        gap_mean, gap_max: |d| in nats.
        k1, k3: estimators of KL(pi_rollout || pi_old), mean(-d) and mean(rho - 1 - d) (Schulman, 2020).
        chi2: mean(rho^2) - 1, the chi-square divergence, 0 without a gap.
        ess: (sum rho)^2 / (n sum rho^2), the share of the tokens that importance sampling would leave in effect.
        ess_sequence: the same over responses with rho_y = prod_t rho_t; one with a nonfinite token is left out.
        rho and rho_y are held at e^20.

        Of the tokens given to `add_weights`, over all updates of the step:
        weight_mean: with dropped tokens as 0.
        dropped_tokens, truncated_tokens: shares of the tokens. dropped_sequences: responses without a token left.
        off_policy_sequences: responses that the off-policy mask acted on. Shares of the responses.
        """
        gaps = world.sum(self._gaps.reshape(-1)).reshape(self._gaps.shape)
        weights = world.sum(self._weights.reshape(-1)).reshape(self._weights.shape)
        largest = world.maxima(self._largest)
        out: dict[str, float] = {}
        for i, name in enumerate(CLASSES):
            prefix = f"mismatch/{name}/" if name else "mismatch/"
            values = _gap_values(gaps[i], largest[i]) | _weight_values(weights[i])
            out |= {prefix + key: float(value) for key, value in values.items()}
        return out


def _gap_values(sums: np.ndarray, largest: float) -> dict[str, float]:
    n, nonfinite, gap, k1, k3, chi2, rho, rho2, responses, rho_y, rho_y2 = sums
    if n + nonfinite == 0:
        return {}
    out = {"tokens": n, "nonfinite": nonfinite}
    if n:
        out |= {"gap_mean": gap / n, "gap_max": largest, "k1": k1 / n, "k3": k3 / n, "chi2": chi2 / n}
        out["ess"] = _ess(rho, rho2, n)
    if responses:
        out["ess_sequence"] = _ess(rho_y, rho_y2, responses)
    return out


def _ess(total: float, squares: float, n: float) -> float:
    """0 where all weights have underflowed."""
    return total**2 / (n * squares) if squares > 0 else 0.0


def _weight_values(sums: np.ndarray) -> dict[str, float]:
    n, weight, dropped, truncated, responses, gone, off_policy = sums
    if n == 0:
        return {}
    out = {"weight_mean": weight / n, "dropped_tokens": dropped / n, "truncated_tokens": truncated / n}
    return out | {"dropped_sequences": gone / responses, "off_policy_sequences": off_policy / responses}


def _classes(mb: MicroBatch) -> np.ndarray:
    """[classes, B] float64: 1 where a response belongs to a class."""
    lengths = mb.lengths.cpu().numpy()
    image = mb.with_image().numpy()
    bucket = np.searchsorted([*LENGTHS.values()], lengths)  # the first whose end is not below the length
    by_length = [bucket == i for i in range(len(LENGTHS))]
    return np.stack([np.ones_like(image), ~image, image, *by_length]).astype(np.float64)


def _starts(mb: MicroBatch) -> np.ndarray:
    lengths = mb.lengths.cpu()
    return (torch.cumsum(lengths, 0) - lengths).numpy()


def _by_response(mb: MicroBatch, *per_token: np.ndarray) -> np.ndarray:
    """Columns of [N] -> [columns, B] float64, summed over the tokens of a response."""
    return np.add.reduceat(np.stack(per_token).astype(np.float64), _starts(mb), axis=1)
