"""Soft Adaptive Policy Optimization: a smooth gate in place of a clip. arXiv 2511.20347, Eq. 5-8."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from pydantic import Field

from sapo_vl.losses.base import (
    MAX_LOG_RATIO,
    LossInput,
    LossOutput,
    attach_gradient,
    bounded_ratio,
    finish,
    masked_log_ratio,
)
from sapo_vl.strict import Strict


class SapoConfig(Strict):
    """Temperatures of the gate. A larger one is a narrower gate: half weight at |r - 1| = 1.763 / tau."""

    tau_pos: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    """For tokens with A > 0 (paper Sec. 5)."""
    tau_neg: float = Field(default=1.05, gt=0, allow_inf_nan=False)
    """For tokens with A <= 0; above tau_pos for stability (paper Eq. 9 and Fig. 5)."""


def sapo(x: LossInput, config: SapoConfig) -> LossOutput:
    """Per-token SAPO loss, not reduced.

    value     -A * (4 / tau) * sigmoid(tau * (r - 1)),   tau = tau_pos if A > 0 else tau_neg         (Eq. 6)
    gradient  -A * w * r   w.r.t. log pi_theta,          w = 4 p (1 - p), p = sigmoid(tau (r - 1))   (Eq. 8)

    At r = 1 the gradient is -A for every tau. The value carries an offset that depends on tau (-2 A / tau at
    r = 1), so it is no measure of progress and does not compare between losses. The paper reduces with
    "sequence_mean" (Eq. 5).

    Metrics [B, T]: "ratio" r, "gate" w.
    """
    log_ratio, advantages = masked_log_ratio(x)
    tau = torch.full_like(advantages, config.tau_neg).masked_fill(advantages > 0, config.tau_pos)
    log_r = log_ratio.detach().clamp(max=MAX_LOG_RATIO)
    u = tau * torch.expm1(log_r)  # tau * (r - 1)
    # In the log domain: w underflows where sigmoid(u) rounds to 1 (already at r = 20), but w * r need not.
    log_gate = math.log(4.0) + F.logsigmoid(u) + F.logsigmoid(-u)
    value = -advantages * (4.0 / tau) * torch.sigmoid(u)
    coefficient = -advantages * torch.exp(log_r + log_gate)
    per_token = attach_gradient(value, coefficient, log_ratio)
    return finish(per_token, x.mask, ratio=bounded_ratio(log_ratio), gate=log_gate.exp())
