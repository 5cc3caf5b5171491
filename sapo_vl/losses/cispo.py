"""CISPO: the importance weight is clipped, and no token is ever dropped. MiniMax-M1, arXiv 2506.13585, Eq. 4-5."""

from __future__ import annotations

from typing import ClassVar

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
)
from sapo_vl.losses.reduce import Reduction


class CispoConfig(LossParams):
    """Where the weight is cut. MiniMax-M1 names no number; a cap of 5 is TRL's, after ScaleRL (arXiv 2510.13786)."""

    own_reduction: ClassVar[Reduction] = "token_mean"

    eps_high: float = Field(default=4.0, gt=0, allow_inf_nan=False)
    """The weight is at most 1 + eps_high."""
    eps_low: float | None = Field(default=None, gt=0, lt=1)
    """The weight is at least 1 - eps_low; None = no lower end, as in the paper."""


def cispo(x: LossInput, config: CispoConfig) -> LossOutput:
    """Per-token CISPO loss, not reduced.

    value     -sg(w) A log pi_theta,   w = min(max(r, 1 - eps_low), 1 + eps_high)
    gradient  -A * w   w.r.t. log pi_theta, for both signs of A

    Metrics [B, T]: "ratio" r, "gate" w / r: 1 inside, (1 + eps_high) / r above, and with eps_low more than 1 below
    it (r is held at e^-20 there).
    """
    log_ratio, advantages = masked_log_ratio(x)
    floor = 0.0 if config.eps_low is None else 1.0 - config.eps_low
    ratio = bounded_ratio(log_ratio)
    weight = ratio.clamp(floor, 1.0 + config.eps_high)
    per_token = attach_gradient(-advantages * weight * masked_logprobs(x), -advantages * weight, log_ratio)
    divisor = bounded_ratio(log_ratio.clamp(min=-MAX_LOG_RATIO))
    return finish(per_token, x.mask, ratio=ratio, gate=divisor.clamp(floor, 1.0 + config.eps_high) / divisor)
