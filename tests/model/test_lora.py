"""Adapters: what they go to, what they compute and learn, what they are merged into, and what is refused."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
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
    Spec,
    assert_same,
    flat,
    full_state,
    gradients,
    make_groups,
    make_model,
    max_difference,
    merged_by_hand,
    naive,
    plain_name,
    processor,
    router_margin,
    tokenizer,
    weighted_sum,
    worst_error,
)
from torch import Tensor

from sapo_vl.learning.optim import tag_for_muon
from sapo_vl.model.chat import Chat
from sapo_vl.model.export import save_hf_folder
from sapo_vl.model.loading import ModelConfig, ModelError, Part, base_model, load_model, prepare_model
from sapo_vl.model.lora import LoraConfig, adapters, check_lora, find_targets, merged_state
from sapo_vl.model.policy import PolicyModule
from sapo_vl.model.tiny import tiny_config

SPECS = [Spec(((48, 32),), (5, 3)), Spec((), (4,))]
ATTENTION = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP = ("gate_proj", "up_proj", "down_proj")
LAYERS = 3


@dataclasses.dataclass(frozen=True)
class Case:
    kind: Kind
    targets: tuple[str, ...]
    adapted: int  # weights, by hand
    text: dict[str, Any] = dataclasses.field(default_factory=dict)  # of the language model's config
    implementation: str = "eager"


CASES = {
    "dense": Case("dense", (*ATTENTION, *MLP), 7 * LAYERS),
    "dense, biases": Case("dense", ATTENTION, 4 * LAYERS, {"attention_bias": True}),
    "moe": Case("moe", (*ATTENTION, *MLP), (4 + 2) * LAYERS),
    "moe, grouped": Case("moe", (*ATTENTION, *MLP), (4 + 2) * LAYERS, implementation="grouped_mm"),
    "moe, biases": Case("moe", ("q_proj", "down_proj"), 2 * LAYERS, {"attention_bias": True}),
    "moe, attention": Case("moe", ATTENTION, 4 * LAYERS),
    "moe, down": Case("moe", ("down_proj",), LAYERS),
    "moe, gate and up": Case("moe", ("up_proj", "gate_proj"), LAYERS),
    "moe, experts": Case("moe", ("experts",), 2 * LAYERS),
    "moe, one layer dense": Case("moe", MLP, 3 + 2 * (LAYERS - 1), {"mlp_only_layers": [1]}),
    "moe, experts, one layer dense": Case("moe", ("experts",), 2 * (LAYERS - 1), {"mlp_only_layers": [1]}),
}


@dataclasses.dataclass(frozen=True)
class Adapted:
    policy: PolicyModule
    chat: Chat
    groups: list[Any]
    plain: dict[str, Tensor]  # the model's weights without adapters
    rng: np.random.Generator
    config: ModelConfig


def draw(case: Case, seed: int, **lora: Any) -> Adapted:
    """An adapted model with random A and B, and groups without a near-tie of its routing."""
    config = MODEL.model_copy(update={"lora": LoraConfig(rank=3, alpha=7, target_modules=case.targets, **lora)})
    for attempt in range(20):
        model = make_model(case.kind, seed + attempt, text=case.text)
        if case.kind == "moe":
            model.set_experts_implementation(case.implementation)
        plain = {name: t.clone() for name, t in full_state(model).items()}
        generator = torch.Generator().manual_seed(seed + attempt)
        hf = prepare_model(model, config).eval()
        chat = Chat(processor(), hf, config)
        policy = PolicyModule(hf, chat.banned_ids)
        with torch.no_grad():
            for name, p in policy.named_parameters():
                if "lora_" in name:
                    p.copy_(0.1 * torch.randn(p.shape, generator=generator))
        rng = np.random.default_rng([seed, attempt])
        groups = make_groups(chat, rng, SPECS)
        if router_margin(policy, [flat(chat, groups)]) > NEAR_TIE:
            return Adapted(policy, chat, groups, plain, rng, config)
    raise AssertionError("twenty near-ties in a row")


def logprobs(policy: PolicyModule, batch: Any) -> Tensor:
    with torch.no_grad():
        return policy(batch)[0]


def without_adapters(it: Adapted, state: dict[str, Tensor], case: Case) -> PolicyModule:
    """A model that peft has never seen, with these weights."""
    model = make_model(case.kind, 0, text=case.text)
    model.load_state_dict(state)
    return PolicyModule(prepare_model(model, MODEL), it.chat.banned_ids)


@pytest.mark.parametrize("name", CASES)
def test_forward_gradient_and_merge(name: str, seed: int) -> None:
    """Against the model with W + alpha / rank B A worked out by hand: log-probs, weights, gradients of A and B."""
    case = CASES[name]
    it = draw(case, seed)
    state = full_state(it.policy.hf)
    expected = merged_by_hand(state, rank=3, alpha=7)
    pairs = adapters(it.policy.hf)
    assert len(pairs) == case.adapted
    touched = {n for n, t in expected.items() if not torch.equal(t, it.plain[n])}
    assert touched == {plain_name(n) for n in pairs}
    assert all(n.startswith("model.language_model.layers.") for n in touched)

    found = merged_state(state, pairs)
    assert max_difference(found, expected) < 1e-6
    untouched = found.keys() - touched
    assert all(torch.equal(found[n], it.plain[n]) for n in untouched), "what has no adapter stays to the bit"
    assert any(n.endswith("_proj.bias") for n in untouched) == ("attention_bias" in case.text)

    merged = without_adapters(it, expected, case)
    batch = flat(it.chat, it.groups)
    before = logprobs(it.policy, batch)
    assert (logprobs(merged, batch) - before).abs().max() < TOLERANCE
    assert (logprobs(without_adapters(it, it.plain, case), batch) - before).abs().max() > 1e-2, "adapters matter"

    # With G the gradient of a merged weight, that of B is s G A^T and that of A is s B^T G, expert by expert.
    loss = weighted_sum(it.rng, it.groups)
    _, learned = gradients(it.policy, [batch], loss)
    _, whole = gradients(merged, [naive(it.chat, it.groups)], loss)
    by_hand = {}
    for weight, pair in pairs.items():
        g = whole[f"hf.{plain_name(weight)}"]
        a, b = state[pair.a], state[pair.b]
        grad_a, grad_b = torch.zeros_like(a), torch.zeros_like(b)
        experts = len(g) if g.ndim == 3 else 1
        for e, matrix in enumerate(g if g.ndim == 3 else g[None]):
            rows = slice(3 * e, 3 * e + 3)
            grad_a[rows] = 7 / 3 * b[:, e::experts].T @ matrix
            grad_b[:, e::experts] = 7 / 3 * matrix @ a[rows].T
        by_hand |= {f"hf.{pair.a}": grad_a, f"hf.{pair.b}": grad_b}
    error, where = worst_error(learned, by_hand)
    assert error < 10 * TOLERANCE, where  # through other weights by other sums; a wrong order of experts gives 1
    assert min(float(g.norm()) for g in learned.values()) > 0


@pytest.mark.parametrize("name", ["dense, biases", "moe"])
def test_the_merged_folder_computes_the_same(name: str, seed: int, tmp_path: Path) -> None:
    it = draw(CASES[name], seed)
    state = merged_state(full_state(it.policy.hf), adapters(it.policy.hf))
    save_hf_folder(base_model(it.policy.hf), it.chat.processor, tmp_path / "m", state)
    loaded = load_model(MODEL.model_copy(update={"path": str(tmp_path / "m")})).eval()
    batch = flat(it.chat, it.groups)
    after = logprobs(PolicyModule(loaded, it.chat.banned_ids), batch)
    assert (after - logprobs(it.policy, batch)).abs().max() < TOLERANCE


def test_new_adapters_change_nothing(seed: int) -> None:
    model = make_model("moe", seed)
    plain = {name: t.clone() for name, t in full_state(model).items()}
    hf = prepare_model(model, MODEL.model_copy(update={"lora": LoraConfig()}))
    assert max_difference(merged_state(full_state(hf), adapters(hf)), plain) == 0


def test_without_adapters_nothing_is_merged(seed: int) -> None:
    model = make_model("moe", seed)
    assert adapters(model) == {}
    assert max_difference(merged_state(full_state(model), {}), full_state(model)) == 0


def test_a_weight_without_its_adapter_is_an_error(seed: int) -> None:
    hf = prepare_model(make_model("dense", seed), MODEL.model_copy(update={"lora": LoraConfig()}))
    state = full_state(hf)
    lost = next(n for n in state if n.endswith("q_proj.lora_B.default.weight"))
    del state[lost]
    with pytest.raises(KeyError, match=r"q_proj\.lora_B"):
        merged_state(state, adapters(hf))


@pytest.mark.parametrize("name", ["dense", "moe", "moe, grouped"])
def test_gradient_checkpointing_changes_no_gradient(name: str, seed: int) -> None:
    it = draw(CASES[name], seed)
    batch, loss = flat(it.chat, it.groups), weighted_sum(it.rng, it.groups)
    it.policy.train()
    found = [gradients(it.policy, [batch], loss)[1]]
    hf = it.policy.hf
    hf.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})  # type: ignore[operator]
    hf.enable_input_require_grads()  # type: ignore[operator]
    found.append(gradients(it.policy, [batch], loss)[1])
    assert_same(found[1], found[0])


@pytest.mark.parametrize("freeze", [(), ("language",), ("vision", "router", "embeddings", "lm_head")])
def test_only_adapters_learn_whatever_is_frozen(freeze: tuple[Part, ...], seed: int) -> None:
    config = ModelConfig(lora=LoraConfig(), freeze=freeze)
    hf = prepare_model(make_model("moe", seed), config)
    learning = {n for n, p in hf.named_parameters() if p.requires_grad}
    assert learning == {n for pair in adapters(hf).values() for n in (pair.a, pair.b)}
    assert len(learning) == 2 * 6 * LAYERS


def test_adapters_have_the_type_of_the_weights(seed: int) -> None:
    hf = prepare_model(make_model("moe", seed).to(torch.bfloat16), ModelConfig(lora=LoraConfig()))
    assert {p.dtype for p in hf.parameters()} == {torch.bfloat16}
    assert {t.dtype for t in merged_state(full_state(hf), adapters(hf)).values()} == {torch.bfloat16}


def test_dropout_is_for_updates_only(seed: int) -> None:
    it = draw(Case("moe", ATTENTION, 0), seed, dropout=0.4)
    batch = flat(it.chat, it.groups)
    merged = without_adapters(it, merged_by_hand(full_state(it.policy.hf), rank=3, alpha=7), CASES["moe"])
    assert (logprobs(it.policy, batch) - logprobs(merged, batch)).abs().max() < TOLERANCE
    it.policy.train()
    assert (logprobs(it.policy, batch) - logprobs(merged, batch)).abs().max() > 1e-3


def test_muon_takes_no_stacked_adapters(seed: int) -> None:
    """A of the experts is [E * rank, in]: one matrix in memory, E in meaning."""
    hf = prepare_model(make_model("moe", seed), ModelConfig(lora=LoraConfig()))
    tag_for_muon(hf)
    marked = {n for n, p in hf.named_parameters() if p.use_muon and p.requires_grad}  # type: ignore[attr-defined]
    assert len(marked) == 2 * 4 * LAYERS and not any("experts" in n for n in marked)


# --- names ----------------------------------------------------------------------------------------

DENSE_LIST = "There is to adapt: down_proj, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj"
MOE_LIST = "There is to adapt: down_proj, experts, gate_proj, k_proj, o_proj, q_proj, up_proj, v_proj"
REFUSED: list[tuple[Kind, dict[str, Any], str]] = [
    ("dense", {"target_modules": ["c_attn"]}, f"names 'c_attn': no linear layer .* has this name. {DENSE_LIST}$"),
    ("dense", {"target_modules": ["q_proj", "experts"]}, f"names 'experts': this is a dense model.*{DENSE_LIST}$"),
    ("dense", {"target_modules": ["gate"]}, "names 'gate': this is a dense model"),
    ("dense", {"target_modules": ["q_proj|k_proj"]}, r"names 'q_proj\|k_proj': no linear layer"),
    ("dense", {"target_modules": ["q_norm"]}, "names 'q_norm': no linear layer"),
    ("dense", {"target_modules": ["qkv"]}, "names 'qkv': that is in the vision tower, which has no adapters"),
    ("dense", {"target_modules": ["linear_fc1"]}, "names 'linear_fc1': that is in the vision tower"),
    ("dense", {"target_modules": ["q_proj", "embed_tokens"]}, "names 'embed_tokens': embeddings are no linear layer"),
    ("dense", {"target_modules": ["lm_head"]}, "names 'lm_head': log-probs .* to which it is tied"),
    ("moe", {"target_modules": ["c_attn"]}, f"names 'c_attn': no linear layer .* has this name. {MOE_LIST}$"),
    ("moe", {"target_modules": ["gate"]}, f"names 'gate': the router chooses experts .* {MOE_LIST}$"),
    ("moe", {"target_modules": ["router"]}, "names 'router': the router chooses experts"),
    ("moe", {"target_modules": ["q_proj", "gate_proj"]}, "one of gate_proj and up_proj, which are one weight"),
    ("moe", {"target_modules": ["up_proj", "down_proj"]}, 'name both, or "experts"'),
    ("moe", {"dropout": 0.1}, "dropout=0.1 with adapters on experts: .* take gate_proj, up_proj, down_proj out of"),
    ("moe", {"target_modules": ["experts"], "dropout": 0.1}, "take experts out of target_modules"),
]


@pytest.mark.parametrize(("kind", "settings", "message"), REFUSED, ids=lambda v: str(v)[:40])
def test_what_cannot_be_adapted_is_refused(kind: Kind, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ModelError, match=message):
        check_lora(tiny_config(kind, tokenizer()), LoraConfig(**settings))
    with pytest.raises(ModelError, match=message):
        prepare_model(make_model(kind, 0), ModelConfig(lora=LoraConfig(**settings)))


def test_an_untied_head_is_refused_without_the_word_tied() -> None:
    config = tiny_config("dense", tokenizer())
    config.tie_word_embeddings = config.text_config.tie_word_embeddings = False
    with pytest.raises(ModelError, match="names 'lm_head': log-probs are taken from the weight") as refused:
        check_lora(config, LoraConfig(target_modules=("lm_head",)))
    assert "tied" not in str(refused.value)


@pytest.mark.parametrize("kind", KINDS)
def test_names_are_known_without_weights(kind: Kind) -> None:
    """Every combination of the names that a refusal lists is taken, but for half of gate and up on MoE."""
    config, model = tiny_config(kind, tokenizer()), make_model(kind, 0)
    check_lora(config, LoraConfig())
    names = (*ATTENTION[:1], *MLP, *(("experts",) if kind == "moe" else ()))
    for size in range(1, len(names) + 1):
        for some in itertools.combinations(names, size):
            half = kind == "moe" and "experts" not in some and ("gate_proj" in some) != ("up_proj" in some)
            if half:
                with pytest.raises(ModelError):
                    find_targets(model, LoraConfig(target_modules=some))
            else:
                found = find_targets(model, LoraConfig(target_modules=some))
                assert found.linear or found.experts


def test_adapters_on_nothing_are_refused() -> None:
    with pytest.raises(ValueError, match="target_modules"):
        LoraConfig(target_modules=())
