"""What one update minimises, as a function of a micro-batch's log-probs: a policy loss, or imitation."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from sapo_vl.distributed import World
from sapo_vl.learning.diagnostics import UpdateStats
from sapo_vl.learning.engine import Objective, ObjectiveFn
from sapo_vl.learning.mismatch import MismatchConfig, loss_weights
from sapo_vl.learning.mismatch_stats import MismatchStats
from sapo_vl.learning.token_record import TokenRecord
from sapo_vl.losses import Denominators, LossConfig, LossInput, kl_k3
from sapo_vl.losses.reduce import Reduction, reduce
from sapo_vl.model.batching import MicroBatch, groups_in

ReferenceFn = Callable[[MicroBatch], Tensor]  # micro-batch -> log-probs [N] of the frozen reference


def noted_reference(mb: MicroBatch) -> Tensor:
    """[N] what the reference said before the update."""
    assert mb.reference_logprobs is not None, "Reference.noted was not called"
    return mb.reference_logprobs


@dataclass(frozen=True, slots=True, kw_only=True)
class Mismatch:
    """How one update treats the gap between trainer and rollout engine (docs/mismatch.md)."""

    config: MismatchConfig = field(default_factory=MismatchConfig)
    stats: MismatchStats = field(default_factory=MismatchStats)  # of the step; the update adds to it
    # Which log-probs are the trainer's before the first update, to measure the gap with: the old ones, or the
    # current ones as long as no weight has changed. None = neither, the gap is not measured.
    measured: Literal["old", "current"] | None = None


@dataclass(frozen=True, slots=True)
class UpdateTokens:
    """Where one update puts what it saw of every token."""

    record: TokenRecord  # of the step
    update: int  # its number, from 1


def global_denominators(
    micro_batches: Sequence[MicroBatch], world: World, constant: float | None = None
) -> Denominators:
    """Counts over all micro-batches and ranks: what makes the loss independent of how the batch was split."""
    lengths = [len(r.response_ids) for group in groups_in(micro_batches) for r in group.rollouts]
    total = world.sum([len(lengths), sum(lengths)])
    return Denominators(num_sequences=int(total[0]), num_tokens=int(total[1]), constant=constant)


def policy_objective(
    config: LossConfig,
    denominators: Denominators,
    stats: UpdateStats,
    reference: ReferenceFn | None = None,
    mismatch: Mismatch | None = None,
    tokens: UpdateTokens | None = None,
) -> ObjectiveFn:
    """The configured loss, times the weights of `mismatch`, plus `kl_coef` times the k3 penalty with a reference.

    The weights stand outside the gate and leave the penalty alone: it is about pi_theta, not about who sampled.
    They do not touch the denominators either: a dropped token counts as a loss of 0. Divided by what is left
    instead, the other tokens would grow with the share dropped, and a response with one token left would weigh
    as much as a whole one.
    """
    function, params = config.loss_function(), config.loss_params()
    mismatch = mismatch or Mismatch()

    def objective(mb: MicroBatch, logprobs: Tensor, entropy: Tensor) -> Objective:
        mask = mb.mask()
        old, rollout_logprobs = mb.old(logprobs), mb.padded(mb.rollout_logprobs)
        x = LossInput(
            logprobs=mb.padded(logprobs),
            old_logprobs=mb.padded(old),
            advantages=mb.advantages[:, None].expand(mask.shape),
            mask=mask,
            rollout_logprobs=rollout_logprobs,
        )
        out = function(x, params)
        per_token = out.per_token
        weights = loss_weights(mismatch.config, x, rollout_logprobs)
        if weights is not None:
            # A plain product: the weights are finite, and a NaN of the trainer's own must not hide under a 0.
            per_token = per_token * weights.values
            mismatch.stats.add_weights(mb, weights)
        before_updates = {"old": old, "current": logprobs.detach(), None: None}[mismatch.measured]
        if before_updates is not None:
            mismatch.stats.add_gap(mb, before_updates - mb.rollout_logprobs)
        if reference is not None:
            ref = mb.padded(reference(mb))
            per_token = per_token + config.kl_coef * kl_k3(x.logprobs, ref, mask)
        stats.add(
            log_ratio=(x.logprobs - x.old_logprobs).detach(),
            gate=out.metrics["gate"],
            entropy=mb.padded(entropy),
            advantages=x.advantages,
            mask=mask,
            image=mb.with_image(),
        )
        if tokens is not None:
            tokens.record.add(
                mb,
                update=tokens.update,
                logprobs=logprobs.detach(),
                gate=out.metrics["gate"][mask],
                entropy=entropy,
                trainer=before_updates,
                counts=torch.ones_like(mask)[mask] if weights is None else weights.values[mask] > 0,
            )
        return Objective(
            loss=reduce(per_token, mask, config.reduction, denominators), finite=_finite_rows(per_token, mask)
        )

    return objective


def imitation_objective(reduction: Reduction, denominators: Denominators) -> ObjectiveFn:
    """Negative log-likelihood of the given responses."""

    def objective(mb: MicroBatch, logprobs: Tensor, entropy: Tensor) -> Objective:
        mask = mb.mask()
        per_token = -mb.padded(logprobs)
        return Objective(loss=reduce(per_token, mask, reduction, denominators), finite=_finite_rows(per_token, mask))

    return objective


def _finite_rows(per_token: Tensor, mask: Tensor) -> Tensor:
    """[B, T] -> [B] bool: whether all tokens of a response are finite."""
    return (torch.isfinite(per_token) | ~mask).all(dim=1)
