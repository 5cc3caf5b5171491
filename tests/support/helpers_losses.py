"""What tests of losses share: one call of a loss, and random batches."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sapo_vl.losses import LOSSES, LossInput, LossOutput


def run(name: str, logprobs, old, advantages, mask=None, rollout=None, **params) -> tuple[LossOutput, Tensor]:
    """The loss on [B, T] data and the gradient [B, T] of the plain sum of its entries.

    `rollout`: what the engine recorded; None = pi_old is the law that was sampled from.
    """
    logprobs = torch.as_tensor(logprobs).clone().requires_grad_()
    old, advantages = torch.as_tensor(old), torch.as_tensor(advantages)
    mask = torch.ones_like(logprobs, dtype=torch.bool) if mask is None else torch.as_tensor(mask)
    rollout = None if rollout is None else torch.as_tensor(rollout)
    function, config_class = LOSSES[name]
    output = function(LossInput(logprobs, old, advantages, mask, rollout), config_class(**params))
    (grad,) = torch.autograd.grad(output.per_token.sum(), logprobs)
    return output, grad


def at_ratio(name: str, ratio: float, advantage: float, **params) -> tuple[float, float, float]:
    """(value, gradient, gate) of one token with the given ratio and advantage."""
    output, grad = run(name, [[math.log(ratio) - 1.0]], [[-1.0]], [[advantage]], **params)
    return output.per_token.item(), grad.item(), output.metrics["gate"].item()


def random_batch(seed: int, spread: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Ragged float32 (logprobs, old, advantages, mask) [5, 7]; log-ratios have the given spread."""
    generator = torch.Generator().manual_seed(seed)
    old = -3 * torch.rand(5, 7, generator=generator)
    logprobs = old + spread * torch.randn(5, 7, generator=generator)
    advantages = torch.randn(5, 1, generator=generator).expand(5, 7).clone()
    lengths = torch.randint(1, 8, (5, 1), generator=generator)
    return logprobs, old, advantages, torch.arange(7) < lengths


def random_gap(seed: int, old: Tensor, spread: float = 0.1) -> Tensor:
    """What an engine that is off by `spread` would have recorded for tokens with these log-probs."""
    return old + spread * torch.randn(old.shape, generator=torch.Generator().manual_seed(seed))
