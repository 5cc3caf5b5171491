"""Runs on two ranks for test_dealing.py: the same groups trained where they were sampled, and dealt.

    dealing_worker.py FOLDER SEED

No DeepSpeed: gradients are summed over the ranks by hand. Each rank writes what it found to FOLDER.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from helpers_models import Case, Spec, flat, make_case, with_random_routes
from torch import Tensor

from sapo_vl.distributed import World, init_world, shutdown_world
from sapo_vl.learning.diagnostics import UpdateStats
from sapo_vl.learning.mismatch_stats import MismatchStats
from sapo_vl.learning.moving import Dealt, bring_home, deal_out
from sapo_vl.learning.objectives import Mismatch, UpdateTokens, global_denominators, policy_objective
from sapo_vl.learning.replay import FlipStats
from sapo_vl.learning.token_record import TokenRecord
from sapo_vl.losses import LossConfig
from sapo_vl.model.batching import make_micro_batches, split_by_budget, split_mini_batches, trainable
from sapo_vl.model.loading import base_model
from sapo_vl.model.routing import RouteTape, attach_routing
from sapo_vl.model.work import work_of
from sapo_vl.types import RolloutGroup

UPDATES = 2
BUDGET = 170  # of tokens and patches: the largest groups are split, and any response fits with its prompt
STILL = ((1,), (2, 3))  # groups of rank 0 and of rank 1 that have no gradient, once that is what is looked at


def specs(rng: np.random.Generator) -> list[Spec]:
    """Of rank 0, then of rank 1, which has next to nothing. The second and third of rank 0 come after dead groups."""
    large = tuple(int(n) for n in rng.integers(20, 40, 6))
    return [
        Spec(((48, 32),), large), Spec(((64, 48), (32, 32)), (9, 14)), Spec((), large), Spec(((80, 48),), (12, 3, 7)),
        Spec((), (2,)), Spec((), (3, 1)), Spec(((32, 32),), (2, 2)), Spec((), (5,)),
    ]  # fmt: skip


def with_the_dead(groups: list[RolloutGroup], rank: int) -> list[RolloutGroup]:
    """The first group of rank 1 has no advantage, one response of rank 0 neither."""
    at = (0, slice(None)) if rank == 1 else (0, slice(1, 2))
    rollouts = list(groups[at[0]].rollouts)
    rollouts[at[1]] = [dataclasses.replace(r, advantage=None) for r in rollouts[at[1]]]
    return [dataclasses.replace(groups[0], rollouts=tuple(rollouts)), *groups[1:]]


def undealt(groups: list[RolloutGroup]) -> Dealt:
    kept = ([g for g in map(trainable, part) if g] for part in split_mini_batches(groups, UPDATES))
    updates = tuple(tuple(map(tuple, split_by_budget(part, BUDGET))) for part in kept)
    return Dealt(updates=updates, still=(), visitors=(), values={})


def stilled(groups: list[RolloutGroup], indices: tuple[int, ...]) -> list[RolloutGroup]:
    """The groups at `indices` with advantages of 0."""
    return [
        dataclasses.replace(g, rollouts=tuple(dataclasses.replace(r, advantage=0.0) for r in g.rollouts))
        if i in indices
        else g
        for i, g in enumerate(groups)
    ]


def trained(case: Case, dealt: Dealt, groups: list[RolloutGroup], world: World) -> dict[str, Any]:
    """Gradient, metrics and per-token record of all updates, at the same weights."""
    record, policy = TokenRecord(), case.policy
    out: dict[str, Any] = {"metrics": [], "gradients": []}
    for number, rows in enumerate(dealt.updates):
        micro = make_micro_batches(rows, case.chat)
        stats, flips, gap = UpdateStats(), FlipStats(policy.routes), MismatchStats()
        mismatch = Mismatch(stats=gap, measured="current")
        denominators = global_denominators(micro, world)
        objective = policy_objective(
            LossConfig(), denominators, stats, None, mismatch, UpdateTokens(record, number + 1)
        )
        policy.zero_grad(set_to_none=True)
        total = 0.0
        for mb in micro:
            assert policy.routes is not None and mb.old_routes is not None
            tape = RouteTape(policy.routes, mb.old_routes)
            logprobs, entropy = policy(mb, temperature=1.1, tape=tape)
            flips.add(mb, tape)
            loss = objective(mb, logprobs, entropy).loss
            loss.backward()
            total += float(loss.detach())
        out["gradients"].append({n: world.sum(_flat(p.grad, p)) for n, p in policy.named_parameters()})
        values = stats.reduce(world) | flips.reduce(world) | gap.reduce(world)
        values |= {"loss": float(world.sum([total])[0]), "sequences": denominators.num_sequences}
        out["metrics"].append(values)
    bring_home(record, dealt, groups, world)
    tokens = record.tokens(groups, old_is_recorded=True, limit=10**9)
    out["tokens"] = {f.name: getattr(tokens, f.name).astype(float).tolist() for f in dataclasses.fields(tokens)}
    return out


def _flat(grad: Tensor | None, p: Tensor) -> np.ndarray:
    return (torch.zeros_like(p) if grad is None else grad).double().flatten().numpy()


def main() -> None:
    folder, seed = Path(sys.argv[1]), int(sys.argv[2])
    torch.set_num_threads(1)
    world = init_world()
    case = make_case("moe", seed, specs)
    case.policy.routes = attach_routing(base_model(case.policy.hf))
    assert case.policy.routes is not None
    groups = with_random_routes(case.rng, case.policy.routes, case.groups)
    mine = with_the_dead(groups[world.rank * 4 : world.rank * 4 + 4], world.rank)
    dealt = deal_out(mine, UPDATES, BUDGET, work_of(case.policy.hf), case.chat, world)
    for update in dealt.updates:  # what has moved makes the patches that it had
        for part in (part for row in update for part in row):
            (origin,) = (g for g in groups if g.prompt.problem.id == part.prompt.problem.id)
            assert part.prompt.problem.messages == origin.prompt.problem.messages
            a, b = flat(case.chat, [part]), flat(case.chat, [origin])
            assert torch.equal(a.pixel_values, b.pixel_values) and torch.equal(a.image_grid_thw, b.image_grid_thw)
    at_home, moved = trained(case, undealt(mine), mine, world), trained(case, dealt, mine, world)
    still = deal_out(stilled(mine, STILL[world.rank]), UPDATES, BUDGET, work_of(case.policy.hf), case.chat, world).still
    gradients = zip(at_home.pop("gradients"), moved.pop("gradients"), strict=True)
    found = {
        "values": dealt.values,
        "visitors": len(dealt.visitors),
        "still": [(s.num_sequences, s.num_tokens) for s in still],
        "gradient errors": [
            {n: (float(np.linalg.norm(b[n] - a[n])), float(np.linalg.norm(a[n]))) for n in a} for a, b in gradients
        ],
        "at home": at_home,
        "dealt": moved,
    }
    (folder / f"{world.rank}.json").write_text(json.dumps(found))
    shutdown_world()


if __name__ == "__main__":
    main()
