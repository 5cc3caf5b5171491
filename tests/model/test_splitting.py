"""A group that is larger than a micro-batch goes in parts, and an update computes what it computes of the whole."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from helpers_models import Case, assert_same, flat, make_case, with_random_routes
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from sapo_vl.distributed import World
from sapo_vl.learning.objectives import global_denominators
from sapo_vl.model.batching import (
    MicroBatch,
    group_cost,
    groups_in,
    make_micro_batches,
    split_by_budget,
    split_group,
    split_lengths,
)
from sapo_vl.model.loading import base_model
from sapo_vl.model.routing import RouteTape, attach_routing
from sapo_vl.types import RolloutGroup


def test_parts_by_hand() -> None:
    assert split_lengths([5, 3, 3, 2], room=7) == [[0, 3], [1, 2]]
    assert split_lengths([5, 3, 3, 2], room=20) == [[0, 1, 2, 3]]
    assert split_lengths([5, 3, 3, 2], room=20, least=2) == [[0, 3], [1, 2]]
    assert split_lengths([9, 1, 1], room=4) == [[0], [1, 2]], "one that is too long goes alone, the others together"
    assert split_lengths([2, 1], room=-3) == [[0], [1]], "the prompt alone is over the budget"


@given(st.lists(st.integers(1, 50), min_size=1, max_size=20), st.integers(-5, 80), st.integers(1, 25))
def test_parts_hold_every_response_once_and_keep_to_the_room(lengths: list[int], room: int, least: int) -> None:
    parts = split_lengths(lengths, room, least)
    assert sorted(i for part in parts for i in part) == list(range(len(lengths)))
    assert len(parts) >= min(least, len(lengths))
    for part in parts:
        assert part == sorted(part)
        assert len(part) == 1 or sum(lengths[i] for i in part) <= room


def weighted_gradients(
    case: Case, batches: Sequence[MicroBatch], groups: Sequence[RolloutGroup]
) -> tuple[float, dict[str, Tensor]]:
    """Gradient of a sum with a random weight for every token, which goes with the response; routes are replayed where
    there are any."""
    rng = np.random.default_rng(0)
    weights = {id(r): rng.normal(size=len(r.response_ids)).astype(np.float32) for g in groups for r in g.rollouts}
    policy, total = case.policy, 0.0
    policy.zero_grad(set_to_none=True)
    for mb in batches:
        tape = None
        if mb.old_routes is not None:
            assert policy.routes is not None
            tape = RouteTape(policy.routes, mb.old_routes)
        logprobs, _ = policy(mb, temperature=1.1, tape=tape)
        mine = np.concatenate([weights[id(r)] for g in mb.groups for r in g.rollouts])
        value = (logprobs * torch.from_numpy(mine)).sum()
        value.backward()
        total += float(value.detach())
    found = {n: p.grad.clone() for n, p in policy.named_parameters() if p.grad is not None}
    policy.zero_grad(set_to_none=True)
    return total, found


@pytest.mark.parametrize(("kind", "replay"), [("dense", False), ("moe", False), ("moe", True)])
def test_parts_have_the_gradient_of_the_whole(kind: str, replay: bool, seed: int) -> None:
    """Images, several in a prompt, text only; at least the first group is over the budget."""
    case = make_case(kind, seed)  # type: ignore[arg-type]
    groups = case.groups
    if replay:
        case.policy.routes = attach_routing(base_model(case.policy.hf))
        assert case.policy.routes is not None
        groups = with_random_routes(case.rng, case.policy.routes, groups)
    budget = group_cost(groups[0]) - 1
    rows = split_by_budget(groups, budget)
    parts = [part for row in rows for part in row]
    assert len(parts) > len(groups), "nothing was split"
    single = [len(row) == 1 and len(row[0].rollouts) == 1 for row in rows]
    assert all(sum(map(group_cost, row)) <= budget or alone for row, alone in zip(rows, single, strict=True))
    assert sorted(id(r) for p in parts for r in p.rollouts) == sorted(id(r) for g in groups for r in g.rollouts)
    micro = make_micro_batches(rows, case.chat)
    value, whole = weighted_gradients(case, [flat(case.chat, groups)], groups)
    sum_of_parts, found = weighted_gradients(case, micro, groups)
    assert sum_of_parts == pytest.approx(value, rel=1e-4, abs=1e-4)
    assert_same(found, whole)


def test_a_part_without_its_prompt_would_be_noticed(seed: int) -> None:
    """The second part continues the prompt, not the first part: at positions further on the gradient is another one."""
    case = make_case("dense", seed)
    group = max(case.groups, key=lambda g: len(g.rollouts))
    parts = split_group(group, group_cost(group) - 1)
    _, whole = weighted_gradients(case, [flat(case.chat, [group])], [group])
    batches = [flat(case.chat, [part]) for part in parts]
    last = batches[-1]
    own = len(group.prompt.ids)
    moved = last.positions.clone()
    moved[..., own:] += 1
    broken = [*batches[:-1], dataclasses.replace(last, positions=moved)]
    _, found = weighted_gradients(case, batches, [group])
    assert_same(found, whole)
    _, found = weighted_gradients(case, broken, [group])
    with pytest.raises(AssertionError, match="differs by"):
        assert_same(found, whole)


def test_micro_batches_are_packed_when_they_are_asked_for(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    case = make_case("dense", seed)
    packed: list[int] = []
    real = flat

    def counting(groups: Sequence[RolloutGroup], _blank: object) -> MicroBatch:
        packed.append(len(groups))
        return real(case.chat, groups)

    monkeypatch.setattr("sapo_vl.model.batching.pack", counting)
    micro = make_micro_batches([case.groups[:2], case.groups[2:]], case.chat)
    denominators = global_denominators(micro, World.alone())
    lengths = [len(r.response_ids) for g in case.groups for r in g.rollouts]
    assert (denominators.num_sequences, denominators.num_tokens) == (len(lengths), sum(lengths))
    assert list(groups_in(micro)) == case.groups
    assert packed == [], "counting does not need them"
    old = torch.arange(len(micro[1].targets), dtype=torch.float32)
    later = micro.changed([{}, {"old_logprobs": old}]).changed([{"replay": True}, {}])
    assert packed == [3]
    assert torch.equal(later[1].old_logprobs, old) and not later[1].replay and later[0].replay
    assert [len(mb.groups) for mb in later] == [2, 3]
