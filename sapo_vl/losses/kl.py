"""A penalty that keeps the policy near a frozen reference."""

from __future__ import annotations

import torch
from torch import Tensor

from sapo_vl.losses.base import MAX_LOG_RATIO, attach_gradient


def kl_k3(logprobs: Tensor, ref_logprobs: Tensor, mask: Tensor) -> Tensor:
    """Per-token k3 estimate of KL(pi_theta || pi_ref), [B, T] float32, 0 where the mask is False.

    logprobs (with gradient), ref_logprobs (a constant) and mask (bool) are [B, T].

    value     exp(d) - d - 1 >= 0,   d = log pi_ref - log pi_theta    (k3; GRPO, arXiv 2402.03300, Eq. 4)
    gradient  1 - exp(d)   w.r.t. log pi_theta

    In expectation over tokens of pi_theta the value is the KL above, while its gradient is that of KL(pi_ref
    || pi_theta). exp(d) is held at e^20, in the value and in the gradient, which therefore stay finite and
    keep their sign.

    Raises ValueError if the shapes differ, TypeError if the mask is not bool.
    """
    if not logprobs.shape == ref_logprobs.shape == mask.shape:
        raise ValueError(
            f"kl_k3 needs three tensors of one shape, got logprobs {tuple(logprobs.shape)}, "
            f"ref_logprobs {tuple(ref_logprobs.shape)}, mask {tuple(mask.shape)}"
        )
    if mask.dtype != torch.bool:
        raise TypeError(f"mask must be bool, got {mask.dtype}; use mask.bool()")
    d = torch.where(mask, ref_logprobs.detach().float() - logprobs.float(), 0.0)
    bounded = d.detach().clamp(max=MAX_LOG_RATIO)
    excess = torch.expm1(bounded)  # exp(d) - 1
    value = (excess - bounded).clamp(min=0.0)  # expm1 may round to just below d when d is tiny
    # d falls as log pi_theta rises, so d(value)/d(d) = excess gives the gradient 1 - exp(d) above.
    return torch.where(mask, attach_gradient(value, excess, d), 0.0)
