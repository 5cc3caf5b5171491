"""Figure 1: surrogate and gradient weight of every loss against the token ratio, by calling the losses."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from sapo_vl.losses import LOSSES, LossInput

# r = 1 is on the grid, and the points are dense enough that the jump of a clip lies between two neighbours.
RATIOS = np.concatenate([[1e-6], np.arange(1, 401) / 100])


@dataclass(frozen=True, slots=True, kw_only=True)
class LossCurve:
    """One loss at one sign of the advantage, over RATIOS."""

    loss: str
    sign: int  # of A, 1 or -1
    surrogate: np.ndarray  # f(r) - f(1): objective per |A|, rising where the loss wants r to rise
    weight: np.ndarray  # gradient w.r.t. log pi_theta, over A r: f'(r)

    @property
    def largest_jump(self) -> float:
        """Of the weight, between neighbours of the grid."""
        return float(np.abs(np.diff(self.weight)).max())


def loss_curves() -> tuple[list[LossCurve], dict[str, str]]:
    """(curves of all losses with their default settings, loss -> why it has none)."""
    curves: list[LossCurve] = []
    left_out: dict[str, str] = {}
    for name, (function, config_class) in LOSSES.items():
        try:
            curves += [loss_curve(name, function, config_class(), sign) for sign in (1, -1)]
        except (TypeError, ValueError) as error:
            left_out[name] = f"it is no function of the token ratio alone ({error})"
    return curves, left_out


def loss_curve(name: str, function: Any, config: Any, sign: int) -> LossCurve:
    """One response of one token for each ratio, so that a sequence ratio is the token's."""
    log_ratio = torch.tensor(np.log(RATIOS), dtype=torch.float32)[:, None].requires_grad_(True)
    x = LossInput(
        logprobs=log_ratio,
        old_logprobs=torch.zeros_like(log_ratio),
        advantages=torch.full_like(log_ratio, float(sign)),
        mask=torch.ones_like(log_ratio, dtype=torch.bool),
    )
    per_token = function(x, config).per_token
    (gradient,) = torch.autograd.grad(per_token.sum(), log_ratio)
    objective = -sign * per_token.detach().double().numpy()[:, 0]
    at_one = int(np.argmin(np.abs(RATIOS - 1)))
    return LossCurve(
        loss=name,
        sign=sign,
        surrogate=objective - objective[at_one],
        weight=-sign * gradient.double().numpy()[:, 0] / RATIOS,
    )


def facts(curves: list[LossCurve]) -> dict[str, Any]:
    """What figure 1 shows, as numbers: {"sapo": {...}, "grpo": {...}, ...} by loss and sign."""
    by_name: Mapping[tuple[str, int], LossCurve] = {(c.loss, c.sign): c for c in curves}
    at_one = int(np.argmin(np.abs(RATIOS - 1)))
    return {
        f"{name}, A {'> 0' if sign > 0 else '< 0'}": {
            "weight at r=1": float(c.weight[at_one]),
            "weight at r=0": float(c.weight[0]),
            "weight at r=2": float(np.interp(2.0, RATIOS, c.weight)),
            "largest jump": c.largest_jump,
        }
        for (name, sign), c in by_name.items()
    }
