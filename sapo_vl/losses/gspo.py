"""Group Sequence Policy Optimization: one ratio and one clip per response. arXiv 2507.18071."""

from __future__ import annotations

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
from sapo_vl.losses.grpo import clip_one_sided


class GspoConfig(LossParams):
    """Clip range of the sequence ratio, which moves far less than a token ratio. Defaults: GSPO paper."""

    eps_low: float = Field(default=3e-4, gt=0, lt=1)
    """Responses with A <= 0 stop at s = 1 - eps_low."""
    eps_high: float = Field(default=4e-4, gt=0, allow_inf_nan=False)
    """Responses with A > 0 stop at s = 1 + eps_high."""


def sequence_log_ratio(log_ratio: Tensor, mask: Tensor) -> Tensor:
    """log s_i = 1/|y_i| sum_t log r_it over the mask; [B, T] -> [B, 1]. 0 for a response without a token."""
    return log_ratio.sum(dim=1, keepdim=True) / mask.sum(dim=1, keepdim=True).clamp(min=1)


def gspo(x: LossInput, config: GspoConfig) -> LossOutput:
    """GSPO loss, written at every token of the response, not reduced.

    ratio     s_i = (pi_theta(y_i) / pi_old(y_i))^(1/|y_i|)
    value     -min(s_i A, clip(s_i, 1 - eps_low, 1 + eps_high) A)
    gradient  of one entry: -A * s_i / |y_i| w.r.t. the log-prob of EVERY token of the response while
              the clip is open, else 0

    With "sequence_mean" this is the paper's objective (one term per response). Log-probs in bfloat16 are too
    coarse for clip ranges of 1e-4; pass float32.

    Metrics [B, T]: "ratio" s_i, "gate" 1 where the clip is open, else 0.
    """
    log_ratio, advantages = masked_log_ratio(x)
    log_s = sequence_log_ratio(log_ratio, x.mask).expand_as(log_ratio)
    return _clipped(x, config, advantages, log_s, log_s)


def gspo_token(x: LossInput, config: GspoConfig) -> LossOutput:
    """GSPO-token loss, not reduced: the value of `gspo`, but each token answers for itself.

    ratio     s_it = sg[s_i] * pi_theta(y_it) / sg[pi_theta(y_it)]   (equal to s_i in value)
    gradient  of one entry: -A_it * s_i w.r.t. that token's own log-prob while its clip is open, else 0

    Reduced, value and gradient equal `gspo` if all tokens of a response share one advantage; here they need
    not.

    Metrics [B, T]: "ratio" s_i, "gate" 1 where the clip is open, else 0.
    """
    log_ratio, advantages = masked_log_ratio(x)
    log_s = sequence_log_ratio(log_ratio.detach(), x.mask).expand_as(log_ratio)
    return _clipped(x, config, advantages, log_s, log_ratio)


def _clipped(x: LossInput, config: GspoConfig, advantages: Tensor, log_s: Tensor, wrt: Tensor) -> LossOutput:
    """The clipped loss at ratio exp(log_s) with its gradient sent to `wrt`; all tensors [B, T]."""
    ratio = bounded_ratio(log_s)
    value, gate = clip_one_sided(ratio, advantages, config.eps_low, config.eps_high)
    per_token = attach_gradient(-advantages * value, -advantages * gate * ratio, wrt)
    return finish(per_token, x.mask, ratio=ratio, gate=gate)
