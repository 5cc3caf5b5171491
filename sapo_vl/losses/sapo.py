"""Soft Adaptive Policy Optimization: a smooth gate in place of a clip. arXiv 2511.20347, Eq. 5-8.

The settings `gate`, `sides`, `low` and `target_gate` go beyond the paper; their defaults are the paper's loss.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from pydantic import Field
from torch import Tensor

from sapo_vl.losses.base import (
    MAX_LOG_RATIO,
    LossInput,
    LossOutput,
    LossParams,
    attach_gradient,
    bounded_ratio,
    finish,
    masked_log_ratio,
)
from sapo_vl.losses.gates import GATES, Gate, GateName

# How far target_gate may raise the temperatures. A response that has not moved at all (r = 1) would otherwise ask
# for infinite ones; with 1000 a |r - 1| of rounding, 1e-6, still has a gate of 1.
MAX_RAISE = 1000.0
RAISE_STEPS = 20  # halvings of log(MAX_RAISE): the factor is right to 7e-6


class SapoConfig(LossParams):
    """Temperatures of the gate. A larger one is a narrower gate: half weight at |r - 1| = 1.763 / tau (sigmoid)."""

    tau_pos: float = Field(default=1.0, gt=0, allow_inf_nan=False)
    """For tokens with A > 0 (paper Sec. 5)."""
    tau_neg: float = Field(default=1.05, gt=0, allow_inf_nan=False)
    """For tokens with A <= 0; above tau_pos for stability (paper Eq. 9 and Fig. 5)."""
    gate: GateName = "sigmoid"
    """The shape, a key of losses/gates.py:GATES."""
    sides: Literal["both", "outward"] = "both"
    """Where the gate acts. "outward": only on tokens that already went the way their advantage asks for (A > 0 and
    r > 1, or A < 0 and r < 1), as a clip does; a token on its way back has f' = 1."""
    low: Literal["open", "closed"] = "open"
    """What the gate does for r < 1. It is as wide below 1 as above, but r ends at 0: "open" leaves f'(0) = g(tau)
    (0.786 at tau 1), "closed" stretches the gate so that f'(0) = 0."""
    target_gate: float | None = Field(default=None, gt=0, lt=1)
    """Raise the temperatures, response by response, until the mean gate is down to this; None = do not."""


def sapo(x: LossInput, config: SapoConfig) -> LossOutput:
    """Per-token SAPO loss, not reduced. With the default settings:

    value     -A * (4 / tau) * sigmoid(tau * (r - 1)),   tau = tau_pos if A > 0 else tau_neg         (Eq. 6)
    gradient  -A * w * r   w.r.t. log pi_theta,          w = 4 p (1 - p), p = sigmoid(tau (r - 1))   (Eq. 8)

    At r = 1 the gradient is -A for every tau. The value carries an offset that depends on tau (-2 A / tau at
    r = 1), so it is no measure of progress and does not compare between losses. The paper reduces with
    "sequence_mean" (Eq. 5).

    With the other settings (c, F and g of losses/gates.py) value and gradient are still -A f(r) and -A f'(r) r:

    gate           f = c / tau F(tau (r - 1)),   f' = g(tau (r - 1))
    low="closed"   for r < 1: f' = 1 - (1 - g(tau (r - 1))) / (1 - g(tau)), and f its integral with the same f(1)
    sides="outward"  where the gate does not act: f' = 1 and f = c / (2 tau) + r - 1, so f stays continuous
    target_gate    tau is both temperatures times one factor s >= 1 a response, see `raised`; a constant

    Metrics [B, T]: "ratio" r, "gate" f'(r).
    """
    log_ratio, advantages = masked_log_ratio(x)
    gate = GATES[config.gate]
    positive = advantages > 0
    tau = torch.full_like(advantages, config.tau_neg).masked_fill(positive, config.tau_pos)
    log_r = log_ratio.detach().clamp(max=MAX_LOG_RATIO)
    outward = torch.where(positive, log_r > 0, log_r < 0)
    acts = x.mask & outward if config.sides == "outward" else x.mask
    if config.target_gate is not None:
        tau = tau * raised(gate, tau, log_r, acts, config.low == "closed", config.target_gate)

    u = tau * torch.expm1(log_r)  # tau * (r - 1)
    # In the log domain: w underflows where sigmoid(u) rounds to 1 (already at r = 20), but w * r need not.
    log_gate = gate.log_slope(u)
    value = -advantages * (gate.scale / tau) * gate.distribution(u)
    if config.low == "closed":
        log_gate = torch.where(log_r < 0, closed_slope(gate, u, tau).log(), log_gate)
        value = torch.where(log_r < 0, -advantages * closed_value(gate, u, tau, log_r), value)
    if config.sides == "outward":
        log_gate = torch.where(acts, log_gate, 0.0)
        value = torch.where(acts, value, -advantages * (gate.scale / (2 * tau) + torch.expm1(log_r)))
    coefficient = -advantages * torch.exp(log_r + log_gate)
    per_token = attach_gradient(value, coefficient, log_ratio)
    return finish(per_token, x.mask, ratio=bounded_ratio(log_ratio), gate=log_gate.exp())


def closed_slope(gate: Gate, u: Tensor, tau: Tensor) -> Tensor:
    """f'(r) of the closed low side, in [0, 1]; u = tau (r - 1) and tau, of one shape. Meant for r <= 1.

    In float64, where the square of a tiny tau does not underflow.
    """
    return (1 - gate.shortfall(u.double()) / gate.shortfall(tau.double())).clamp(0.0, 1.0).float()


def closed_value(gate: Gate, u: Tensor, tau: Tensor, log_r: Tensor) -> Tensor:
    """f(r) of the closed low side, all of one shape: the integral of `closed_slope` from f(1) = c / (2 tau).

    In float64, since f' and 1 cancel for small tau; right to 1e-5 down to tau = 1e-3.
    """
    u, tau, excess = u.double(), tau.double(), torch.expm1(log_r.double())
    gated = gate.scale / tau * (gate.distribution(u) - 0.5) - excess
    return (gate.scale / (2 * tau) + excess + gated / gate.shortfall(tau)).float()


def raised(gate: Gate, tau: Tensor, log_r: Tensor, acts: Tensor, closed: bool, target: float) -> Tensor:
    """[B, 1] factors s >= 1 for the temperatures tau [B, T]; log_r [B, T], acts [B, T] bool.

    s is the least factor with which the mean f' of a response, over the tokens that the gate acts on, is at most
    `target`: 1 if that is so already (or there is no such token), MAX_RAISE if none does it. Each response is
    taken by itself, so the result does not depend on which others share its micro-batch or rank.
    """
    excess = torch.expm1(log_r)
    count = acts.sum(dim=1, keepdim=True).clamp(min=1)

    def is_above(log_s: Tensor) -> Tensor:
        t = tau * log_s.exp()
        slope = gate.log_slope(t * excess).exp()
        if closed:
            slope = torch.where(log_r < 0, closed_slope(gate, t * excess, t), slope)
        # float64: padding to another T must not move the mean.
        return torch.where(acts, slope, 0.0).double().sum(dim=1, keepdim=True) / count > target

    low = torch.zeros_like(tau[:, :1])
    high = torch.full_like(low, math.log(MAX_RAISE))
    is_wide = is_above(low)
    for _ in range(RAISE_STEPS):
        middle = (low + high) / 2
        above = is_above(middle)
        low, high = torch.where(above, middle, low), torch.where(above, high, middle)
    return torch.where(is_wide, high.exp(), 1.0)
