"""Divergence Regularized Policy Optimization: a quadratic pull in place of DPPO's mask. arXiv 2606.09821, Eq. 8-9."""

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
    probability_shift,
    sampled,
)
from sapo_vl.losses.reduce import Reduction


class DrpoConfig(LossParams):
    """How far a probability may move before the token is pulled back."""

    own_reduction: ClassVar[Reduction] = "token_mean"
    weighs_by_rollout: ClassVar[bool] = True

    eps: float = Field(default=12.5, gt=0, allow_inf_nan=False)
    """abs(pi - mu) at which the weight of an outward step is 0. No probability moves by more than 1, so the paper's
    12.5 keeps every weight within 1 +- 0.08; only a value below 1 closes the gate."""


def drpo(x: LossInput, config: DrpoConfig) -> LossOutput:
    """Per-token DRPO loss, not reduced.

    value     -(r A - |A| mu (r - 1)^2 / (2 eps)),   r = pi_theta / mu,   mu: LossInput.rollout_logprobs
    gradient  -A * w * r   w.r.t. log pi_theta,      w = 1 - sign(A) (pi_theta - mu) / eps

    w falls below 1, and beyond eps below 0, on steps that the advantage asked for, and is above 1 on tokens that
    went the other way. Value and gradient are 0 where mu is not known. pi_old plays no part.

    Metrics [B, T]: "ratio" r, "gate" w, negative where a token is pulled back.
    """
    _, advantages = masked_log_ratio(x)
    to_mu = sampled(x)
    shift = probability_shift(to_mu)
    ratio = bounded_ratio(to_mu.log_ratio)
    excess = torch.expm1(to_mu.log_ratio.detach().clamp(max=MAX_LOG_RATIO))
    known = to_mu.known.float()
    gate = known * (1.0 - torch.sign(advantages) * shift / config.eps)
    value = known * (-advantages * ratio + advantages.abs() * shift * excess / (2 * config.eps))
    per_token = attach_gradient(value, -advantages * gate * ratio, to_mu.log_ratio)
    return finish(per_token, x.mask, ratio=ratio, gate=gate)
