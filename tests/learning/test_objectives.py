"""What an update minimises, through the whole model: its gradient against plain policy gradient and by hand."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import pytest
import torch
from helpers_models import (
    KINDS,
    TOLERANCE,
    Case,
    Kind,
    assert_same,
    flat,
    gradients,
    make_case,
    naive,
    with_old_logprobs,
    worst_error,
)
from torch import Tensor

from sapo_vl.distributed import World
from sapo_vl.learning.diagnostics import UpdateStats
from sapo_vl.learning.engine import ObjectiveFn
from sapo_vl.learning.objectives import global_denominators, imitation_objective, policy_objective
from sapo_vl.losses import Denominators, LossConfig
from sapo_vl.model.batching import MicroBatch

ONE = World(rank=0, size=1, device=torch.device("cpu"))


def taken(case: Case, noise: float = 0.0) -> MicroBatch:
    """The case's micro-batch with the policy's own log-probs as the old ones, plus noise."""
    return flat(case.chat, with_old_logprobs(case, noise))


def as_loss(objective: ObjectiveFn) -> Callable[[MicroBatch, Tensor, Tensor], Tensor]:
    return lambda mb, logprobs, entropy: objective(mb, logprobs, entropy).loss


def denominators(batch: MicroBatch) -> Denominators:
    return global_denominators([batch], ONE)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", ["sapo", "grpo", "gspo_token"])
def test_first_update_is_policy_gradient(kind: Kind, name: str, seed: int) -> None:
    """At r = 1 the gradient of the whole model is that of -A log p, averaged as SAPO Eq. 5 says."""
    case = make_case(kind, seed)
    batch = taken(case)
    objective = policy_objective(LossConfig(name=name), denominators(batch), UpdateStats())
    _, found = gradients(case.policy, [batch], as_loss(objective))

    def plain(mb: MicroBatch, logprobs: Tensor, _entropy: Tensor) -> Tensor:
        means = [rs.mean() for rs in logprobs.split(mb.lengths.tolist())]
        return -(mb.advantages * torch.stack(means)).mean()

    _, expected = gradients(case.policy, [naive(case.chat, case.groups)], plain)
    assert_same(found, expected)


def test_sapo_value_and_gradient_by_hand(seed: int) -> None:
    """-A 4/tau sigmoid(tau (r - 1)) per token, averaged over a response, then over responses, in float64."""
    case = make_case("dense", seed)
    batch = taken(case, noise=0.4)
    config = LossConfig(params={"tau_pos": 1.5, "tau_neg": 2.5})
    objective = policy_objective(config, denominators(batch), UpdateStats())
    with torch.no_grad():
        logprobs, entropy = case.policy(batch)
    x = logprobs.clone().requires_grad_()
    objective(batch, x, entropy).loss.backward()

    y = logprobs.double().requires_grad_()
    value = torch.zeros((), dtype=torch.float64)
    start = 0
    for n, a in zip(batch.lengths.tolist(), batch.advantages.tolist(), strict=True):
        r = (y[start : start + n] - batch.old_logprobs[start : start + n].double()).exp()
        tau = 1.5 if a > 0 else 2.5
        value = value - a * (4 / tau * torch.sigmoid(tau * (r - 1))).mean() / len(batch.lengths)
        start += n
    value.backward()
    assert float(objective(batch, logprobs, entropy).loss) == pytest.approx(float(value.detach()), rel=1e-5, abs=1e-6)
    assert x.grad is not None and y.grad is not None
    torch.testing.assert_close(x.grad.double(), y.grad, rtol=1e-4, atol=1e-6)


def test_kl_term(seed: int) -> None:
    """kl_coef * (exp(d) - d - 1) with d = log pi_ref - log pi, averaged like the rest; its gradient is 1 - exp(d)."""
    case = make_case("dense", seed)
    batch = taken(case)
    reference = batch.old_logprobs + torch.from_numpy(case.rng.normal(size=len(batch.targets)).astype(np.float32))
    both = policy_objective(
        LossConfig(kl_coef=0.3, reduction="token_mean"), denominators(batch), UpdateStats(), lambda mb: reference
    )
    alone = policy_objective(LossConfig(reduction="token_mean"), denominators(batch), UpdateStats())
    x = batch.old_logprobs.clone().requires_grad_()
    difference = both(batch, x, torch.zeros_like(x)).loss - alone(batch, x, torch.zeros_like(x)).loss
    difference.backward()
    d = (reference - batch.old_logprobs).double()
    assert float(difference.detach()) == pytest.approx(float(0.3 * (d.exp() - d - 1).mean()), rel=1e-4)
    assert x.grad is not None
    torch.testing.assert_close(x.grad.double(), 0.3 * (1 - d.exp()) / len(d), rtol=1e-4, atol=1e-6)


def test_reference_equal_to_policy_adds_nothing(seed: int) -> None:
    case = make_case("dense", seed)
    batch = taken(case)
    config = LossConfig(kl_coef=1.0)
    both = policy_objective(config, denominators(batch), UpdateStats(), lambda mb: batch.old_logprobs)
    alone = policy_objective(LossConfig(), denominators(batch), UpdateStats())
    _, found = gradients(case.policy, [batch], as_loss(both))
    _, expected = gradients(case.policy, [batch], as_loss(alone))
    assert_same(found, expected)


@pytest.mark.parametrize("reduction", ["sequence_mean", "token_mean", "token_sum"])
def test_shares_add_up(reduction: str, seed: int) -> None:
    """However the groups are cut into micro-batches, with the counts of the whole batch the parts sum to it."""
    case = make_case("dense", seed)
    constant = 77.0 if reduction == "token_sum" else None
    config = LossConfig(reduction=reduction, token_sum_constant=constant)  # type: ignore[arg-type]
    g = with_old_logprobs(case, noise=0.3)
    results = []
    for split in ([g], [[g[0]], [g[1]], [g[2]], [g[3]], [g[4]]], [g[:2], g[2:3], g[3:]], [g[3:], g[:3]]):
        batches = [flat(case.chat, part) for part in split]
        objective = policy_objective(config, global_denominators(batches, ONE, constant), UpdateStats())
        results.append(gradients(case.policy, batches, as_loss(objective)))
    for (a, x), (b, y) in itertools.pairwise(results):
        assert a == pytest.approx(b, rel=TOLERANCE, abs=TOLERANCE)  # a signed sum of terms near 1
        assert_same(x, y)


def test_second_mini_batch_has_moved_ratios(seed: int) -> None:
    """Old log-probs are taken once: after a step they stay, and the ratios of the next update are not 1."""
    case = make_case("dense", seed)
    batch = taken(case)
    ratios = []
    for _ in range(2):
        stats = UpdateStats()
        objective = policy_objective(LossConfig(), denominators(batch), stats)
        _, found = gradients(case.policy, [batch], as_loss(objective))
        ratios.append(stats.reduce(ONE)["ratio/mean_abs_dev"])
        with torch.no_grad():
            for name, p in case.policy.named_parameters():
                p -= 0.1 * found[name]
    assert ratios[0] == pytest.approx(0, abs=1e-5)
    assert ratios[1] > 1e-3


@pytest.mark.parametrize("kind", KINDS)
def test_imitation(kind: Kind, seed: int) -> None:
    case = make_case(kind, seed)
    batch = flat(case.chat, case.groups)
    objective = imitation_objective("token_mean", denominators(batch))
    _, found = gradients(case.policy, [batch], as_loss(objective))
    _, expected = gradients(case.policy, [naive(case.chat, case.groups)], lambda mb, lp, e: -lp.mean())
    assert_same(found, expected)
    wrong = {name: g * 1.001 for name, g in expected.items()}
    assert worst_error(found, wrong)[0] > TOLERANCE


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_offending_responses_are_named(bad: float, seed: int) -> None:
    case = make_case("dense", seed)
    batch = taken(case)
    logprobs = batch.old_logprobs.clone()
    victim = int(case.rng.integers(len(batch.lengths)))
    start = int(batch.lengths[:victim].sum())
    logprobs[start + int(case.rng.integers(int(batch.lengths[victim])))] = bad
    out = imitation_objective("token_mean", denominators(batch))(batch, logprobs, torch.zeros_like(logprobs))
    assert (~out.finite).nonzero()[:, 0].tolist() == [victim]


def test_counts_are_of_the_whole_batch(seed: int) -> None:
    case = make_case("dense", seed)
    batches = [flat(case.chat, [g]) for g in case.groups]
    found = global_denominators(batches, ONE, 5.0)
    lengths = [len(r.response_ids) for g in case.groups for r in g.rollouts]
    assert (found.num_sequences, found.num_tokens, found.constant) == (len(lengths), sum(lengths), 5.0)
    assert global_denominators([], ONE).num_sequences == 0
