"""Divergence Proximal Policy Optimization: a mask by how far the probability has moved. arXiv 2602.04879."""

from __future__ import annotations

from typing import ClassVar, Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from sapo_vl.losses.base import (
    LossInput,
    LossOutput,
    LossParams,
    Sampled,
    attach_gradient,
    bounded_ratio,
    finish,
    masked_log_ratio,
    probability_shift,
    sampled,
)
from sapo_vl.losses.reduce import Reduction


class DppoConfig(LossParams):
    """Which divergence of "this token or another" closes the mask, and from where on. Defaults: the paper's."""

    own_reduction: ClassVar[Reduction] = "token_mean"
    weighs_by_rollout: ClassVar[bool] = True

    divergence: Literal["tv", "kl"] = "tv"
    """"tv": abs(pi - mu). "kl": mu log(mu / pi) + (1 - mu) log((1 - mu) / (1 - pi))."""
    d_tv: float = Field(default=0.2, gt=0, lt=1)
    """Largest "tv"."""
    d_kl: float = Field(default=0.05, gt=0, allow_inf_nan=False)
    """Largest "kl"."""
    truncation: float = Field(default=20.0, ge=1, allow_inf_nan=False)
    """The weight pi_theta / mu is at most this (the authors' code)."""

    @model_validator(mode="after")
    def _check(self) -> DppoConfig:
        other = "d_kl" if self.divergence == "tv" else "d_tv"
        if getattr(self, other) != type(self).model_fields[other].default:
            raise ValueError(f"{other}={getattr(self, other)} has no effect with divergence={self.divergence}")
        return self


def dppo(x: LossInput, config: DppoConfig) -> LossOutput:
    """Per-token DPPO loss, not reduced.

    value     -M w A,   w = min(r, truncation), r = pi_theta / mu,   mu: LossInput.rollout_logprobs
    gradient  -A * M * w   w.r.t. log pi_theta

    M is 0 where the divergence between pi_theta and mu on the sampled token is above its limit and the step went
    the way the advantage asks for (A > 0 and pi_theta > mu, or A < 0 and pi_theta < mu), else 1, and a constant.
    M = 0 also where mu is not known. pi_old plays no part.

    A limit on a probability, not on a ratio: a token of 0.001 may become any number of times as likely that the
    truncation allows, one of 0.9 may fall to 0.7.

    Metrics [B, T]: "ratio" r, "gate" M * w / r: M, and less where the weight is truncated.
    """
    _, advantages = masked_log_ratio(x)
    to_mu = sampled(x)
    if config.divergence == "tv":
        far = probability_shift(to_mu).abs() > config.d_tv
    else:
        far = binary_kl(to_mu) > config.d_kl
    outward = advantages * to_mu.log_ratio.detach() > 0
    is_open = (to_mu.known & ~(far & outward)).float()
    ratio = bounded_ratio(to_mu.log_ratio)
    weight = is_open * ratio.clamp(max=config.truncation)
    per_token = attach_gradient(-advantages * weight, -advantages * weight, to_mu.log_ratio)
    return finish(per_token, x.mask, ratio=ratio, gate=is_open * (config.truncation / ratio).clamp(max=1.0))


def binary_kl(s: Sampled) -> Tensor:
    """KL(mu || pi_theta) of the event "this token or another", [B, T], detached and finite."""
    log_mu = s.log_mu.clamp(max=0.0)
    log_pi = (s.log_mu + s.log_ratio.detach()).clamp(max=0.0)
    return log_mu.exp() * (log_mu - log_pi) + _others(log_mu) * (_others(log_mu).log() - _others(log_pi).log())


def _others(log_p: Tensor) -> Tensor:
    """1 - p, at least the smallest float so that it has a logarithm."""
    return (-torch.expm1(log_p)).clamp(min=torch.finfo(torch.float32).tiny)
