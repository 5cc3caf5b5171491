"""Tiny models with fresh random weights, and prompts, pictures and responses to feed them, all from a seed."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from sapo_vl.model.batching import MicroBatch, pack, pad
from sapo_vl.model.chat import Chat
from sapo_vl.model.loading import ModelConfig, prepare_model
from sapo_vl.model.policy import PolicyModule
from sapo_vl.model.routing import RouterMargins, RouteSpec
from sapo_vl.model.tiny import build_tiny, tiny_processor, train_tokenizer
from sapo_vl.types import Finish, Problem, Prompt, Rollout, RolloutGroup

Kind = Literal["dense", "moe"]
KINDS: tuple[Kind, ...] = ("dense", "moe")
TOLERANCE = 1e-5  # of fp32 against fp32: relative L2 per gradient tensor, absolute for log-probs

# Two orders of summation move a router's probabilities by about 1e-7. A token whose last chosen and first
# rejected expert are nearer than this may go to another expert in another layout: no error, but no equality.
NEAR_TIE = 5e-6

WORDS = ("red", "blue", "how", "many", "circles", "left", "of", "the", "square", "and", "count", "again")
# One image token covers 16 x 16 pixels; images below are multiples of 16, so they are not resized.
MODEL = ModelConfig(min_pixels=16 * 16, max_pixels=128 * 128, max_prompt_tokens=400)


@dataclass(frozen=True)
class Spec:
    """One group: sizes (width, height) of its images and lengths of its responses."""

    images: tuple[tuple[int, int], ...]
    responses: tuple[int, ...]


@functools.cache
def tokenizer() -> Any:
    return train_tokenizer([" ".join(WORDS)] * 3 + ["user\n", "assistant\n"], vocab_size=300)


@functools.cache
def processor() -> Any:
    return tiny_processor(tokenizer())


def make_model(kind: Kind, seed: int, noise: float = 0.05, text: Mapping[str, int] | None = None) -> Any:
    """A plain transformers model. Noise on every weight, norms and biases too: attention and positions matter.

    `text` replaces sizes of the language model.
    """
    model = build_tiny(kind, tokenizer(), seed, text)
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for p in model.parameters():
            p += noise * torch.randn(p.shape, generator=generator)
    return model.eval()


def make_policy(kind: Kind, seed: int, config: ModelConfig = MODEL, noise: float = 0.05) -> tuple[PolicyModule, Chat]:
    model = prepare_model(make_model(kind, seed, noise), config)
    chat = Chat(processor(), model, config)
    return PolicyModule(model, chat.banned_ids), chat


def picture(rng: np.random.Generator, width: int, height: int) -> Image.Image:
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


def make_problem(rng: np.random.Generator, name: str, images: Sequence[tuple[int, int]] = ()) -> Problem:
    """Words, then each image followed by more words."""

    def some_words() -> dict[str, str]:
        return {"type": "text", "text": " ".join(rng.choice(WORDS, int(rng.integers(1, 9))))}

    parts: list[dict[str, str]] = [some_words()]
    for _ in images:
        parts += [{"type": "image"}, some_words()]
    pictures = tuple(picture(rng, w, h) for w, h in images)
    return Problem(id=name, task="t", messages=({"role": "user", "content": parts},), images=pictures)


def make_prompts(chat: Chat, rng: np.random.Generator, images: Sequence[Sequence[tuple[int, int]]]) -> list[Prompt]:
    return [chat.prompt(make_problem(rng, f"problem-{i}", sizes)) for i, sizes in enumerate(images)]


def make_groups(chat: Chat, rng: np.random.Generator, specs: Sequence[Spec]) -> list[RolloutGroup]:
    """Groups of random responses with random advantages; their old log-probs are placeholders."""
    allowed = np.setdiff1d(np.arange(len(chat.tokenizer)), chat.banned_ids)
    prompts = make_prompts(chat, rng, [s.images for s in specs])
    return [
        RolloutGroup(
            prompt=prompt,
            rollouts=tuple(
                Rollout(
                    response_ids=rng.choice(allowed, n),
                    logprobs=np.full(n, -5.0, np.float32),
                    finish=Finish.STOP,
                    weight_version=0,
                    advantage=float(rng.normal()),
                )
                for n in spec.responses
            ),
        )
        for prompt, spec in zip(prompts, specs, strict=True)
    ]


def with_random_routes(rng: np.random.Generator, spec: RouteSpec, groups: Sequence[RolloutGroup]) -> list[RolloutGroup]:
    """Distinct random experts for every token and layer: almost none is what the routers would choose."""

    def routes(rows: int) -> np.ndarray:
        order = rng.random((rows, len(spec.layers), spec.experts)).argsort(axis=-1)
        return order[..., : spec.top_k].astype(spec.dtype)

    return [
        dataclasses.replace(
            g,
            prompt_routes=routes(len(g.prompt.ids)),
            rollouts=tuple(dataclasses.replace(r, routes=routes(len(r.response_ids) - 1)) for r in g.rollouts),
        )
        for g in groups
    ]


def ragged(rng: np.random.Generator, count: int, longest: int = 12) -> tuple[int, ...]:
    return tuple(int(n) for n in rng.integers(1, longest + 1, count))


def mixed_specs(rng: np.random.Generator) -> list[Spec]:
    """Non-square images, several in one prompt, text-only groups between them, ragged responses."""
    sides = (32, 48, 64, 80)

    def size() -> tuple[int, int]:
        w, h = rng.choice(sides, 2, replace=False)
        return int(w), int(h)

    return [
        Spec((size(),), ragged(rng, 4)),
        Spec((), ragged(rng, 2)),
        Spec((size(), size()), ragged(rng, 3)),
        Spec((size(),), ragged(rng, 1)),
        Spec((), ragged(rng, 3)),
    ]


def flat(chat: Chat, groups: Sequence[RolloutGroup]) -> MicroBatch:
    return pack(groups, chat.blank_pixels())


def naive(chat: Chat, groups: Sequence[RolloutGroup]) -> MicroBatch:
    return pad(groups, chat.blank_pixels(), chat.pad_id)


def gradients(
    policy: PolicyModule,
    micro_batches: Sequence[MicroBatch],
    loss: Callable[[MicroBatch, Tensor, Tensor], Tensor],
    temperature: float = 1.0,
) -> tuple[float, dict[str, Tensor]]:
    """The summed loss and its gradient by parameter name, accumulated over the micro-batches."""
    policy.zero_grad(set_to_none=True)
    total = 0.0
    for mb in micro_batches:
        value = loss(mb, *policy(mb, temperature=temperature))
        value.backward()
        total += float(value.detach())
    found = {n: p.grad.clone() for n, p in policy.named_parameters() if p.grad is not None}
    policy.zero_grad(set_to_none=True)
    return total, found


def worst_error(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> tuple[float, str]:
    """Largest relative L2 difference of any tensor, and its name. Where 0 is expected, the norm itself."""
    assert found.keys() == expected.keys(), sorted(found.keys() ^ expected.keys())
    errors = []
    for name, right in expected.items():
        difference, size = float((found[name] - right).norm()), float(right.norm())
        errors.append((difference / size if size > 0 else difference, name))
    return max(errors)


def assert_same(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    error, name = worst_error(found, expected)
    assert error < TOLERANCE, f"{name} differs by {error:.2e}, relative"


def router_margin(policy: PolicyModule, micro_batches: Sequence[MicroBatch]) -> float:
    """Smallest gap between the last chosen and the first rejected expert's probability, over tokens and layers.

    Infinite for a dense model.
    """
    with torch.no_grad(), RouterMargins(policy.hf) as margins:
        for mb in micro_batches:
            policy(mb)
    return min(margins.of_pass(i) for i in range(len(micro_batches)))


@dataclass(frozen=True)
class Case:
    """A policy and groups for it, free of near-ties in the routing."""

    policy: PolicyModule
    chat: Chat
    groups: list[RolloutGroup]
    rng: np.random.Generator


def make_case(
    kind: Kind,
    seed: int,
    specs: Sequence[Spec] | Callable[[np.random.Generator], Sequence[Spec]] = mixed_specs,
    config: ModelConfig = MODEL,
) -> Case:
    """The first case from `seed` on whose routing is not within NEAR_TIE of a tie (see there)."""
    for attempt in range(20):
        rng = np.random.default_rng([seed, attempt])
        policy, chat = make_policy(kind, seed + 1000 * attempt, config)
        groups = make_groups(chat, rng, specs(rng) if callable(specs) else specs)
        if router_margin(policy, [flat(chat, groups)]) > NEAR_TIE:
            return Case(policy, chat, groups, rng)
    raise AssertionError("twenty draws in a row with a near-tie: the router is broken, or NEAR_TIE too large")


def with_old_logprobs(case: Case, noise: float = 0.0, temperature: float = 1.0) -> list[RolloutGroup]:
    """The case's groups with the policy's own log-probs as the recorded ones, plus noise."""
    groups = []
    for group in case.groups:
        with torch.no_grad():
            logprobs, _ = case.policy(naive(case.chat, [group]), temperature=temperature)
        values = logprobs.numpy() + noise * case.rng.normal(size=len(logprobs)).astype(np.float32)
        pieces = np.split(values, np.cumsum([len(r.response_ids) for r in group.rollouts])[:-1])
        rollouts = (dataclasses.replace(r, logprobs=v) for r, v in zip(group.rollouts, pieces, strict=True))
        groups.append(dataclasses.replace(group, rollouts=tuple(rollouts)))
    return groups


def weighted_sum(rng: np.random.Generator, groups: Sequence[RolloutGroup]) -> Callable[..., Tensor]:
    """A loss with a random weight for every token, named by prompt, response and place: the same in any layout."""
    weights = {g.prompt.problem.id: [rng.normal(size=len(r.response_ids)) for r in g.rollouts] for g in groups}

    def loss(mb: MicroBatch, logprobs: Tensor, _entropy: Tensor) -> Tensor:
        mine = np.concatenate([w for g in mb.groups for w in weights[g.prompt.problem.id]])
        return (logprobs * torch.from_numpy(mine.astype(np.float32))).sum()

    return loss


def full_state(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """The state dict of a model that is not sharded, on the CPU."""
    return {k: v.detach().cpu() for k, v in model.state_dict().items()}


def max_difference(a: Mapping[str, torch.Tensor], b: Mapping[str, torch.Tensor]) -> float:
    """Largest absolute difference over all tensors of two state dicts with the same names."""
    assert a.keys() == b.keys()
    return max(float((a[k].float() - b[k].float()).abs().max()) for k in a)


def plain_name(name: str) -> str:
    """Of a weight of a peft model in the model without peft."""
    return name.removeprefix("base_model.model.").replace("base_layer.", "")


def merged_by_hand(state: Mapping[str, Tensor], rank: int, alpha: int) -> dict[str, Tensor]:
    """The state dict of a peft model, adapters folded in one matrix and one rank-1 term at a time, in float64.

    Which of the two pairs of experts belongs to which weight is read off their shapes.
    """
    out = {}
    for name, weight in state.items():
        if ".lora_" in name:
            continue
        total = weight.double().clone()
        matrices = total if weight.ndim == 3 else total[None]  # a view
        stem = name.partition(".base_layer.")[0]
        for at in (stem, f"{stem}.base_layer"):
            a, b = (state.get(f"{at}.lora_{which}.default.weight") for which in "AB")
            if a is None or b is None or (b.shape[0], a.shape[1]) != matrices.shape[1:]:
                continue  # no pair, or that of the other weight of the experts, or a bias
            for e, matrix in enumerate(matrices):
                for j in range(rank):
                    column, row = b[:, j * len(matrices) + e].double(), a[e * rank + j].double()
                    matrix += alpha / rank * torch.outer(column, row)
        out[plain_name(name)] = total.to(weight.dtype)
    return out
