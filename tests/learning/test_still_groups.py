"""Groups without a difference in reward: they count in the means of the loss, and the model never sees them."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from helpers_models import Case, Spec, flat, gradients, make_case, ragged, with_old_logprobs, worst_error
from torch import Tensor

from sapo_vl.config import RunConfig, load_config
from sapo_vl.distributed import World
from sapo_vl.learning.advantage import AdvantageConfig, assign_advantages
from sapo_vl.learning.diagnostics import UpdateStats
from sapo_vl.learning.engine import UpdateResult
from sapo_vl.learning.moving import deal_out
from sapo_vl.learning.objectives import global_denominators, policy_objective
from sapo_vl.losses import LOSSES, Denominators, LossConfig
from sapo_vl.model.batching import make_micro_batches
from sapo_vl.model.work import work_of
from sapo_vl.types import RolloutGroup
from sapo_vl.updates import MiniBatch, deal_groups, new_record, pack_mini_batches, run_update

ALONE = World.alone()
CONFIG = Path(__file__).resolve().parents[2] / "configs" / "tiny_dense.yaml"
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


class Engine:
    """Says what an update would minimise, and changes nothing."""

    def __init__(self, case: Case) -> None:
        self.module = case.policy
        self.skipped = 0

    def skip(self) -> None:
        self.skipped += 1

    def update(self, micro: Any, filler: Any, objective: Any, temperature: float, seen: Any) -> UpdateResult:
        loss = sum(objective(mb, *self.module(mb, temperature=temperature)).loss.item() for mb in micro)
        return UpdateResult(applied=True, loss=loss, grad_norm=1.0, lr=1.0, offenders=())


def settings(*pairs: str) -> RunConfig:
    return load_config(CONFIG, ["recipe.name=", "model.tiny=", "data.path=d", "model.path=m", *pairs])


def session(case: Case) -> Any:
    return SimpleNamespace(world=ALONE, engine=Engine(case), chat=case.chat)


@pytest.mark.parametrize("reduction", ["sequence_mean", "token_mean", "token_sum"])
def test_the_loss_of_an_update_is_the_mean_over_them_too(case: Case, reduction: str, tmp_path: Path) -> None:
    """Five responses and nine tokens of others, by hand."""
    further = ["loss.token_sum_constant=7"] if reduction == "token_sum" else []
    config = settings(f"loss.reduction={reduction}", *further)
    groups = [g for i, g in enumerate(rewarded(case, keep=True)) if i not in STILL]
    micro = make_micro_batches([groups], case.chat)
    losses = []
    for still in (Denominators(0, 0), Denominators(5, 9)):
        batch = MiniBatch(micro_batches=micro, filler=micro[0], still=still)
        result, _, _ = run_update(config, session(case), batch, None, new_record(config, 1), 1, tmp_path, 1)
        assert result is not None
        losses.append(result.loss)
    n = sum(len(g.rollouts) for g in groups)
    t = sum(len(r.response_ids) for g in groups for r in g.rollouts)
    share = {"sequence_mean": n / (n + 5), "token_mean": t / (t + 9), "token_sum": 1}[reduction]
    assert losses[1] == pytest.approx(losses[0] * share, rel=1e-5) and losses[0] != 0


@pytest.mark.parametrize("kl_coef", [0.0, 0.01])
def test_a_penalty_runs_them(case: Case, kl_coef: float) -> None:
    """On the way of a run: two updates of two groups, one of each still."""
    config, groups = settings(f"loss.kl_coef={kl_coef}"), rewarded(case, keep=True)
    dealt = deal_groups(config, session(case), groups)
    batches = pack_mini_batches(config, session(case), dealt, groups[0].prompt)
    ran = [[g.prompt.problem.id for mb in b.micro_batches for g in mb.groups] for b in batches]
    counts = [(b.still.num_sequences, b.still.num_tokens) for b in batches]
    sizes = [(len(g.rollouts), sum(len(r.response_ids) for r in g.rollouts)) for g in groups]
    if kl_coef:
        assert ran == [["problem-0", "problem-2"], ["problem-1", "problem-3"]] and counts == [(0, 0)] * 2
    else:
        assert ran == [["problem-0"], ["problem-3"]] and counts == [sizes[2], sizes[1]]


def test_an_update_of_nothing_else_is_none(case: Case, tmp_path: Path) -> None:
    """It would move the weights by the optimizer's momentum alone."""
    spare = flat(case.chat, case.groups[:1])
    batch = MiniBatch(micro_batches=make_micro_batches([], case.chat), filler=spare, still=Denominators(5, 9))
    config = settings()
    run = session(case)
    result, values, _ = run_update(config, run, batch, None, new_record(config, 1), 0, tmp_path, 1)
    assert result is None and values == {}
    assert run.engine.skipped == 1, "the schedule of the learning rate was made for all updates"
