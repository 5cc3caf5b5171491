"""The smooth gates of SAPO's shape as one family: a scaled distribution function in place of a clip.

    f(r) = c / tau * F(u),   f'(r) = g(u),   u = tau * (r - 1)

F rises from 0 to 1 and is symmetric about F(0) = 1/2, g falls off on both sides of g(0) = 1, and c = 1 / F'(0)
makes f'(1) = 1 for every tau. So f(1) = c / (2 tau).

| gate     | F                             | c          | g                 | g at u = 1, 2, 4        |
|----------|-------------------------------|------------|-------------------|-------------------------|
| sigmoid  | 1 / (1 + exp(-u))             | 4          | sech^2(u / 2)     | 0.786, 0.420, 0.071     |
| erf      | (1 + erf(u / sqrt 2)) / 2     | sqrt(2 pi) | exp(-u^2 / 2)     | 0.607, 0.135, 0.0003    |
| arctan   | 1/2 + arctan(u) / pi          | pi         | 1 / (1 + u^2)     | 0.500, 0.200, 0.059     |
| softsign | (1 + u / sqrt(1 + u^2)) / 2   | 2          | (1 + u^2)^(-3/2)  | 0.354, 0.089, 0.014     |

sigmoid: SAPO, arXiv 2511.20347, Eq. 6. The others: arXiv 2602.19345, which asks of a gate that it is C1, largest
at r = 1, falls on both sides, and that f'(r) r -> 0. arctan's f'(r) r ~ 1 / (tau^2 r) is the slowest to go.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

GateName = Literal["sigmoid", "erf", "arctan", "softsign"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """One gate: elementwise functions of u = tau * (r - 1), of any shape."""

    scale: float  # c
    distribution: Callable[[Tensor], Tensor]  # F(u)
    log_slope: Callable[[Tensor], Tensor]  # log g(u): g underflows where g(u) * r need not
    shortfall: Callable[[Tensor], Tensor]  # 1 - g(u), exact where g is near 1


def _sigmoid_log_slope(u: Tensor) -> Tensor:
    return math.log(4.0) + F.logsigmoid(u) + F.logsigmoid(-u)


GATES: Mapping[GateName, Gate] = {
    "sigmoid": Gate(
        scale=4.0,
        distribution=torch.sigmoid,
        log_slope=_sigmoid_log_slope,
        shortfall=lambda u: torch.tanh(u / 2).square(),
    ),
    "erf": Gate(
        scale=math.sqrt(2 * math.pi),
        distribution=torch.special.ndtr,
        log_slope=lambda u: -u.square() / 2,
        shortfall=lambda u: -torch.expm1(-u.square() / 2),
    ),
    "arctan": Gate(
        scale=math.pi,
        distribution=lambda u: 0.5 + torch.atan(u) / math.pi,
        log_slope=lambda u: -torch.log1p(u.square()),
        shortfall=lambda u: 1 / (1 + u.reciprocal().square()),
    ),
    "softsign": Gate(
        scale=2.0,
        distribution=lambda u: 0.5 * (1 + u / torch.hypot(u, torch.ones_like(u))),
        log_slope=lambda u: -1.5 * torch.log1p(u.square()),
        shortfall=lambda u: -torch.expm1(-1.5 * torch.log1p(u.square())),
    ),
}
