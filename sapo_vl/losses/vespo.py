"""Variational Sequence-level Soft Policy Optimization: a weight of the whole response. arXiv 2602.10693."""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field

from sapo_vl.losses.base import (
    MAX_LOG_RATIO,
    LossInput,
    LossOutput,
    LossParams,
    attach_gradient,
    bounded_ratio,
    finish,
    masked_log_ratio,
    masked_logprobs,
    sampled,
)
from sapo_vl.losses.reduce import Reduction


class VespoConfig(LossParams):
    """Shape of the weight phi(W) = W^c1 exp(c2 (1 - W)), which is largest at W = c1 / c2. Defaults: the paper's."""

    own_reduction: ClassVar[Reduction] = "token_mean"
    weighs_by_rollout: ClassVar[bool] = True

    c1_pos: float = Field(default=2.0, gt=0, allow_inf_nan=False)
    """For responses with A > 0."""
    c2_pos: float = Field(default=3.0, gt=0, allow_inf_nan=False)
    """For responses with A > 0."""
    c1_neg: float = Field(default=3.0, gt=0, allow_inf_nan=False)
    """For those with A <= 0."""
    c2_neg: float = Field(default=2.0, gt=0, allow_inf_nan=False)
    """For those with A <= 0."""


def vespo(x: LossInput, config: VespoConfig) -> LossOutput:
    """Per-token VESPO loss, not reduced.

    W         prod_t pi_theta / mu over the response, without a root;   mu: LossInput.rollout_logprobs
    value     -sg[phi(W)] A log pi_theta
    gradient  -A * phi(W)   w.r.t. log pi_theta of each token: W and phi are constants

    A response whose mu is not known at some token has no W and counts as 0. log W is held at 20.

    Metrics [B, T]: "ratio" W, "gate" phi(W) / W, so that the gradient is -A * gate * ratio as everywhere. It is 1 at
    W = 1 and may be above: with c1 = 2, c2 = 3 up to 2.46 (at W = 1/3).
    """
    _, advantages = masked_log_ratio(x)
    to_mu = sampled(x)
    known = (to_mu.known | ~x.mask).all(dim=1, keepdim=True)
    # float64: padding to another T must not move a sum over thousands of tokens.
    log_w = to_mu.log_ratio.detach().double().sum(dim=1, keepdim=True).float().clamp(max=MAX_LOG_RATIO)
    positive = advantages > 0
    c1 = torch.full_like(advantages, config.c1_neg).masked_fill(positive, config.c1_pos)
    c2 = torch.full_like(advantages, config.c2_neg).masked_fill(positive, config.c2_pos)
    log_phi = c1 * log_w - c2 * torch.expm1(log_w)
    phi = known * log_phi.exp()
    per_token = attach_gradient(-advantages * phi * masked_logprobs(x), -advantages * phi, to_mu.log_ratio)
    ratio = bounded_ratio(log_w).expand_as(phi)
    # phi / W overflows for c1 < 1 and a W of 0, where the gradient is 0 all the same.
    return finish(per_token, x.mask, ratio=ratio, gate=known * (log_phi - log_w).clamp(max=MAX_LOG_RATIO).exp())
