"""Eq. 9 measured: by hand on a small softmax, on free logits, and on a model against its own gradient."""

from __future__ import annotations

import dataclasses
import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from helpers_models import (
    KINDS,
    Case,
    Kind,
    Spec,
    flat,
    full_state,
    make_case,
    max_difference,
    naive,
    with_random_routes,
)
from torch import Tensor

from sapo_vl.distributed import World
from sapo_vl.learning.engine import PolicyEngine
from sapo_vl.learning.negative_tokens import (
    COLUMNS,
    FIRST_ORDER,
    NegativeTokens,
    Sign,
    chosen_tokens,
    formula,
    isolated_step,
    token_changes,
)
from sapo_vl.model.policy import PolicyModule, Vocabulary
from sapo_vl.model.routing import attach_routing

ONE = World(rank=0, size=1, device=torch.device("cpu"))
LN2 = math.log(2)


def named(columns: Tensor) -> dict[str, np.ndarray]:
    return dict(zip(COLUMNS, columns.numpy(), strict=True))


def small_case(kind: Kind, seed: int) -> Case:
    """Four groups, with and without images; the signs of their advantages alternate within a group."""
    specs = [Spec(((48, 32),), (5, 3, 6)), Spec((), (4, 7)), Spec(((32, 32),), (6, 5)), Spec((), (3, 8, 1))]
    case = make_case(kind, seed, specs)
    size = case.rng.uniform(0.3, 2, 8)
    groups = [
        dataclasses.replace(
            g,
            rollouts=tuple(
                dataclasses.replace(r, advantage=float(size[i + j] * (-1) ** i)) for i, r in enumerate(g.rollouts)
            ),
        )
        for j, g in enumerate(case.groups)
    ]
    return dataclasses.replace(case, groups=groups)


def test_formula_by_hand() -> None:
    """pi = (1/2, 1/4, 1/4), y the first: f = A (1/2, -1/4, -1/4), q = 3/8, H = 3/2 ln 2."""
    logits = torch.tensor([[LN2, 0.0, 0.0], [LN2, 0.0, 0.0]], dtype=torch.float64)
    found = formula(logits, torch.tensor([0, 0]), torch.tensor([1.0, -2.0])).numpy()
    # entropy: -sum f_v pi_v (ln pi_v + H) = -(1/2 1/2 (1/2 ln 2) - 2 (1/4) (1/4) (-1/2 ln 2)) = -3/16 ln 2
    unit = np.array([3 / 8, -3 / 16, -3 / 16 * LN2])
    assert found == pytest.approx(np.stack([unit, -2 * unit], axis=1), rel=1e-12)


def test_changes_by_hand() -> None:
    """From (1/2, 1/4, 1/4, banned) to (1/4, 3/8, 3/8, banned), then with everything shifted by 5."""
    banned = -math.inf
    before = torch.tensor([[LN2, 0.0, 0.0, banned]] * 2)
    after = torch.tensor(
        [[0.0, math.log(1.5), math.log(1.5), banned], [-5.0, math.log(1.5) - 5, math.log(1.5) - 5, banned]]
    )
    found = named(token_changes(before, after, torch.tensor([0, 0]), torch.tensor([-1.0, -1.0])))
    assert found["logprob"] == pytest.approx([-LN2] * 2, rel=1e-6)
    assert found["mass"] == pytest.approx([1 / 4] * 2, rel=1e-6)
    entropy = -(math.log(1 / 4) / 4 + 3 / 4 * math.log(3 / 8)) - 1.5 * LN2
    assert found["entropy"] == pytest.approx([entropy] * 2, rel=1e-6)
    assert found["logits_rose"].tolist() == [1.0, 0.0], "of the two that may be sampled"
    assert found["probs_rose"].tolist() == [1.0, 1.0], "a common shift changes no probability"
    # Changes (-ln 2, ln 1.5, ln 1.5) less their mean, against f = (-1/2, 1/4, 1/4) without a banned part.
    c = np.array([-LN2, math.log(1.5), math.log(1.5)])
    c -= c.mean()
    assert found["along"] == pytest.approx([c @ [-1 / 2, 1 / 4, 1 / 4]] * 2, rel=1e-6)
    assert found["formula_sq"] == pytest.approx([3 / 8] * 2, rel=1e-6)
    assert found["change_sq"] == pytest.approx([c @ c] * 2, rel=1e-5)


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_free_logits_do_what_the_formula_says(sign: float, seed: int) -> None:
    """One step of plain gradient ascent on A log pi(y), each token with logits of its own."""
    rng = np.random.default_rng(seed)
    n, vocabulary, temperature, lr = 40, 30, 1.3, 1e-5
    z = torch.from_numpy(rng.normal(size=(n, vocabulary)) * 2).requires_grad_()
    banned = torch.from_numpy(rng.choice(vocabulary, 4, replace=False))
    allowed = np.setdiff1d(np.arange(vocabulary), banned.numpy())
    targets = torch.from_numpy(rng.choice(allowed, n))
    advantages = sign * torch.from_numpy(rng.uniform(0.1, 2, n))

    def law(logits: Tensor) -> Tensor:
        return (logits.detach() / temperature).index_fill(1, banned, -math.inf)

    logprobs = (z / temperature).index_fill(1, banned, -math.inf).log_softmax(-1)
    (advantages * logprobs.gather(1, targets[:, None])[:, 0]).sum().backward()
    assert z.grad is not None
    found = named(token_changes(law(z), law(z + lr * z.grad), targets, advantages))
    step = lr / temperature**2  # of the logits over the temperature
    predicted = formula(law(z), targets, advantages).numpy() * step
    for name, right in zip(FIRST_ORDER, predicted, strict=True):
        np.testing.assert_allclose(found[name], right, rtol=1e-4, atol=1e-4 * np.abs(right).max())
    np.testing.assert_allclose(found["along"], step * found["formula_sq"], rtol=1e-6)
    np.testing.assert_allclose(found["change_sq"], step**2 * found["formula_sq"], rtol=1e-6)
    assert (sign * found["logprob"] > 0).all() and (sign * found["mass"] < 0).all()
    assert set(found["logits_rose"]) == {0.0 if sign > 0 else 1.0}, "all others rise where A < 0, and fall where A > 0"


def logits_at(policy: PolicyModule, job: Vocabulary, temperature: float) -> Tensor:
    with torch.no_grad():
        return policy(job, temperature=temperature)[0]


@pytest.mark.parametrize("kind", KINDS)
def test_vocabulary_is_the_law_of_the_log_probs(kind: Kind, seed: int) -> None:
    """At any tokens, in both layouts: log-prob and entropy are those that the update works with."""
    case = small_case(kind, seed)
    for batch in (flat(case.chat, case.groups), naive(case.chat, case.groups)):
        with torch.no_grad():
            logprobs, entropy = case.policy(batch, temperature=0.7)
        tokens = torch.from_numpy(case.rng.permutation(len(batch.targets))[:9])
        law = logits_at(case.policy, Vocabulary(batch=batch, tokens=tokens), 0.7).log_softmax(-1)
        assert torch.isneginf(law[:, list(case.chat.banned_ids)]).all()
        torch.testing.assert_close(law.gather(1, batch.targets[tokens, None])[:, 0], logprobs[tokens])
        mine = -torch.where(torch.isfinite(law), law.exp() * law, 0.0).sum(1)
        torch.testing.assert_close(mine, entropy[tokens], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("sign", [1, -1])
def test_a_model_changes_as_its_gradient_says(sign: int, seed: int) -> None:
    """Plain SGD on the tokens of one sign, by central differences, against the gradient of each token by itself."""
    case = small_case("dense", seed)
    batch, temperature = flat(case.chat, case.groups), 0.9
    advantages = torch.repeat_interleave(batch.advantages, batch.lengths)
    weights = [p for p in case.policy.parameters() if p.requires_grad]
    logprobs, _ = case.policy(batch, temperature=temperature)
    step = torch.autograd.grad((advantages * logprobs)[advantages * sign > 0].sum(), weights, allow_unused=True)
    tokens = chosen_tokens(batch, per_sign=3)
    job = Vocabulary(batch=batch, tokens=tokens)
    law = case.policy(job, temperature=temperature)[0].log_softmax(-1)
    picked = law.gather(1, batch.targets[tokens, None])[:, 0]
    entropy = -(law.exp() * law.masked_fill(torch.isneginf(law), 0.0)).sum(1)

    def slope(value: Tensor) -> float:
        """Its derivative along the step."""
        grads = torch.autograd.grad(value, weights, retain_graph=True, allow_unused=True)
        pairs = zip(grads, step, strict=True)
        return sum(float((g.double() * s.double()).sum()) for g, s in pairs if g is not None and s is not None)

    expected = {
        "logprob": [slope(v) for v in picked],
        "mass": [slope(-v.exp()) for v in picked],
        "entropy": [slope(v) for v in entropy],
    }

    lr = 5e-3 / np.abs(expected["logprob"]).max()  # the log-probs move by 0.005 and less

    def moved(by: float) -> Tensor:
        with torch.no_grad():
            for p, s in zip(weights, step, strict=True):
                if s is not None:
                    p += by * s
        return logits_at(case.policy, job, temperature)

    before, after = moved(-lr), moved(2 * lr)
    found = named(token_changes(before, after, batch.targets[tokens], advantages[tokens]))
    for name, right in expected.items():
        largest = np.abs(right).max()
        np.testing.assert_allclose(found[name] / (2 * lr), right, rtol=0.01, atol=0.005 * largest, err_msg=name)


def test_tokens_are_chosen_evenly_from_both_signs(seed: int) -> None:
    case = small_case("dense", seed)
    batch = flat(case.chat, case.groups)
    advantages = torch.repeat_interleave(batch.advantages, batch.lengths).numpy()
    pos, neg = np.flatnonzero(advantages > 0), np.flatnonzero(advantages < 0)
    assert sorted(chosen_tokens(batch, per_sign=10_000).tolist()) == sorted([*pos, *neg]), "all, where there are few"
    few = chosen_tokens(batch, per_sign=3).numpy()
    assert set(few) == {p for part in (pos, neg) for p in (part[0], part[round((len(part) - 1) / 2)], part[-1])}


@pytest.mark.parametrize(("kind", "sign"), [("dense", "pos"), ("dense", "neg"), ("moe", "neg")])
def test_an_isolated_step_is_as_long_as_asked_and_taken_back(kind: Kind, sign: Sign, seed: int) -> None:
    case = small_case(kind, seed)
    batch = flat(case.chat, case.groups)
    advantages = torch.repeat_interleave(batch.advantages, batch.lengths)
    own = advantages * (1 if sign == "pos" else -1) > 0
    before = {name: tensor.clone() for name, tensor in full_state(case.policy).items()}
    found = [isolated_step(case.policy, batch, sign, size=size, temperature=0.8) for size in (0.002, 0.004)]
    assert max_difference(full_state(case.policy), before) == 0
    # The same step by hand: lr from the wanted mean of A * change, weighted by |A|.
    weights = [p for p in case.policy.parameters() if p.requires_grad]
    old, _ = case.policy(batch, temperature=0.8)
    step = torch.autograd.grad((advantages * old)[own].sum(), weights, allow_unused=True)
    squared = sum(float((g**2).sum()) for g in step if g is not None)
    with torch.no_grad():
        for p, g in zip(weights, step, strict=True):
            p += 0 if g is None else g * 0.002 * float(advantages[own].abs().sum()) / squared
        new, _ = case.policy(batch, temperature=0.8)
    change = (new - old.detach()).numpy()
    weighted = float((advantages[own].numpy() * change[own.numpy()]).sum() / advantages[own].abs().sum())
    for name, picked in (("pos", advantages > 0), ("neg", advantages < 0)):
        assert found[0][f"{name}/tokens"] == int(picked.sum())
        assert found[0][f"{name}/logprob"] == pytest.approx(change[picked.numpy()].mean(), rel=1e-2, abs=1e-5)
    if kind == "dense":  # a token that goes to another expert is no matter of first order
        assert weighted == pytest.approx(0.002, rel=0.1)
        assert found[1][f"{sign}/formula_step"] == pytest.approx(2 * found[0][f"{sign}/formula_step"], rel=0.1)


def test_an_isolated_step_refuses_what_it_cannot_measure(seed: int) -> None:
    case = small_case("dense", seed)
    groups = [
        dataclasses.replace(g, rollouts=tuple(dataclasses.replace(r, advantage=1.0) for r in g.rollouts))
        for g in case.groups
    ]
    with pytest.raises(ValueError, match="no token with A < 0"):
        isolated_step(case.policy, flat(case.chat, groups), "neg", size=0.01)
    with pytest.raises(ValueError, match=r"float32.*bfloat16"):
        isolated_step(case.policy.bfloat16(), flat(case.chat, groups), "pos", size=0.01)


class Engine(PolicyEngine):
    """Around a policy without DeepSpeed, to look and not to update."""

    def __init__(self, policy: PolicyModule) -> None:
        self.ds = SimpleNamespace(module=policy, eval=policy.eval, train=policy.train)
        self.world, self.updates = ONE, 0


def test_replayed_routes_are_those_of_the_law(seed: int) -> None:
    case = small_case("moe", seed)
    routes = case.policy.routes = attach_routing(case.policy.hf)
    assert routes is not None
    batch = flat(case.chat, with_random_routes(case.rng, routes, case.groups))
    engine, tokens = Engine(case.policy), torch.arange(len(batch.targets))
    laws = []
    for replay in (True, False):
        now = dataclasses.replace(batch, replay=replay)
        law = engine.vocabulary(now, tokens, 0.8).log_softmax(-1).gather(1, batch.targets[:, None])[:, 0]
        torch.testing.assert_close(law, engine.logprobs([now], now, 0.8)[0].logprobs)
        laws.append(law)
    assert (laws[0] - laws[1]).abs().max() > 1e-3


@pytest.mark.parametrize("sign", [1, -1])
def test_statistics_of_a_step(sign: int, seed: int) -> None:
    """Two updates of a model on the tokens of one sign: means over the tokens looked at, from single forward passes."""
    case = small_case("dense", seed)
    batches = [flat(case.chat, case.groups[:2]), flat(case.chat, case.groups[2:])]
    stats, engine = NegativeTokens(temperature=1.1), Engine(case.policy)
    changes: dict[str, list[float]] = {"pos": [], "neg": []}
    for batch in batches:
        advantages = torch.repeat_interleave(batch.advantages, batch.lengths)
        before = stats.look(engine, batches, filler=batches[0])
        old, _ = case.policy(batch, temperature=1.1)
        (advantages * old)[advantages * sign > 0].sum().backward()
        with torch.no_grad():
            for p in case.policy.parameters():
                p += 1e-4 * (0 if p.grad is None else p.grad)
            case.policy.zero_grad()
            new, _ = case.policy(batch, temperature=1.1)
        stats.add(engine, before)
        engine.updates += 1
        for name, picked in (("pos", advantages > 0), ("neg", advantages < 0)):
            changes[name] += (new - old.detach())[picked].tolist()
    out = stats.reduce(ONE)
    for name, values in changes.items():
        assert out[f"negative_tokens/{name}/tokens"] == len(values) > 0
        assert out[f"negative_tokens/{name}/logprob"] == pytest.approx(np.mean(values), rel=1e-2, abs=1e-5)
        assert 0 <= out[f"negative_tokens/{name}/formula_share"] <= 1
    own = f"negative_tokens/{'pos' if sign > 0 else 'neg'}"
    assert sign * out[f"{own}/logprob"] > 0 and sign * out[f"{own}/mass"] < 0
    assert out[f"{own}/formula_step"] > 0 and sign * out[f"{own}/mass_formula"] < 0


def test_a_rank_without_groups_takes_part_and_counts_nothing(seed: int) -> None:
    case = small_case("dense", seed)
    batch = flat(case.chat, case.groups[:1])
    seen: list[Any] = []
    case.policy.register_forward_hook(lambda *_: seen.append(1))
    stats, engine = NegativeTokens(temperature=1.0), Engine(case.policy)
    stats.add(engine, stats.look(engine, [], filler=batch))
    assert len(seen) == 2, "the forward passes in which sharded engines communicate"
    assert stats.reduce(ONE) == {}
