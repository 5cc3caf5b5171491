"""Figure 1: surrogate and gradient weight of every loss against the token ratio, by calling the losses."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from sapo_vl.losses import LOSSES, LossInput, LossParams

STEP = 0.001
RATIOS = np.arange(4001) * STEP  # r = 1 is among them
RATIOS[0] = 1e-6  # log r is to be finite
AT_ONE = 1000
EVERY = 10  # each so manyth of them is drawn and written down
# Log-probs of the sampled token under the old policy: a function of the ratio alone gives the same at both.
OLD_LOGPROBS = (-1.6, -6.0)
JUMP = 0.1  # between neighbours: a weight that changes by more is a clip's


@dataclass(frozen=True, slots=True, kw_only=True)
class LossCurve:
    """One loss at one sign of the advantage, over RATIOS."""

    loss: str
    sign: int  # of A, 1 or -1
    weight: np.ndarray  # gradient w.r.t. log pi_theta, over A r: f'(r)

    @property
    def surrogate(self) -> np.ndarray:
        """f(r) - f(1), f the integral of the weight: what the objective is per A, up to an offset without meaning. Some
        losses are written as weights and have no f of their own."""
        slices = (self.weight[1:] + self.weight[:-1]) / 2 * np.diff(RATIOS)
        f = np.concatenate([[0.0], np.cumsum(slices)])
        return f - f[AT_ONE]

    @property
    def largest_jump(self) -> float:
        """Of the weight, between neighbours."""
        return float(np.abs(np.diff(self.weight)).max())


def loss_curves() -> tuple[list[LossCurve], list[str]]:
    """(curves of the losses that are a function of the token ratio, with their default settings; the others)."""
    curves: list[LossCurve] = []
    others: list[str] = []
    for name, (function, config_class) in LOSSES.items():
        at = [[loss_curve(name, function, config_class(), sign, old) for sign in (1, -1)] for old in OLD_LOGPROBS]
        if all(_alike(a.weight, b.weight) for a, b in zip(*at, strict=True)):
            curves += at[0]
        else:
            others.append(name)
    return curves, others


def _alike(a: np.ndarray, b: np.ndarray) -> bool:
    """But for the two neighbours of a clip, where rounding decides."""
    return bool(np.count_nonzero(np.abs(a - b) > 1e-3) <= 2)


def loss_curve(name: str, function: Any, config: LossParams, sign: int, old_logprob: float) -> LossCurve:
    """One response of one token for each ratio, so that a ratio of the whole response is the token's."""
    old = torch.full((len(RATIOS), 1), old_logprob, dtype=torch.float64)
    logprobs = (old + torch.from_numpy(np.log(RATIOS))[:, None]).float().requires_grad_(True)
    x = LossInput(
        logprobs=logprobs,
        old_logprobs=old.float(),
        advantages=torch.full_like(logprobs, float(sign)),
        mask=torch.ones_like(logprobs, dtype=torch.bool),
    )
    (gradient,) = torch.autograd.grad(function(x, config).per_token.sum(), logprobs)
    return LossCurve(loss=name, sign=sign, weight=-sign * gradient.double().numpy()[:, 0] / RATIOS)


def facts(curves: Sequence[LossCurve]) -> dict[str, dict[str, float]]:
    """What figure 1 shows, as numbers, by loss and sign."""
    return {
        f"{c.loss}, A {'> 0' if c.sign > 0 else '< 0'}": {
            "weight at r=0": float(c.weight[0]),
            "r=0.5": float(c.weight[AT_ONE // 2]),
            "r=1": float(c.weight[AT_ONE]),
            "r=1.5": float(c.weight[AT_ONE * 3 // 2]),
            "r=2": float(c.weight[AT_ONE * 2]),
            "largest jump": c.largest_jump,
        }
        for c in curves
    }
