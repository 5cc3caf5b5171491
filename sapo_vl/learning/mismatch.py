"""Weights for the gap between trainer and rollout engine: pure functions, applied outside the gate.

For the same weights a rollout engine computes other log-probs than the trainer (kernels, precision, routing);
with rollouts made ahead of time also from older weights. Either way samples come from pi_rollout, while the
loss takes them for samples of pi_old, the trainer's law before the first update of the batch. The ratio

    rho_t = pi_old(y_t) / pi_rollout(y_t)

makes up for it as a weight of token t's loss, and a correction says how far it is trusted. The gate of the
loss still sees r_t = pi_theta / pi_old alone. docs/mismatch.md has the whole picture, with a table of sources.

Every correction is `(log_rho [B, T], mask [B, T] bool, (low, high)) -> weights [B, T]`: float32, detached,
finite, 0 = dropped, 0 where the mask is False. A log_rho that is not finite (the engine gave nonsense) gets the
weight 0: alone in a token correction, with its whole response in a sequence correction, where a product with
an unknown factor is unknown. It never reaches another response.

This file needs torch and pydantic only. To add a correction: a function here, a row in CORRECTIONS, a window of
the same name in MismatchConfig and a name in Correction.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
from pydantic import Field, model_validator
from torch import Tensor

from sapo_vl.losses.base import LossInput, bounded_ratio
from sapo_vl.strict import Strict

Correction = Literal["none", "token_tis", "token_mask", "sequence_mask", "icepop", "geometric_mask"]
Window = tuple[float, float]  # (low, high), both ends inside


def token_tis(log_rho: Tensor, mask: Tensor, window: Window) -> Tensor:
    """Truncated importance sampling: w_t = min(max(rho_t, low), high).

    Yao et al., "Your Efficient RL Framework Secretly Brings You Off-Policy RL Training", 2025: low 0, high 2.
    """
    return torch.where(_known(log_rho, mask), _rho(log_rho).clamp(*window), 0.0)


def token_mask(log_rho: Tensor, mask: Tensor, window: Window) -> Tensor:
    """Masked importance sampling: w_t = rho_t if low <= rho_t <= high, else 0.

    Liu et al., "When Speed Kills Stability", 2025 (token-level MIS, low 0). With low > 0 it is IcePop (Ring-1T,
    arXiv 2510.18855): a token that the trainer finds far less likely than the engine did is dropped too.
    """
    rho = _rho(log_rho)
    return torch.where(_known(log_rho, mask) & _inside(rho, window), rho, 0.0)


def sequence_mask(log_rho: Tensor, mask: Tensor, window: Window) -> Tensor:
    """Sequence-level MIS: w_t = rho_y if low <= rho_y <= high, else 0, with rho_y = prod_t rho_t.

    Liu et al. (as above). rho_y of a long response is far from 1 even for a small gap per token, so long
    responses are dropped, or weighed down, more often than short ones.
    """
    rho = _sum(log_rho, mask).exp()  # [B, 1] float64: infinity is outside of every window
    kept = mask & _all_known(log_rho, mask) & _inside(rho, window)
    return torch.where(kept, rho.float(), 0.0)


def geometric_mask(log_rho: Tensor, mask: Tensor, window: Window) -> Tensor:
    """w_t = rho_t if low <= (prod_t rho_t)^(1/|y|) <= high, else 0 for the whole response.

    "seq-mask-tis" of NeMo RL and OpenRLHF; Liu et al., "When Speed Kills Stability", part 3, for the mean. The
    mean does not shrink or grow with length. It hides a single token: rho_t itself has no bound but e^20.
    """
    mean = _sum(log_rho, mask) / mask.sum(dim=1, keepdim=True).clamp(min=1)
    kept = mask & _all_known(log_rho, mask) & _inside(mean.exp(), window)
    return torch.where(kept, _rho(log_rho), 0.0)


def off_policy_mask(
    logprobs: Tensor, rollout_logprobs: Tensor, advantages: Tensor, mask: Tensor, delta: float
) -> Tensor:
    """1 where a token stays, 0 where it is dropped (and where the mask is False); all [B, T].

    Dropped: A_t < 0 in a response with (1/|y|) sum_t (log pi_rollout - log pi_theta) > delta. DeepSeek-V3.2
    (arXiv 2512.02556, Eq. 9), whose pi_old is "the sampling probability directly returned by the inference
    framework", that is pi_rollout here: one statistic for the engine's gap, staleness and the updates so far.
    A response whose statistic is not finite is dropped where A < 0.
    """
    log_ratio = rollout_logprobs.detach().float() - logprobs.detach().float()
    mean = _sum(log_ratio, mask) / mask.sum(dim=1, keepdim=True).clamp(min=1)
    near = _all_known(log_ratio, mask) & (mean <= delta)
    return (mask & (near | (advantages.detach() >= 0))).float()


# "icepop" is token_mask with a lower end: the functions are one, the windows in MismatchConfig differ.
CORRECTIONS: Mapping[str, Callable[[Tensor, Tensor, Window], Tensor]] = {
    "token_tis": token_tis,
    "token_mask": token_mask,
    "sequence_mask": sequence_mask,
    "icepop": token_mask,
    "geometric_mask": geometric_mask,
}


class MismatchConfig(Strict):
    """What to do about the gap between trainer and rollout engine. A window is (low, high), both ends inside."""

    correction: Correction = "none"
    """A key of CORRECTIONS. All but "none" need rollout.old_logprobs=trainer: otherwise rho is 1."""
    token_tis: Window = (0.0, 2.0)
    """A token's rho is moved to the nearer end (2 as in TIS and verl; MiniRL, arXiv 2512.01374, has 5)."""
    token_mask: Window = (0.0, 2.0)
    """Tokens with rho outside are dropped."""
    sequence_mask: Window = (0.0, 3.0)
    """Responses with prod rho outside are dropped (3 is TRL's default)."""
    icepop: Window = (0.5, 5.0)
    """Tokens with rho outside are dropped (Ring-1T)."""
    geometric_mask: Window = (0.999, 1.002)
    """Responses with a geometric mean of rho outside are dropped (NeMo RL)."""
    off_policy_delta: float = Field(default=0.0, ge=0, allow_inf_nan=False)
    """Responses with A < 0 and mean(log pi_rollout - log pi_theta) above this are dropped; 0 = off. Goes with every
    correction and either rollout.old_logprobs. 0.5 is what TRL suggests."""

    @model_validator(mode="after")
    def _check(self) -> MismatchConfig:
        for name in CORRECTIONS:
            low, high = window = getattr(self, name)
            if not 0 <= low <= 1 <= high < math.inf:
                raise ValueError(
                    f"mismatch.{name}={list(window)}: a window is [low, high] with 0 <= low <= 1 <= high < inf; rho is "
                    "1 where trainer and engine agree"
                )
            if name != self.correction and window != type(self).model_fields[name].default:
                raise ValueError(
                    f"mismatch.{name}={list(window)} has no effect with mismatch.correction={self.correction}; remove "
                    f"it or set mismatch.correction={name}"
                )
        return self


@dataclass(frozen=True, slots=True, kw_only=True)
class LossWeights:
    """What the loss of each token is multiplied with, and what to count about it."""

    values: Tensor  # [B, T] float32, detached and finite; 0 = dropped, 0 where the mask is False
    truncated: Tensor  # [B, T] bool, kept tokens whose rho token_tis has moved
    off_policy: Tensor  # [B] bool, responses that lost tokens to the off-policy mask


def loss_weights(config: MismatchConfig, x: LossInput, rollout_logprobs: Tensor) -> LossWeights | None:
    """The weights of a micro-batch; rollout_logprobs [B, T] as the engine recorded them. None if all is off."""
    if config.correction == "none" and config.off_policy_delta == 0:
        return None
    values, truncated = x.mask.float(), torch.zeros_like(x.mask)
    if config.correction != "none":
        window: Window = getattr(config, config.correction)
        log_rho = x.old_logprobs.detach().float() - rollout_logprobs.detach().float()
        values = CORRECTIONS[config.correction](log_rho, x.mask, window)
        if config.correction == "token_tis":
            truncated = _known(log_rho, x.mask) & ~_inside(_rho(log_rho), window)
    off_policy = torch.zeros_like(x.mask[:, 0])
    if config.off_policy_delta > 0:
        stays = off_policy_mask(x.logprobs, rollout_logprobs, x.advantages, x.mask, config.off_policy_delta)
        off_policy = (x.mask & (stays == 0)).any(dim=1)
        values, truncated = values * stays, truncated & (stays > 0)
    return LossWeights(values=values, truncated=truncated, off_policy=off_policy)


def _rho(log_rho: Tensor) -> Tensor:
    """rho, held at e^20 as the ratios of the losses are; [B, T] float32, detached. NaN stays NaN."""
    return bounded_ratio(log_rho.float())


def _known(log_rho: Tensor, mask: Tensor) -> Tensor:
    return mask & torch.isfinite(log_rho)


def _all_known(log_rho: Tensor, mask: Tensor) -> Tensor:
    """[B, T] -> [B, 1] bool: no token of the response is unknown."""
    return (torch.isfinite(log_rho) | ~mask).all(dim=1, keepdim=True)


def _inside(rho: Tensor, window: Window) -> Tensor:
    """False for NaN."""
    return (rho >= window[0]) & (rho <= window[1])


def _sum(log_rho: Tensor, mask: Tensor) -> Tensor:
    """[B, T] -> [B, 1] float64: padding to another T must not move a response over the edge of a window."""
    return torch.where(mask, log_rho.detach(), 0.0).double().sum(dim=1, keepdim=True)
