"""What a policy loss takes and returns, and the helpers every loss is written with.

Every loss here is a surrogate of the form `-A * f(r)` with r = pi_theta / pi_old, whose gradient with respect
to log pi_theta is `-A * f'(r) * r` (SAPO paper, arXiv 2511.20347, Eq. 15), or can be read as one: where a paper
has `-sg(w) A log pi_theta`, f'(r) = w / r. A loss computes value and gradient itself and joins them with
`attach_gradient`, because automatic differentiation of f loses the gradient to overflow (inf * 0) or to
underflow long before the true value is negligible.

Shapes: B responses, T token positions (right- or left-padded; the mask says which positions count).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from sapo_vl.losses.reduce import Reduction
from sapo_vl.strict import Strict

# r is held at e^20 = 4.9e8 above this log-ratio. exp() overflows float32 at 88.7; at 20 the product of a
# ratio, an advantage and a sum over 1e6 tokens still fits with room to spare. There is no lower bound: exp()
# underflows to 0.
MAX_LOG_RATIO = 20.0

# "ratio" is the importance ratio of the loss; "gate" is f'(ratio): SAPO's weight, 1 or 0 for a clip. So the
# gradient of a token is -A * gate * ratio (spread over its response, where the ratio is the response's). The mean
# of "gate" over tokens is the effective update ratio, which for a clip is 1 - clip fraction.
REQUIRED_METRICS = ("ratio", "gate")


class LossParams(Strict):
    """The base of every loss's settings, with what is fixed about the loss."""

    own_reduction: ClassVar[Reduction] = "sequence_mean"
    """How it is reduced where the run's config does not say (losses/reduce.py)."""
    weighs_by_rollout: ClassVar[bool] = False
    """Whether it reads LossInput.rollout_logprobs, and so makes up for the rollout engine itself."""


@dataclass(frozen=True, slots=True)
class LossInput:
    """One micro-batch of response tokens. Any floating dtype; losses convert to float32 before they subtract.

    Most losses know pi_old alone. Those with LossParams.weighs_by_rollout need the sampling law too.

    Raises TypeError for a dtype and ValueError for a shape that does not fit.
    """

    logprobs: Tensor  # [B, T] log pi_theta of the sampled tokens, carries the gradient
    old_logprobs: Tensor  # [B, T] log pi_old of the same tokens, a constant (its gradient is cut)
    advantages: Tensor  # [B, T] a constant too; usually one value per response, repeated along T
    mask: Tensor  # [B, T] bool, True where a token takes part; elsewhere the rest may hold NaN
    # [B, T] log mu, mu the law that was sampled from, a constant, as the engine recorded it (NaN where that is
    # nonsense); None = pi_old is that law
    rollout_logprobs: Tensor | None = None

    def __post_init__(self) -> None:
        if self.logprobs.dim() != 2:
            raise ValueError(f"logprobs must be [B, T], got shape {tuple(self.logprobs.shape)}")
        given = ("rollout_logprobs",) if self.rollout_logprobs is not None else ()
        for name in ("old_logprobs", "advantages", "mask", *given):
            shape = getattr(self, name).shape
            if shape != self.logprobs.shape:
                raise ValueError(
                    f"{name} has shape {tuple(shape)}, logprobs has {tuple(self.logprobs.shape)}; "
                    "all are [B, T] (repeat a per-response advantage along T)"
                )
        for name in ("logprobs", "old_logprobs", "advantages", *given):
            dtype = getattr(self, name).dtype
            if not dtype.is_floating_point:
                raise TypeError(f"{name} must be floating point, got {dtype}")
        if self.mask.dtype != torch.bool:
            raise TypeError(f"mask must be bool, got {self.mask.dtype}; use mask.bool()")


@dataclass(frozen=True, slots=True)
class LossOutput:
    """The unreduced loss (see losses/reduce.py for the sum) and what to log about it.

    Raises ValueError if a loss returns the wrong shape, dtype, or metrics.
    """

    per_token: Tensor  # [B, T] float32, to be minimised; 0 where the mask is False
    metrics: Mapping[str, Tensor]  # each [B, T], detached, 0 where the mask is False; see REQUIRED_METRICS

    def __post_init__(self) -> None:
        if self.per_token.dim() != 2 or self.per_token.dtype != torch.float32:
            raise ValueError(
                f"per_token must be [B, T] float32, got {tuple(self.per_token.shape)} {self.per_token.dtype}"
            )
        missing = [name for name in REQUIRED_METRICS if name not in self.metrics]
        if missing:
            raise ValueError(f"metrics lack {missing}; every loss reports {list(REQUIRED_METRICS)}")
        for name, value in self.metrics.items():
            if value.shape != self.per_token.shape:
                raise ValueError(
                    f"metric {name!r} has shape {tuple(value.shape)}, per_token {tuple(self.per_token.shape)}"
                )
            if value.requires_grad:
                raise ValueError(f"metric {name!r} carries a gradient; detach it")


def masked_log_ratio(x: LossInput) -> tuple[Tensor, Tensor]:
    """(log pi_theta - log pi_old, advantages), both [B, T] float32 and 0 where the mask is False.

    The zeros are put in with `where`, so that NaN or inf under the mask reaches neither the value nor the
    gradient (a product with the mask would give NaN * 0 = NaN).
    """
    log_ratio = torch.where(x.mask, x.logprobs.float() - x.old_logprobs.detach().float(), 0.0)
    advantages = torch.where(x.mask, x.advantages.detach().float(), 0.0)
    return log_ratio, advantages


def masked_logprobs(x: LossInput) -> Tensor:
    """log pi_theta [B, T] float32, detached, 0 where the mask is False: for the value of `-sg(w) A log pi_theta`."""
    return torch.where(x.mask, x.logprobs.detach().float(), 0.0)


@dataclass(frozen=True, slots=True)
class Sampled:
    """pi_theta against the sampling law mu; all [B, T], float32 and 0 (False) where the mask is False."""

    log_ratio: Tensor  # log pi_theta - log mu, carries the gradient; 0 where mu is not known
    log_mu: Tensor  # 0 where mu is not known
    known: Tensor  # bool, the engine gave a number


def sampled(x: LossInput) -> Sampled:
    """The two laws that a loss with `weighs_by_rollout` compares.

    Where the engine's log-prob is NaN or infinite the weight pi_theta / mu is unknown, and the loss must let the
    token go (0, as the corrections in learning/mismatch.py do). A NaN of the trainer's own still comes through
    as one in `log_ratio`.
    """
    log_mu = (x.old_logprobs if x.rollout_logprobs is None else x.rollout_logprobs).detach().float()
    logprobs = x.logprobs.float()
    known = x.mask & torch.isfinite(log_mu)
    log_ratio = torch.where(x.mask, logprobs - torch.where(known, log_mu, logprobs.detach()), 0.0)
    return Sampled(log_ratio=log_ratio, log_mu=torch.where(known, log_mu, 0.0), known=known)


def bounded_ratio(log_ratio: Tensor) -> Tensor:
    """r = exp(log r), held at e^MAX_LOG_RATIO above it. Same shape, detached."""
    return log_ratio.detach().clamp(max=MAX_LOG_RATIO).exp()


def probability_shift(s: Sampled) -> Tensor:
    """pi_theta - mu of the sampled tokens, [B, T], detached, with pi_theta / mu held as in `bounded_ratio`.

    As mu (r - 1), which loses nothing where both laws nearly agree.
    """
    return s.log_mu.clamp(max=0.0).exp() * torch.expm1(s.log_ratio.detach().clamp(max=MAX_LOG_RATIO))


def attach_gradient(value: Tensor, coefficient: Tensor, wrt: Tensor) -> Tensor:
    """A tensor equal to `value` whose derivative with respect to `wrt` is exactly `coefficient`.

    value, coefficient and wrt broadcast; only `wrt` keeps its graph. All must be finite.
    """
    return value.detach() + coefficient.detach() * (wrt - wrt.detach())


def finish(per_token: Tensor, mask: Tensor, **metrics: Tensor) -> LossOutput:
    """LossOutput with everything set to 0 where the mask [B, T] is False."""
    return LossOutput(
        per_token=torch.where(mask, per_token, 0.0),
        metrics={name: torch.where(mask, value.detach(), 0.0) for name, value in metrics.items()},
    )
