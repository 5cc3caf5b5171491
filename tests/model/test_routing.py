"""Recording and replaying the experts of a forward pass, against a mixture of experts written out by hand."""

import dataclasses
from collections.abc import Callable
from types import MethodType
from typing import Any

import numpy as np
import pytest
import torch
from helpers_models import (
    MODEL,
    NEAR_TIE,
    TOLERANCE,
    Case,
    assert_same,
    flat,
    gradients,
    make_case,
    make_policy,
    make_problem,
    naive,
    router_margin,
    weighted_sum,
    with_random_routes,
)
from torch import Tensor, nn

from sapo_vl.distributed import World
from sapo_vl.learning.replay import FlipStats
from sapo_vl.model.batching import MicroBatch
from sapo_vl.model.errors import ModelError
from sapo_vl.model.loading import ModelConfig, base_model
from sapo_vl.model.policy import PolicyModule
from sapo_vl.model.routing import RouteError, RouterMargins, RouteSpec, RouteTape, attach_routing, gate_weights
from sapo_vl.rollout import SamplingParams, TransformersEngine
from sapo_vl.types import RolloutGroup

LAYOUTS = pytest.mark.parametrize("layout", [flat, naive], ids=["flat", "padded"])


def blocks(policy: PolicyModule) -> list[Any]:
    return [layer.mlp for layer in base_model(policy.hf).model.language_model.layers]


def routed_case(seed: int, config: ModelConfig = MODEL) -> Case:
    case = make_case("moe", seed, config=config)
    case.policy.routes = attach_routing(base_model(case.policy.hf))
    return case


def largest_gap(a: Tensor, b: Tensor) -> float:
    return float((a - b).abs().max())


class Given(nn.Module):
    """A router that gives out what it is given, as probabilities."""

    top_k = 2

    def forward(self, probabilities: Tensor) -> tuple[Tensor, None, None]:
        return probabilities.log() + 3.0, None, None


def test_the_margin_of_a_pass_is_the_smallest_of_its_tokens_and_layers() -> None:
    model = nn.ModuleDict({str(i): nn.ModuleDict({"mlp": nn.ModuleDict({"gate": Given()})}) for i in range(2)})
    routers: list[Any] = [m for m in model.modules() if isinstance(m, Given)]
    with RouterMargins(model) as margins:
        routers[0](torch.tensor([[0.1, 0.2, 0.3, 0.4], [0.6, 0.05, 0.25, 0.1]]))  # 0.3 - 0.2, 0.25 - 0.1
        routers[1](torch.tensor([[0.01, 0.5, 0.27, 0.22], [0.7, 0.2, 0.0, 0.1]]))  # 0.27 - 0.22, 0.2 - 0.1
        for router in routers:
            router(torch.tensor([[0.25, 0.25, 0.25, 0.25]]))
    routers[0](torch.tensor([[0.25, 0.25, 0.25, 0.25]]))  # nobody looks any more
    assert margins.of_pass(0) == pytest.approx(0.05, abs=1e-6) and margins.of_pass(1) == 0.0
    with pytest.raises(IndexError):
        margins.of_pass(2)
    with RouterMargins(nn.Linear(2, 2)) as margins:
        pass
    assert margins.of_pass(0) == float("inf")
    with RouterMargins(model) as margins:
        for router in routers:
            router(torch.tensor([[0.5, 0.5]]))  # both are chosen
    assert margins.of_pass(0) == float("inf")


def random_routes(case: Case) -> list[RolloutGroup]:
    return with_random_routes(case.rng, spec_of(case.policy), case.groups)


def spec_of(policy: PolicyModule) -> RouteSpec:
    assert policy.routes is not None
    return policy.routes


def replaying(policy: PolicyModule, batch: MicroBatch) -> Callable[..., tuple[Tensor, Tensor]]:
    """The policy as `gradients` calls it, with the batch's routes replayed."""
    return lambda mb, temperature=1.0: policy(
        mb, temperature=temperature, tape=RouteTape(spec_of(policy), mb.old_routes)
    )


def replay_gradients(case: Case, batch: MicroBatch, loss: Callable[..., Tensor]) -> tuple[float, dict[str, Tensor]]:
    policy = case.policy
    policy.zero_grad(set_to_none=True)
    value = loss(batch, *replaying(policy, batch)(batch))
    value.backward()
    found = {n: p.grad.clone() for n, p in policy.named_parameters() if p.grad is not None}
    policy.zero_grad(set_to_none=True)
    return float(value.detach()), found


def by_hand(block: Any, ids: Tensor) -> Callable[..., Tensor]:
    """The block's output with each token's experts given: every expert runs on every token, and a sum weighs them."""

    def forward(_self: Any, hidden: Tensor) -> Tensor:
        rows = hidden.reshape(-1, hidden.shape[-1])
        exponents = (rows @ block.gate.weight.T).double().exp()  # [T, E]
        chosen = torch.zeros_like(exponents).scatter(1, ids, 1.0)
        weights = exponents * chosen / (exponents * chosen).sum(dim=1, keepdim=True)
        out = torch.zeros_like(rows)
        for e in range(exponents.shape[1]):
            gate, up = (rows @ block.experts.gate_up_proj[e].T).chunk(2, dim=-1)
            out = out + weights[:, e, None].to(rows.dtype) * (
                (torch.sigmoid(gate) * gate * up) @ block.experts.down_proj[e].T
            )
        return out.reshape(hidden.shape)

    return forward


@LAYOUTS
def test_a_tape_records_what_the_routers_chose_and_changes_nothing(seed: int, layout: Any) -> None:
    case = routed_case(seed)
    batch = layout(case.chat, case.groups)
    chosen: list[Tensor] = []
    handles = [b.gate.register_forward_hook(lambda _m, _i, out: chosen.append(out[2])) for b in blocks(case.policy)]
    plain, _ = case.policy(batch)
    for handle in handles:
        handle.remove()
    tape = RouteTape(spec_of(case.policy))
    taped, _ = case.policy(batch, tape=tape)
    assert torch.equal(plain, taped)
    assert tape.native.dtype == torch.uint8
    assert torch.equal(tape.native.long(), torch.stack(chosen, dim=1))
    again, _ = case.policy(batch, tape=RouteTape(spec_of(case.policy), tape.native))
    assert torch.equal(plain, again), "the routers' own choice, replayed, must change nothing"


@LAYOUTS
@pytest.mark.parametrize("experts", ["eager", "grouped_mm"])
def test_replay_is_the_mixture_by_hand(seed: int, layout: Any, experts: str) -> None:
    """Log-probs and every gradient, the router's too, with experts that the routers would not choose."""
    case = routed_case(seed)
    base_model(case.policy.hf).set_experts_implementation(experts)
    groups = random_routes(case)
    batch = layout(case.chat, groups)
    assert batch.old_routes is not None
    loss = weighted_sum(case.rng, groups)
    tape = RouteTape(spec_of(case.policy), batch.old_routes)
    with torch.no_grad():
        logprobs, _ = case.policy(batch, tape=tape)
        free, _ = case.policy(batch)
    assert torch.equal(tape.used, batch.old_routes)
    assert largest_gap(logprobs, free) > 0.01
    value, found = replay_gradients(case, batch, loss)

    for at, block in enumerate(blocks(case.policy)):
        block.forward = MethodType(by_hand(block, batch.old_routes[:, at].long()), block)
    with torch.no_grad():
        expected, _ = case.policy(batch)
    assert largest_gap(logprobs, expected) < TOLERANCE
    right, wanted = gradients(case.policy, [batch], loss)
    assert value == pytest.approx(right, rel=1e-5, abs=1e-5)
    assert all(float(wanted[n].norm()) > 0 for n in wanted if n.endswith("mlp.gate.weight"))
    assert_same(found, wanted)


def test_both_layouts_replay_the_same_routes(seed: int) -> None:
    case = routed_case(seed)
    groups = random_routes(case)
    loss = weighted_sum(case.rng, groups)
    results = [replay_gradients(case, layout(case.chat, groups), loss)[1] for layout in (flat, naive)]
    assert_same(*results)


@pytest.mark.parametrize("experts", ["eager", "grouped_mm"])
def test_recomputation_reads_the_same_rows(seed: int, experts: str) -> None:
    """Gradient checkpointing runs each layer again during backward, when another micro-batch may have come between."""
    config = MODEL.model_copy(update={"gradient_checkpointing": True})
    plain, checkpointed = routed_case(seed), routed_case(seed, config)
    for case in (plain, checkpointed):
        base_model(case.policy.hf).set_experts_implementation(experts)
    groups = random_routes(plain)
    first, second = (flat(plain.chat, part) for part in (groups[:2], groups[2:]))
    loss = weighted_sum(plain.rng, groups)
    expected = gradients_of_both(plain.policy.train(), [first, second], loss)
    found = gradients_of_both(checkpointed.policy.train(), [first, second], loss)
    assert_same(found, expected)


def gradients_of_both(
    policy: PolicyModule, batches: list[MicroBatch], loss: Callable[..., Tensor]
) -> dict[str, Tensor]:
    """Both forward passes first, then one backward pass through both."""
    policy.zero_grad(set_to_none=True)
    total = sum(loss(mb, *replaying(policy, mb)(mb)) for mb in batches)
    assert isinstance(total, Tensor)
    total.backward()
    return {n: p.grad.clone() for n, p in policy.named_parameters() if p.grad is not None}


def test_a_pass_without_a_tape_is_free(seed: int) -> None:
    """As that of the frozen reference: the micro-batch has routes and must go its own way."""
    case = routed_case(seed)
    plain, _ = case.policy(flat(case.chat, case.groups))
    batch = dataclasses.replace(flat(case.chat, random_routes(case)), replay=True)
    assert torch.equal(case.policy(batch)[0], plain)


def test_adapters_replay_under_checkpointing(seed: int) -> None:
    config = MODEL.model_dump() | {"lora": {"rank": 2, "alpha": 4}}
    found = []
    for checkpointing in (False, True):
        torch.manual_seed(seed)  # adapters are drawn from it
        policy, chat = make_policy("moe", seed, ModelConfig(**(config | {"gradient_checkpointing": checkpointing})))
        policy.routes = attach_routing(base_model(policy.hf))
        case = Case(policy.train(), chat, make_case("moe", seed).groups, np.random.default_rng(seed))
        groups = random_routes(case)
        found.append(replay_gradients(case, flat(chat, groups), weighted_sum(case.rng, groups))[1])
    assert any(float(g.norm()) > 0 for n, g in found[0].items() if "experts" in n)
    assert_same(*found)


def test_a_frozen_router_replays(seed: int) -> None:
    case = routed_case(seed, MODEL.model_copy(update={"freeze": ("router",)}))
    groups = random_routes(case)
    batch = flat(case.chat, groups)
    assert batch.old_routes is not None
    loss = weighted_sum(case.rng, groups)
    _, found = replay_gradients(case, batch, loss)
    assert not any(n.endswith("mlp.gate.weight") for n in found)
    for at, block in enumerate(blocks(case.policy)):
        block.forward = MethodType(by_hand(block, batch.old_routes[:, at].long()), block)
    assert_same(found, gradients(case.policy, [batch], loss)[1])


# --- what the rollout engine records ---


def test_the_engine_records_what_the_trainer_goes_through(seed: int) -> None:
    """Token by token while sampling, or all at once on the flat row: the same experts, but for near-ties."""
    case = routed_case(seed)
    prompts = [g.prompt for g in case.groups]
    engine = TransformersEngine(case.policy, case.chat)
    params = SamplingParams(n=4, max_new_tokens=9, temperature=1.0, seed=seed, routes=True)
    groups = engine.generate(prompts, params)
    plain = engine.generate(prompts, dataclasses.replace(params, routes=False))
    for group, other in zip(groups, plain, strict=True):
        assert other.prompt_routes is None
        assert [r.response_ids.tolist() for r in group.rollouts] == [r.response_ids.tolist() for r in other.rollouts]
    spec = spec_of(case.policy)
    for group in groups:
        tokens = len(group.prompt.ids)
        assert group.prompt_routes is not None
        assert spec.fault(group.prompt_routes, tokens) == ""
        # Bytes a token: MoE layers x experts a token x 1.
        assert group.prompt_routes.nbytes == tokens * len(spec.layers) * spec.top_k
        for r in group.rollouts:
            assert r.routes is not None
            assert spec.fault(r.routes, len(r.response_ids) - 1) == ""
            batch = flat(case.chat, [dataclasses.replace(group, rollouts=(r,))])
            tape = RouteTape(spec)
            case.policy(batch, tape=tape)
            if router_margin(case.policy, [batch]) < NEAR_TIE:
                continue
            assert batch.old_routes is not None
            assert torch.equal(tape.native[:-1].sort(-1).values, batch.old_routes[:-1].sort(-1).values)


def test_equal_ids_and_other_pictures_share_no_rows(seed: int) -> None:
    case = routed_case(seed)
    one = make_problem(np.random.default_rng(seed), "one", [(64, 64)])
    two = dataclasses.replace(one, id="two", images=make_problem(case.rng, "x", [(64, 64)]).images)
    prompts = [case.chat.prompt(one), case.chat.prompt(two)]
    assert np.array_equal(prompts[0].ids, prompts[1].ids)
    engine = TransformersEngine(case.policy, case.chat)
    groups = engine.generate(prompts, SamplingParams(n=2, max_new_tokens=5, temperature=1.0, routes=True))
    first, second = (g.prompt_routes for g in groups)
    assert first is not None
    assert second is not None
    assert not np.array_equal(first, second), "the pictures differ, so must some routes"
    batch = flat(case.chat, groups)
    assert batch.old_routes is not None
    rows, size = batch.old_routes.numpy(), groups[0].num_tokens
    assert np.array_equal(rows[: len(first)], first)
    assert np.array_equal(rows[size : size + len(second)], second)


def test_the_last_row_of_a_response_touches_nothing(seed: int) -> None:
    """It has no record; whatever stands in for it, every log-prob and gradient is the same."""
    case = routed_case(seed)
    groups = random_routes(case)
    batch = flat(case.chat, groups)
    assert batch.old_routes is not None
    ends = np.cumsum([n for g in groups for n in (len(g.prompt.ids), *(len(r.response_ids) for r in g.rollouts))]) - 1
    is_prompt = [i for g in groups for i in (True, *(False for _ in g.rollouts))]
    other = batch.old_routes.clone()
    for end, prompt in zip(ends, is_prompt, strict=True):
        if not prompt:
            other[end] = (other[end] + 1) % spec_of(case.policy).experts
    loss = weighted_sum(case.rng, groups)
    value, expected = replay_gradients(case, batch, loss)
    same, found = replay_gradients(case, dataclasses.replace(batch, old_routes=other), loss)
    assert value == same
    assert_same(found, expected)


# --- what is refused ---


def test_bad_routes_are_named() -> None:
    spec = RouteSpec(layers=(0, 2), experts=8, top_k=2)
    good = np.array([[[0, 7], [3, 1]], [[5, 4], [6, 2]]], np.uint8)
    assert spec.fault(good, 2) == ""
    assert spec.fault(good.astype(np.int64), 2) == ""
    assert "shape [2, 2, 2] instead of [3, 2, 2]" in spec.fault(good, 3)
    assert "outside [0, 8)" in spec.fault(good + np.uint8(1), 2)
    assert "outside [0, 8)" in spec.fault(good.astype(np.int16) - 1, 2)
    assert "one expert twice" in spec.fault(np.where(good == 7, 0, good), 2)
    assert "float64" in spec.fault(good.astype(float), 2)
    assert spec.dtype == np.uint8
    assert RouteSpec(layers=(0,), experts=257, top_k=2).dtype == np.uint16


def test_more_than_256_experts_keep_their_ids(seed: int) -> None:
    spec = RouteSpec(layers=(0,), experts=300, top_k=2)
    tape = RouteTape(spec)
    native = torch.tensor([[299, 3], [255, 256]])
    tape.route(0, native)
    tape.close()
    assert tape.native.dtype == torch.uint16
    assert torch.equal(RouteTape(spec, tape.native).route(0, native.flip(0)), native)


def test_the_engine_records_more_than_256_experts(seed: int) -> None:
    """As wide ids as a model of so many experts has, on the model of 8."""
    case = routed_case(seed)
    narrow = spec_of(case.policy)
    engine = TransformersEngine(case.policy, case.chat)
    params = SamplingParams(n=2, max_new_tokens=5, temperature=1.0, seed=seed, routes=True)
    prompts = [g.prompt for g in case.groups[:2]]
    expected = engine.generate(prompts, params)
    case.policy.routes = dataclasses.replace(narrow, experts=300)
    found = engine.generate(prompts, params)
    for a, b in zip(expected, found, strict=True):
        assert b.prompt_routes is not None
        assert b.prompt_routes.dtype == np.uint16
        assert np.array_equal(a.prompt_routes, b.prompt_routes)  # type: ignore[arg-type]
        for r, s in zip(a.rollouts, b.rollouts, strict=True):
            assert s.routes is not None
            assert s.routes.dtype == np.uint16
            assert np.array_equal(r.routes, s.routes)  # type: ignore[arg-type]
    batch = flat(case.chat, found)
    tape = RouteTape(spec_of(case.policy), batch.old_routes)
    case.policy(batch, tape=tape)
    stats = FlipStats(spec_of(case.policy))
    stats.add(batch, tape)
    assert stats.reduce(World(rank=0, size=1, device=torch.device("cpu")))["routing/flip"] == 0


def test_rows_must_cover_the_row(seed: int) -> None:
    case = routed_case(seed)
    batch = flat(case.chat, random_routes(case))
    assert batch.old_routes is not None
    with pytest.raises(RouteError, match=f"routes of {len(batch.old_routes) - 1} tokens for a row of"):
        case.policy(batch, tape=RouteTape(spec_of(case.policy), batch.old_routes[:-1]))
    assert case.policy(batch)[0].isfinite().all(), "the failed pass must leave no tape behind"


@pytest.mark.parametrize("how", ["skipped", "twice"])
def test_every_layer_reads_once(seed: int, how: str) -> None:
    """A block that was put in place after the hooks: one that never asks the router, or asks it twice."""
    case = routed_case(seed)
    block = blocks(case.policy)[1]
    own = type(block).forward

    def forward(self: Any, hidden: Tensor) -> Tensor:
        if how == "skipped":
            return hidden
        self.gate(hidden.reshape(-1, hidden.shape[-1]))
        return own(self, hidden)

    block.forward = MethodType(forward, block)
    with pytest.raises(RouteError, match=rf"exactly once \(layer: reads\): {{1: {0 if how == 'skipped' else 2}}}"):
        case.policy(flat(case.chat, case.groups), tape=RouteTape(spec_of(case.policy)))


@pytest.mark.parametrize("what", ["block", "router", "class"])
def test_a_replaced_block_is_told(seed: int, what: str) -> None:
    policy, _ = make_policy("moe", seed)
    layer = base_model(policy.hf).model.language_model.layers[1]
    own = type(layer.mlp)

    class Fused(own):  # type: ignore[misc, valid-type]
        """As a library of kernels would put it there."""

    if what == "class":
        layer.mlp.__class__ = Fused
    else:
        module: nn.Module = layer.mlp if what == "block" else layer.mlp.gate
        module.forward = MethodType(lambda _self, hidden: hidden, module)
    with pytest.raises(ModelError, match=r"layer 1: .* stands where Qwen3VLMoeText"):
        attach_routing(base_model(policy.hf))


def test_another_rule_of_weights_is_told(seed: int) -> None:
    """A router that does not renormalise: what we would compute is not what the model was trained with."""
    case = routed_case(seed)
    gate = blocks(case.policy)[2].gate

    def forward(_self: Any, hidden: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        logits = hidden @ gate.weight.T
        weights, ids = logits.softmax(-1).topk(gate.top_k)
        return logits, weights, ids

    gate.forward = MethodType(forward, gate)
    batch = flat(case.chat, case.groups)
    plain, _ = case.policy(batch)
    tape = RouteTape(spec_of(case.policy))
    recorded, _ = case.policy(batch, tape=tape)
    assert torch.equal(plain, recorded), "a record costs nobody a run"
    with pytest.raises(RouteError, match="another rule"):
        case.policy(batch, tape=RouteTape(spec_of(case.policy), tape.native))


def test_weights_of_experts_that_lost() -> None:
    """By hand, and with a gradient for experts far from the top: 1/4 and 3/4 from logits ln 1 and ln 3."""
    logits = torch.tensor([[np.log(1.0), 5.0, np.log(3.0), 4.0]], requires_grad=True)
    weights = gate_weights(logits, torch.tensor([[0, 2]]))
    assert weights.tolist() == [pytest.approx([0.25, 0.75])]
    weights[0, 0].backward()
    # d g0 / d s = g0 (1 - g0) at its own logit, -g0 g2 at the other, 0 elsewhere.
    assert logits.grad is not None
    assert logits.grad[0].tolist() == pytest.approx([0.1875, 0.0, -0.1875, 0.0], abs=1e-7)


def test_a_dense_model_has_no_routes(seed: int) -> None:
    policy, _ = make_policy("dense", seed)
    assert attach_routing(base_model(policy.hf)) is None
