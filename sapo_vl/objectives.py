"""What one update minimises, as a function of a micro-batch's log-probs: a policy loss, or imitation."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from sapo_vl.batching import MicroBatch
from sapo_vl.diagnostics import UpdateStats
from sapo_vl.distributed import World
from sapo_vl.engine import Objective, ObjectiveFn
from sapo_vl.losses import Denominators, LossConfig, LossInput, kl_k3
from sapo_vl.losses.reduce import Reduction, reduce

ReferenceFn = Callable[[MicroBatch], Tensor]  # micro-batch -> log-probs [N] of the frozen reference


def global_denominators(
    micro_batches: Sequence[MicroBatch], world: World, constant: float | None = None
) -> Denominators:
    """Counts over all micro-batches and ranks: what makes the loss independent of how the batch was split."""
    sequences = sum(len(mb.lengths) for mb in micro_batches)
    tokens = sum(len(mb.targets) for mb in micro_batches)
    total = world.sum([sequences, tokens])
    return Denominators(num_sequences=int(total[0]), num_tokens=int(total[1]), constant=constant)


def policy_objective(
    config: LossConfig, denominators: Denominators, stats: UpdateStats, reference: ReferenceFn | None = None
) -> ObjectiveFn:
    """The configured loss plus, with a reference, `kl_coef` times the k3 penalty per token."""
    function, params = config.loss_function(), config.loss_params()

    def objective(mb: MicroBatch, logprobs: Tensor, entropy: Tensor) -> Objective:
        mask = mb.mask()
        x = LossInput(
            logprobs=mb.padded(logprobs),
            old_logprobs=mb.padded(mb.old_logprobs),
            advantages=mb.advantages[:, None].expand(mask.shape),
            mask=mask,
        )
        out = function(x, params)
        per_token = out.per_token
        if reference is not None:
            ref = mb.padded(reference(mb))
            per_token = per_token + config.kl_coef * kl_k3(x.logprobs, ref, mask)
        stats.add(
            log_ratio=(x.logprobs - x.old_logprobs).detach(),
            gate=out.metrics["gate"],
            entropy=mb.padded(entropy),
            advantages=x.advantages,
            mask=mask,
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
