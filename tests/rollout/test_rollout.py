"""Sampling in process: the recorded law is the trained one, and the same names give the same responses."""

from __future__ import annotations

import dataclasses
import math
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from helpers_models import (
    KINDS,
    MODEL,
    NEAR_TIE,
    TOLERANCE,
    Kind,
    flat,
    make_model,
    make_policy,
    make_prompts,
    naive,
    processor,
    router_margin,
)
from torch import nn

from sapo_vl.distributed import World
from sapo_vl.model.chat import Chat
from sapo_vl.model.loading import prepare_model
from sapo_vl.model.policy import Decode, PolicyModule, Prefill
from sapo_vl.model.routing import attach_routing
from sapo_vl.rollout import SamplingParams, TransformersEngine, parity
from sapo_vl.rollout.base import sample_tokens, uniforms
from sapo_vl.rollout.parity import ParityReport
from sapo_vl.rollout.schedule import Held
from sapo_vl.types import Finish, Prompt, RolloutGroup

IMAGES: list[list[tuple[int, int]]] = [[(48, 32)], [], [(32, 64), (32, 32)], [(64, 64)], []]


def params(**changes: float) -> SamplingParams:
    settings = {"n": 3, "max_new_tokens": 20, "temperature": 1.0, "seed": 5} | changes
    return SamplingParams(**settings)  # type: ignore[arg-type]


def setup(kind: Kind, seed: int) -> tuple[TransformersEngine, list[Prompt]]:
    """The first from `seed` on whose prompts are not routed near a tie: there two layouts need not agree."""
    for attempt in range(20):
        engine, prompts = draw(kind, seed + 1000 * attempt)
        if router_margin(engine.policy, [flat(engine.chat, engine.generate(prompts, params()))]) > NEAR_TIE:
            return engine, prompts
    raise AssertionError("twenty draws in a row with a near-tie: the router is broken, or NEAR_TIE too large")


def draw(kind: Kind, seed: int) -> tuple[TransformersEngine, list[Prompt]]:
    """An engine with a model that ends a turn on any of forty ids, so that lengths vary."""
    model = make_model(kind, seed)
    assert model.generation_config is not None
    model.generation_config.eos_token_id = [2, *range(100, 140)]
    model = prepare_model(model, MODEL)
    chat = Chat(processor(), model, MODEL)
    engine = TransformersEngine(PolicyModule(model, chat.banned_ids), chat)
    return engine, make_prompts(chat, np.random.default_rng(seed), IMAGES)


def untouched(engine: TransformersEngine, kind: Kind) -> Any:
    """The engine's model as transformers has it."""
    model = make_model(kind, 0)
    model.load_state_dict(engine.policy.hf.state_dict())
    return model


def ids_of(groups: list[RolloutGroup]) -> dict[str, list[list[int]]]:
    return {g.prompt.problem.id: [r.response_ids.tolist() for r in g.rollouts] for g in groups}


def test_presence_penalty_is_taken_off_once_per_token(seed: int) -> None:
    engine, prompts = setup("dense", seed)
    plain = engine.generate(prompts, params(n=1, temperature=0.0))
    assert any(len(set(ids)) < len(ids) for group in ids_of(plain).values() for ids in group), "no token came twice"
    for temperature in (0.0, 1.0):
        never = engine.generate(prompts, params(temperature=temperature, presence_penalty=1000.0))
        assert all(len(set(ids)) == len(ids) for group in ids_of(never).values() for ids in group)
    # The recorded law is the penalised one: the trainer's before anything was said, another one after it.
    groups = engine.generate(prompts, params(presence_penalty=1.5))
    with torch.no_grad():
        gap = (engine.policy(batch := flat(engine.chat, groups))[0] - batch.old_logprobs).abs()
    lengths = [len(r.response_ids) for g in groups for r in g.rollouts]
    first = np.cumsum([0, *lengths[:-1]])
    assert gap[first].max() < TOLERANCE and gap.max() > 1e-2


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("temperature", [1.0, 1.3])
def test_recorded_logprobs_are_the_trainers(kind: Kind, temperature: float, seed: int) -> None:
    engine, prompts = setup(kind, seed)
    groups = engine.generate(prompts, params(n=6, temperature=temperature))
    assert len({len(r.response_ids) for g in groups for r in g.rollouts}) > 2, "lengths should vary"
    for layout in (flat, naive):
        batch = layout(engine.chat, groups)
        with torch.no_grad():
            logprobs, _ = engine.policy(batch, temperature=temperature)
        assert (logprobs - batch.old_logprobs).abs().max() < TOLERANCE
    with torch.no_grad():  # the check can fail: another temperature is another law
        other, _ = engine.policy(batch, temperature=temperature + 0.1)
    assert (other - batch.old_logprobs).abs().max() > 1e-2


@pytest.mark.parametrize("kind", KINDS)
def test_responses_depend_on_names_alone(kind: Kind, seed: int) -> None:
    """Not on how prompts are batched or ordered; on the seed they do."""
    engine, prompts = setup(kind, seed)
    together = ids_of(engine.generate(prompts, params()))
    assert ids_of(engine.generate(prompts[::-1], params())) == together
    assert engine.generate([], params()) == []
    assert ids_of(engine.generate(prompts[1:2], params())) == {k: v for k, v in together.items() if k == "problem-1"}
    assert ids_of(engine.generate(prompts, params(n=2))) == {k: v[:2] for k, v in together.items()}
    assert ids_of(engine.generate(prompts, params(seed=6))) != together
    # One id in eight ends a response, so very short ones may meet by chance.
    flat_ids = [tuple(r) for group in together.values() for r in group if len(r) > 2]
    assert len(set(flat_ids)) == len(flat_ids) > 2, "samples of a group are independent draws"


@dataclass
class Passes:
    """Counts the passes of an engine."""

    prompts: list[int] = field(default_factory=list)  # of each Prefill
    responses: list[int] = field(default_factory=list)  # of each Decode
    order: str = ""  # P or D for each

    @classmethod
    def of(cls, engine: TransformersEngine) -> Passes:
        seen = cls()

        def note(_module: nn.Module, args: tuple[Any, ...]) -> None:
            if isinstance(args[0], Prefill):
                seen.prompts.append(len(args[0].last_index))
                seen.order += "P"
            if isinstance(args[0], Decode):
                seen.responses.append(len(args[0].ids))
                seen.order += "D"

        engine.policy.register_forward_pre_hook(note)
        return seen


@pytest.mark.parametrize("kind", KINDS)
def test_any_memory_gives_the_same_responses(kind: Kind, seed: int) -> None:
    """Prompts that wait come in as responses end; the law is the stock model's on the whole text of each."""
    engine, prompts = setup(kind, seed)
    if kind == "moe":
        engine.policy.routes = attach_routing(engine.policy.hf)
    request = params(n=4, max_new_tokens=40, routes=True)
    engine.cache_bytes = lambda: 1 << 40
    passes = Passes.of(engine)
    right = engine.generate(prompts, request)
    assert passes.prompts == [len(prompts)] and passes.responses[0] <= 4 * len(prompts)
    room = engine.room(request)
    longest = max(len(p.ids) for p in prompts)
    group = room.need(Held().plus(longest, 4))
    stock = untouched(engine, kind)
    # A response at a time; a part of a group; a group and a half; two groups and a bit.
    for memory in (1, room.need(Held().plus(longest, 2)), round(1.5 * group), round(2.2 * group)):
        engine.cache_bytes = lambda memory=memory: memory
        passes.prompts.clear()
        passes.responses.clear()
        found = engine.generate(prompts, request)
        assert ids_of(found) == ids_of(right)
        assert len(passes.prompts) > 1
        assert 1 <= max(passes.responses) <= max(1, memory // room.response_bytes)
        compared = 0
        for group_found, group_right in zip(found, right, strict=True):
            assert (group_found.prompt_routes is None) is (kind == "dense")
            for r, s in zip(group_found.rollouts, group_right.rollouts, strict=True):
                assert r.finish is s.finish
                np.testing.assert_allclose(r.logprobs, s.logprobs, atol=TOLERANCE)
                if kind == "moe":
                    assert r.routes is not None and s.routes is not None and r.routes.shape == s.routes.shape
                    if r.routes.size:  # a response of one token has none
                        # Near-ties apart, which are rare.
                        assert (np.sort(r.routes) != np.sort(s.routes)).mean() < 0.05
                    compared += r.routes.size
            np.testing.assert_allclose(
                group_found.rollouts[0].logprobs, stock_logprobs(engine, stock, group_found), atol=TOLERANCE
            )
        assert (compared > 0) is (kind == "moe")
    # With the largest of these, prompts came in while others were under way.
    assert len(passes.responses) < sum(max(len(r.response_ids) for r in g.rollouts) for g in right)


def test_ranks_run_the_same_passes(seed: int) -> None:
    """As sharded weights want it, also where one rank has less room, or nothing left to do: here, ranks are threads."""
    both = threading.Barrier(2, timeout=120)
    wishes = [0, 0]
    engines, passes, right = [], [], []
    for rank in range(2):
        engine, prompts = setup("dense", seed)
        request = params(n=2, max_new_tokens=12)
        mine = prompts[:2] if rank else prompts[2:4]
        right.append(ids_of(engine.generate(mine, request)))
        passes.append(Passes.of(engine))

        def most(wish: int, rank: int = rank) -> int:
            wishes[rank] = wish
            both.wait()
            found = max(wishes)
            both.wait()
            return found

        engine.most = most
        if rank:
            engine.cache_bytes = lambda: 1  # a response at a time
        engines.append((engine, mine, request))
    with ThreadPoolExecutor(2) as pool:
        results = [ids_of(r) for r in pool.map(lambda e: e[0].generate(e[1], e[2]), engines)]
    assert results == right
    assert passes[0].order == passes[1].order
    assert passes[1].order.count("P") == 4 and passes[0].prompts == [2, 1, 1, 1], "rank 0 ran blank prompts"


def stock_logprobs(engine: TransformersEngine, stock: Any, group: RolloutGroup) -> np.ndarray:
    """Of the first response, by transformers' own model on the whole text."""
    prompt, response = group.prompt, group.rollouts[0].response_ids
    ids = torch.from_numpy(np.concatenate([prompt.ids, response]))[None]
    images = {}
    if prompt.pixel_values is not None:
        images = {"pixel_values": prompt.pixel_values, "image_grid_thw": prompt.image_grid_thw}
    types = (ids == engine.chat.image_token_id).int()
    with torch.no_grad():
        logits = stock(input_ids=ids, mm_token_type_ids=types, **images).logits[0, len(prompt.ids) - 1 : -1]
    logits[:, list(engine.chat.banned_ids)] = -torch.inf
    return logits.log_softmax(-1)[range(len(response)), torch.from_numpy(response)].numpy()


@pytest.mark.parametrize("limit", [2, 200])
def test_finish_and_lengths(limit: int, seed: int) -> None:
    engine, prompts = setup("dense", seed)
    engine.weight_version = 7
    groups = engine.generate(prompts, params(n=8, max_new_tokens=limit))
    eos = set(engine.chat.eos_ids)
    assert [g.prompt for g in groups] == prompts
    finishes = set()
    for r in (r for g in groups for r in g.rollouts):
        finishes.add(r.finish)
        ids = r.response_ids.tolist()
        assert not eos & set(ids[:-1]), "nothing follows the end of a turn"
        assert (r.finish is Finish.STOP) == (ids[-1] in eos)
        assert 1 <= len(ids) <= limit and (r.finish is Finish.STOP or len(ids) == limit)
        assert r.weight_version == 7 and len(r.logprobs) == len(ids) and (r.logprobs <= 0).all()
        assert r.text == engine.chat.decode(r.response_ids)
    # 40 responses, 41 of some 300 ids end one: at a limit of 2 some are cut, at one of 200 some end by themselves.
    assert (Finish.LENGTH if limit == 2 else Finish.STOP) in finishes


def test_generate_leaves_the_mode_as_it_was(seed: int) -> None:
    engine, prompts = setup("dense", seed)
    for training in (True, False):
        engine.policy.train(training)
        engine.generate(prompts[:1], params(max_new_tokens=1))
        assert engine.policy.training is training


@pytest.mark.parametrize("greedy", [True, False])
def test_vision_ids_are_never_sampled(greedy: bool, seed: int) -> None:
    """With weights that make the image token the likeliest of all, and as a control without the ban."""
    engine, prompts = setup("dense", seed)
    inner = engine.policy.hf.model.language_model
    kept: list[torch.Tensor] = []
    handle = inner.register_forward_hook(lambda m, a, out: kept.append(out.last_hidden_state[0]))
    engine.generate(prompts, params(max_new_tokens=4))
    handle.remove()
    direction = torch.cat(kept).mean(0)
    with torch.no_grad():
        engine.policy.head.weight[engine.chat.image_token_id] = 10 * direction / direction.norm()
    temperature = 0.0 if greedy else 1.0

    sampled = [
        i for rs in ids_of(engine.generate(prompts, params(temperature=temperature))).values() for r in rs for i in r
    ]
    assert not set(sampled) & set(engine.chat.banned_ids)

    unbanned = TransformersEngine(PolicyModule(engine.policy.hf, ()), engine.chat)
    first = unbanned.generate(prompts, params(temperature=temperature, max_new_tokens=1))
    assert any(engine.chat.image_token_id in r.response_ids for g in first for r in g.rollouts)


@pytest.mark.parametrize("kind", KINDS)
def test_greedy_equals_transformers_generate(kind: Kind, seed: int) -> None:
    engine, prompts = setup(kind, seed)
    plain = untouched(engine, kind)
    ours = engine.generate(prompts, params(n=1, temperature=0.0))
    for group in ours:
        prompt = group.prompt
        ids = torch.from_numpy(prompt.ids)[None]
        images = {}
        if prompt.pixel_values is not None:
            images = {"pixel_values": prompt.pixel_values, "image_grid_thw": prompt.image_grid_thw}
        out = plain.generate(
            input_ids=ids,
            attention_mask=torch.ones_like(ids),
            mm_token_type_ids=(ids == engine.chat.image_token_id).int(),
            do_sample=False,
            max_new_tokens=20,
            eos_token_id=list(engine.chat.eos_ids),
            pad_token_id=engine.chat.pad_id,
            suppress_tokens=list(engine.chat.banned_ids),
            **images,
        )
        assert out[0, ids.shape[1] :].tolist() == group.rollouts[0].response_ids.tolist()


# --- the law --------------------------------------------------------------------------------------


def law_by_hand(logits: np.ndarray, temperature: float, top_k: int, top_p: float) -> np.ndarray:
    """[V] float64: softmax at a temperature, cut to the top_k likeliest, then to the fewest that reach top_p."""
    p = np.exp(logits.astype(np.float64) / temperature - (logits / temperature).max())
    p /= p.sum()
    order = sorted(range(len(p)), key=lambda i: -p[i])
    if top_k:
        order = order[:top_k]
    kept, mass, total = [], 0.0, sum(p[i] for i in order)
    for i in order:
        kept.append(i)
        mass += p[i] / total
        if mass >= top_p:
            break
    law = np.zeros_like(p)
    law[kept] = p[kept] / p[kept].sum()
    return law


LAWS = [(1.0, 0, 1.0), (1.3, 0, 1.0), (0.7, 5, 1.0), (1.0, 0, 0.8), (1.0, 7, 0.6), (2.0, 100, 0.95)]


@pytest.mark.parametrize(("temperature", "top_k", "top_p"), LAWS)
def test_law(temperature: float, top_k: int, top_p: float, seed: int) -> None:
    """Uniforms on an even grid hit each token in proportion to its mass; the log-prob returned is that mass."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=30).astype(np.float32) * 2
    logits[[3, 11]] = -np.inf  # banned
    expected = law_by_hand(logits, temperature, top_k, top_p)
    draws = 20_000
    u = torch.from_numpy((np.arange(draws) + 0.5) / draws)
    request = params(temperature=temperature, top_k=top_k, top_p=top_p)
    ids, logprobs = sample_tokens(torch.from_numpy(logits).expand(draws, -1), u, request)
    frequency = np.bincount(ids.numpy(), minlength=30) / draws
    assert np.abs(frequency - expected).max() <= 1.5 / draws
    np.testing.assert_allclose(np.exp(logprobs.double().numpy()), expected[ids.numpy()], rtol=1e-5)


def test_drawn_frequencies(seed: int) -> None:
    """The generator's own uniforms: chi-square of 20,000 draws from a law of 20 tokens."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=20).astype(np.float32)
    draws = 20_000
    u = torch.from_numpy(uniforms("a problem", 3, seed, draws))
    ids, _ = sample_tokens(torch.from_numpy(logits).expand(draws, -1), u, params(temperature=1.3))
    expected = draws * law_by_hand(logits, 1.3, 0, 1.0)
    chi2 = float(((np.bincount(ids.numpy(), minlength=20) - expected) ** 2 / expected).sum())
    freedom = 19
    # Wilson-Hilferty: the cube root of chi2 / freedom is nearly normal. 5 sigma: once in 3.5 million runs.
    sigma = math.sqrt(2 / (9 * freedom))
    assert ((chi2 / freedom) ** (1 / 3) - (1 - 2 / (9 * freedom))) / sigma < 5


@pytest.mark.parametrize("u", [0.0, 1.0 - 2**-53])
def test_ends_of_the_unit_interval(u: float) -> None:
    """A uniform of 0 must not hit a banned first token, nor one next to 1 a banned last token or none."""
    logits = torch.tensor([[-torch.inf, 0.0, 1.0, -torch.inf]])
    ids, _ = sample_tokens(logits, torch.tensor([u], dtype=torch.float64), params())
    assert ids.tolist() == [1 if u == 0.0 else 2]


def test_greedy_takes_the_likeliest() -> None:
    logits = torch.tensor([[0.0, 3.0, 1.0], [5.0, -torch.inf, 4.0]])
    ids, logprobs = sample_tokens(logits, torch.zeros(2, dtype=torch.float64), params(temperature=0.0))
    assert ids.tolist() == [1, 0] and logprobs.tolist() == [0.0, 0.0]


def test_uniforms_are_named() -> None:
    one = uniforms("a", 0, 1, 8)
    assert (one >= 0).all() and (one < 1).all() and one.dtype == np.float64
    np.testing.assert_array_equal(one, uniforms("a", 0, 1, 8))
    np.testing.assert_array_equal(one[:5], uniforms("a", 0, 1, 5))  # the length does not matter
    others = [uniforms(*name, 8) for name in (("b", 0, 1), ("a", 1, 1), ("a", 0, 2))]
    assert not any(np.isclose(one, other).any() for other in others)


def test_a_group_is_packed_as_sampled(seed: int) -> None:
    """Token ids and log-probs reach the trainer as they are, nothing is tokenised again."""
    engine, prompts = setup("dense", seed)
    groups = engine.generate(prompts[:2], params(n=2))
    groups = [
        dataclasses.replace(g, rollouts=tuple(dataclasses.replace(r, advantage=1.0) for r in g.rollouts))
        for g in groups
    ]
    batch = flat(engine.chat, groups)
    np.testing.assert_array_equal(
        batch.targets.numpy(), np.concatenate([r.response_ids for g in groups for r in g.rollouts])
    )
    recorded = np.concatenate([r.logprobs for g in groups for r in g.rollouts])
    np.testing.assert_array_equal(batch.rollout_logprobs.numpy(), recorded)
    np.testing.assert_array_equal(batch.old_logprobs.numpy(), recorded)


def test_the_default_policy_of_a_fresh_model_has_one_eos(seed: int) -> None:
    _, chat = make_policy("dense", seed)
    assert chat.eos_ids == (chat.tokenizer.convert_tokens_to_ids("<|im_end|>"),)


def test_the_gap_of_prompts_near_a_tie_is_told_apart(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a bound between the margins of the five prompts, those above it are the settled ones; in bfloat16 all are,
    whose limit has room for another expert."""
    engine, prompts = setup("moe", seed)
    chat, policy = engine.chat, engine.policy

    def logprobs(batches: list[Any], _filler: Any, temperature: float) -> list[Any]:
        with torch.no_grad():
            return [(*policy(b, temperature=temperature), None) for b in batches]

    trainer: Any = SimpleNamespace(module=policy, logprobs=logprobs)

    def measured() -> ParityReport:
        return parity.measure(trainer, chat, engine, prompts, params(), World.alone())

    groups = engine.generate(prompts, params())
    margin = {g.prompt.problem.id: router_margin(policy, [flat(chat, [g])]) for g in groups}
    bound = sorted(margin.values())[2] * 1.0001
    tokens = {"text": 0, "image": 0}
    for group in groups:
        if margin[group.prompt.problem.id] > bound:
            tokens["image" if group.prompt.images else "text"] += sum(len(r.response_ids) for r in group.rollouts)
    everything = measured()
    assert everything.settled == everything.gaps and everything.gaps["text"].largest < TOLERANCE
    monkeypatch.setattr(parity, "NEAR_TIE", bound)
    report = measured()
    assert report.gaps == everything.gaps
    assert {kind: gap.tokens for kind, gap in report.settled.items()} == {k: n for k, n in tokens.items() if n}
    policy.to(torch.bfloat16)
    report = measured()
    assert report.settled == report.gaps
