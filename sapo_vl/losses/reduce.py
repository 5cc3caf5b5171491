"""From per-token losses to one number, with denominators counted over the whole batch.

A step's batch is split over micro-batches and ranks. Each piece divides by the counts of the WHOLE batch, so
that the sum of all pieces is the loss of the batch however it was split. Two things remain for the caller: to
sum the counts over micro-batches and ranks first, and to undo the averaging of gradients over ranks that
DeepSpeed does (multiply by the number of data-parallel ranks, and do not let it divide by accumulation
steps).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

Reduction = Literal["sequence_mean", "token_mean", "token_sum"]


@dataclass(frozen=True, slots=True)
class Denominators:
    """What a batch is divided by. The local ones of all micro-batches and ranks add up to the global."""

    num_sequences: int  # responses with at least one token in the mask
    num_tokens: int  # tokens in the mask
    constant: float | None = None  # the divisor of "token_sum", the same everywhere; None if that is not used

    def __add__(self, other: Denominators) -> Denominators:
        """Sum of the counts. Raises ValueError if the constants differ (they are one setting of the run)."""
        if self.constant != other.constant:
            raise ValueError(f"cannot add denominators with constants {self.constant} and {other.constant}")
        return Denominators(
            num_sequences=self.num_sequences + other.num_sequences,
            num_tokens=self.num_tokens + other.num_tokens,
            constant=self.constant,
        )


def count(mask: Tensor, constant: float | None = None) -> Denominators:
    """The local denominators of a bool mask [B, T]. A response without a token does not count."""
    return Denominators(num_sequences=int(mask.any(dim=1).sum()), num_tokens=int(mask.sum()), constant=constant)


def reduce(per_token: Tensor, mask: Tensor, how: Reduction, denominators: Denominators) -> Tensor:
    """This piece's share of the batch loss: a float32 scalar, to be SUMMED over micro-batches and ranks.

    per_token [B, T], mask [B, T] bool; denominators are those of the whole batch.

    sequence_mean  sum_i (1/|y_i| sum_t l_it) / num_sequences   every response weighs the same (SAPO Eq. 5)
    token_mean     sum_it l_it / num_tokens                     every token weighs the same (DAPO)
    token_sum      sum_it l_it / constant                       the same, with a divisor that never varies

    |y_i| counts the mask, so a response must not be split along T. A piece without tokens gives 0, still
    attached to the graph, so that every rank can call backward.

    Raises ValueError for a shape mismatch, an unknown `how`, or a denominator that is missing or not
    positive.
    """
    if per_token.shape != mask.shape or mask.dim() != 2:
        raise ValueError(f"per_token {tuple(per_token.shape)} and mask {tuple(mask.shape)} must be [B, T] of one shape")
    if mask.dtype != torch.bool:
        raise TypeError(f"mask must be bool, got {mask.dtype}; use mask.bool()")
    total = torch.where(mask, per_token.float(), 0.0)
    if how == "sequence_mean":
        length = mask.sum(dim=1).clamp(min=1)  # [B]
        return (total.sum(dim=1) / length).sum() / _positive(denominators.num_sequences, "num_sequences", how)
    if how == "token_mean":
        return total.sum() / _positive(denominators.num_tokens, "num_tokens", how)
    if how == "token_sum":
        return total.sum() / _positive(denominators.constant, "constant", how)
    raise ValueError(f"unknown reduction {how!r}; one of {list(get_args(Reduction))}")


def _positive(value: float | None, name: str, how: str) -> float:
    if value is None or not value > 0:
        raise ValueError(
            f"reduction {how!r} divides by denominators.{name}, which is {value}; "
            "skip a batch that has no token to train on, and set token_sum_constant for 'token_sum'"
        )
    return value
