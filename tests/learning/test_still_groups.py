"""Groups without a difference in reward: they count in the means of the loss, and the model never sees them."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from helpers_models import Case, Spec, flat, gradients, make_case, ragged, with_old_logprobs, worst_error
from torch import Tensor

from sapo_vl.distributed import World
from sapo_vl.learning.advantage import AdvantageConfig, assign_advantages
from sapo_vl.learning.diagnostics import UpdateStats
from sapo_vl.learning.moving import deal_out
from sapo_vl.learning.objectives import global_denominators, policy_objective
from sapo_vl.losses import LOSSES, Denominators, LossConfig
from sapo_vl.model.batching import make_micro_batches
from sapo_vl.model.work import work_of
from sapo_vl.types import RolloutGroup
from sapo_vl.updates import MiniBatch, run_update

ALONE = World.alone()
CONSTANT = 40.0  # divides with loss.reduction=token_sum
STILL = (1, 2)  # of four groups


def specs(rng: np.random.Generator) -> list[Spec]:
    return [Spec(((48, 32),), ragged(rng, 3)), Spec(((32, 48),), ragged(rng, 4)), Spec((), ragged(rng, 2)),
            Spec((), ragged(rng, 2))]  # fmt: skip


@pytest.fixture(scope="module", params=["dense", "moe"])
def case(request: pytest.FixtureRequest) -> Case:
    return make_case(request.param, int(request.config.option.seed), specs)


def rewarded(case: Case, keep: bool) -> list[RolloutGroup]:
    """Two groups with random rewards, the two between them with equal ones; old log-probs near the policy's own."""
    groups = []
    for i, group in enumerate(with_old_logprobs(case, noise=0.2)):
        rewards = [0.3] * len(group.rollouts) if i in STILL else case.rng.random(len(group.rollouts)).tolist()
        rollouts = (dataclasses.replace(r, reward=v) for r, v in zip(group.rollouts, rewards, strict=True))
        groups.append(dataclasses.replace(group, rollouts=tuple(rollouts)))
    return assign_advantages(groups, AdvantageConfig(keep_dead_groups=keep))[0]


def loss(name: str, reduction: Any) -> LossConfig:
    return LossConfig(name=name, reduction=reduction, token_sum_constant=CONSTANT if reduction == "token_sum" else None)


def of_an_update(case: Case, groups: list[RolloutGroup], config: LossConfig, penalised: bool) -> dict[str, Tensor]:
    """Gradient of the mean over all groups; penalised: all of them go through the model."""
    dealt = deal_out(groups, 1, 10**6, work_of(case.policy.hf), case.chat, ALONE, penalised=penalised)
    micro = make_micro_batches(dealt.updates[0], case.chat)
    seen = [g.prompt.problem.id for mb in micro for g in mb.groups]
    assert seen == [f"problem-{i}" for i in range(4) if penalised or i not in STILL]
    counts = global_denominators(micro, ALONE, config.token_sum_constant)
    counts += dataclasses.replace(dealt.still[0], constant=config.token_sum_constant)
    objective = policy_objective(config, counts, UpdateStats())
    return gradients(case.policy, micro, lambda mb, logprobs, entropy: objective(mb, logprobs, entropy).loss)[1]


@pytest.mark.parametrize("name", LOSSES)
def test_no_loss_tells_whether_they_went_through_the_model(case: Case, name: str) -> None:
    """Each with its own reduction: an advantage of 0 has no gradient in any of them."""
    config, groups = loss(name, LOSSES[name][1].own_reduction), rewarded(case, keep=True)
    counted, run = (of_an_update(case, groups, config, penalised) for penalised in (False, True))
    assert sum(float(g.norm()) for g in run.values()) > 0.01
    error, where = worst_error(counted, run)
    assert error < 1e-5, where


@pytest.mark.parametrize("reduction", ["sequence_mean", "token_mean", "token_sum"])
def test_left_out_the_others_weigh_more(case: Case, reduction: Any) -> None:
    """By the number of responses or tokens, and not at all with a divisor that never varies."""
    config, state = loss("sapo", reduction), case.rng.bit_generator.state
    counted, left_out = [], []
    for found, keep in ((counted, True), (left_out, False)):
        case.rng.bit_generator.state = state  # the same rewards
        found += [rewarded(case, keep)]
        found += [of_an_update(case, found[0], config, penalised=False)]
    lengths = [[len(r.response_ids) for r in g.rollouts] for g in case.groups]
    sizes = {"sequence_mean": [*map(len, lengths)], "token_mean": [*map(sum, lengths)], "token_sum": [1, 0, 0, 0]}
    live, of_all = sum(sizes[reduction][i] for i in range(4) if i not in STILL), sum(sizes[reduction])
    error, where = worst_error(counted[1], {n: g * (live / of_all) for n, g in left_out[1].items()})
    assert error < 1e-5, where


def test_only_the_scored_count(case: Case) -> None:
    """A response without a score, and one without a token, is in no mean."""
    groups = rewarded(case, keep=True)
    first, second, *others = groups[1].rollouts
    rollouts = (dataclasses.replace(first, advantage=None), dataclasses.replace(second, response_ids=np.zeros(0, int)))
    groups[1] = dataclasses.replace(groups[1], rollouts=(*rollouts, *others))
    dealt = deal_out(groups, 2, 10**6, work_of(case.policy.hf), case.chat, ALONE)
    expected = [[others], [groups[2].rollouts]]
    by_update = [expected[1], expected[0]]  # the third group is of the first update, the second of the second
    assert [(s.num_sequences, s.num_tokens) for s in dealt.still] == [
        (len(kept), sum(len(r.response_ids) for r in kept)) for (kept,) in by_update
    ]


def test_an_update_of_nothing_else_is_none(case: Case) -> None:
    """It would move the weights by the optimizer's momentum alone."""
    spare = flat(case.chat, case.groups[:1])
    batch = MiniBatch(micro_batches=make_micro_batches([], case.chat), filler=spare, still=Denominators(5, 9))
    session: Any = SimpleNamespace(world=ALONE, engine=None)
    config: Any = SimpleNamespace(loss=LossConfig())
    result, values, _ = run_update(config, session, batch, None, cast(Any, None), 0, cast(Any, None), 1)
    assert result is None and values == {}
