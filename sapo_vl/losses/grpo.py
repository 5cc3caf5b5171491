"""Group Relative Policy Optimization: a clip per token. arXiv 2402.03300; arXiv 2511.20347, Eq. 24."""

from __future__ import annotations

import torch
from pydantic import Field
from torch import Tensor

from sapo_vl.losses.base import (
    LossInput,
    LossOutput,
    LossParams,
    attach_gradient,
    bounded_ratio,
    finish,
    masked_log_ratio,
)


class GrpoConfig(LossParams):
    """Clip range of the token ratio. Defaults: the GRPO baseline of the GSPO paper (arXiv 2507.18071)."""

    eps_low: float = Field(default=0.2, gt=0, lt=1)
    """Tokens with A <= 0 stop at r = 1 - eps_low."""
    eps_high: float = Field(default=0.27, gt=0, allow_inf_nan=False)
    """Tokens with A > 0 stop at r = 1 + eps_high."""


def clip_one_sided(ratio: Tensor, advantages: Tensor, eps_low: float, eps_high: float) -> tuple[Tensor, Tensor]:
    """f(r) and f'(r) of min(r A, clip(r, 1 - eps_low, 1 + eps_high) A) = f(r) A; all of one shape.

    f = min(r, 1 + eps_high) for A > 0 and max(r, 1 - eps_low) otherwise: the clip only stops a token that
    already moved far in the direction its advantage asks for, and never a token on its way back.
    """
    positive = advantages > 0
    value = torch.where(positive, ratio.clamp(max=1.0 + eps_high), ratio.clamp(min=1.0 - eps_low))
    is_open = torch.where(positive, ratio <= 1.0 + eps_high, ratio >= 1.0 - eps_low)
    return value, is_open.float()


def grpo(x: LossInput, config: GrpoConfig) -> LossOutput:
    """Per-token clipped loss, not reduced.

    value     -min(r A, clip(r, 1 - eps_low, 1 + eps_high) A)
    gradient  -A * r   w.r.t. log pi_theta where the clip is open, else 0

    For A < 0 the value has no bound as r grows; r is held at e^20 in both value and gradient, so both stay
    finite.

    Metrics [B, T]: "ratio" r, "gate" 1 where the clip is open, else 0 (their mean is 1 - clip fraction).
    """
    log_ratio, advantages = masked_log_ratio(x)
    ratio = bounded_ratio(log_ratio)
    value, gate = clip_one_sided(ratio, advantages, config.eps_low, config.eps_high)
    per_token = attach_gradient(-advantages * value, -advantages * gate * ratio, log_ratio)
    return finish(per_token, x.mask, ratio=ratio, gate=gate)
