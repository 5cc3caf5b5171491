"""MiniRL: a weighted policy gradient with a mask. "Stabilizing RL with LLMs", arXiv 2512.01374, Eq. 7."""

from __future__ import annotations

from typing import ClassVar

import torch
from pydantic import Field

from sapo_vl.losses.base import (
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
from sapo_vl.losses.grpo import clip_one_sided
from sapo_vl.losses.reduce import Reduction


class MiniRlConfig(LossParams):
    """Mask and truncation. Defaults: the paper's (Sec. 4.1)."""

    own_reduction: ClassVar[Reduction] = "token_sum"
    weighs_by_rollout: ClassVar[bool] = True

    eps_low: float = Field(default=0.2, gt=0, lt=1)
    """Tokens with A < 0 are dropped below pi_theta / pi_old = 1 - eps_low."""
    eps_high: float = Field(default=0.27, gt=0, allow_inf_nan=False)
    """Tokens with A > 0 are dropped above pi_theta / pi_old = 1 + eps_high."""
    truncation: float = Field(default=5.0, ge=1, allow_inf_nan=False)
    """The weight pi_theta / mu is at most this."""


def minirl(x: LossInput, config: MiniRlConfig) -> LossOutput:
    """Per-token MiniRL loss, not reduced.

    value     -M w A log pi_theta,   w = sg[min(pi_theta / mu, truncation)],   mu: LossInput.rollout_logprobs
    gradient  -A * M * w   w.r.t. log pi_theta

    M is 0 where r = pi_theta / pi_old has left GRPO's clip range in the direction of the advantage, else 1, and a
    constant too. M = 0 also where mu is not known. There is no 1/|y|: with "token_sum" a response counts by its
    length. The paper's advantage is R - mean(R) (advantage.scale=none).

    Metrics [B, T]: "ratio" pi_theta / mu, "gate" M * w / ratio: M, and less where the weight is truncated.
    """
    to_old, advantages = masked_log_ratio(x)
    to_mu = sampled(x)
    _, is_open = clip_one_sided(bounded_ratio(to_old), advantages, config.eps_low, config.eps_high)
    # A log-prob of the trainer that is no number compares as False: it must not pass for a closed mask.
    is_open = torch.where(to_mu.known, is_open + 0.0 * to_old.detach(), 0.0)
    ratio = bounded_ratio(to_mu.log_ratio)
    weight = is_open * ratio.clamp(max=config.truncation)
    per_token = attach_gradient(-advantages * weight * masked_logprobs(x), -advantages * weight, to_mu.log_ratio)
    return finish(per_token, x.mask, ratio=ratio, gate=is_open * (config.truncation / ratio).clamp(max=1.0))
