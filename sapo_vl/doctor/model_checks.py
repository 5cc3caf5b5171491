"""Checks of what the trainer computes, on tiny models; the cheap ones also on a real model's folder."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor

from sapo_vl.distributed import init_world
from sapo_vl.doctor import case
from sapo_vl.doctor.base import Subject, Unfit
from sapo_vl.learning.engine import PolicyEngine
from sapo_vl.learning.objectives import global_denominators, imitation_objective
from sapo_vl.learning.optim import OptimConfig, ZeroConfig
from sapo_vl.losses.reduce import Reduction
from sapo_vl.model.batching import MicroBatch, pack, pad
from sapo_vl.model.chat import Chat
from sapo_vl.model.export import save_hf_folder
from sapo_vl.model.folder import read_config
from sapo_vl.model.loading import ModelConfig, load_model, prepare_model
from sapo_vl.model.policy import PolicyModule
from sapo_vl.types import Prompt, RolloutGroup

TOLERANCE = 1e-5  # fp32 against fp32: relative for gradients, absolute for log-probs
REDUCTION: Reduction = "token_mean"
REPORT = "the installed versions do not fit together: reinstall the pinned ones (`bash scripts/setup.sh`), or report it"


def ids(subject: Subject) -> str:
    """The ids for the trainer are the compact ids with each placeholder repeated for the tokens of its image."""
    chat = _chat(subject)
    for prompt in case.prompts(chat, subject.seed):
        expected = expanded(prompt, chat)
        if not np.array_equal(expected, prompt.ids):
            raise Unfit(
                f"prompt {prompt.problem.id}: {len(prompt.ids)} tokens, worked out from the grid: {len(expected)}",
                REPORT,
            )
    return "compact and expanded ids agree, with no, one and two images"


def expanded(prompt: Prompt, chat: Chat) -> np.ndarray:
    """[P] ids worked out from the image grids, t * h * w / merge^2 tokens for an image."""
    grid = [] if prompt.image_grid_thw is None else prompt.image_grid_thw.tolist()
    counts = iter([t * h * w // chat.merge_size**2 for t, h, w in grid])
    repeats = [next(counts) if i == chat.image_token_id else 1 for i in prompt.compact_ids.tolist()]
    return np.repeat(prompt.compact_ids, repeats)


def positions(subject: Subject) -> str:
    """M-RoPE positions: text counts on all axes, an image spans its grid, text goes on after the largest."""
    chat = _chat(subject)
    for prompt in case.prompts(chat, subject.seed):
        if not np.array_equal(rope_positions(prompt, chat), prompt.positions):
            raise Unfit(f"prompt {prompt.problem.id}: positions are not those of Qwen2-VL's M-RoPE", REPORT)
    return "M-RoPE positions agree with those worked out by hand"


def rope_positions(prompt: Prompt, chat: Chat) -> np.ndarray:
    """[3, P] t/h/w (Qwen2-VL, arXiv 2409.12191, section 2.1; images have one frame)."""
    grid = iter([] if prompt.image_grid_thw is None else prompt.image_grid_thw.tolist())
    columns: list[tuple[int, int, int]] = []
    at, i, token_ids = 0, 0, prompt.ids.tolist()
    while i < len(token_ids):
        if token_ids[i] != chat.image_token_id:
            columns.append((at, at, at))
            at, i = at + 1, i + 1
            continue
        _, h, w = next(grid)
        h, w = h // chat.merge_size, w // chat.merge_size
        columns += [(at, at + y, at + x) for y in range(h) for x in range(w)]
        at, i = at + max(h, w), i + h * w
    return np.array(columns).T


def shared_prefix(subject: Subject) -> str:
    """Gradients with the prompt once per group equal those with a copy of it for every response."""
    worst = {kind: _prefix_error(kind, subject.seed) for kind in case.KINDS}
    for kind, (error, name) in worst.items():
        if not error < TOLERANCE:
            raise Unfit(
                f"{kind}: the gradient of {name} differs by {error:.1e}", f"set batch.shared_prefix=false; {REPORT}"
            )
    return "worst gradient tensor differs by " + ", ".join(f"{e:.1e} ({kind})" for kind, (e, _) in worst.items())


def deepspeed_stages(subject: Subject) -> str:
    """One update of every ZeRO stage gives the same log-probs."""
    init_world()
    results = {stage: _updated_logprobs(stage, subject.seed) for stage in range(4)}
    worst = max(float((results[stage] - results[0]).abs().max()) for stage in results)
    if not worst < TOLERANCE:
        raise Unfit(f"after one update, log-probs under the ZeRO stages differ by {worst:.1e}", REPORT)
    return f"stages 0 to 3 agree to {worst:.1e} after an update"


def moe_export(subject: Subject) -> str:
    """A MoE model written in the layout of the hub and read back computes the same."""
    model = case.tiny_model("moe", subject.seed)
    folder = subject.scratch / "moe_export"
    save_hf_folder(model, case.processor(), folder)
    config = case.MODEL.model_copy(update={"path": str(folder)})
    before = _logprobs(*_policy(model), seed=subject.seed)
    loaded = load_model(config)
    after = _logprobs(PolicyModule(loaded, (chat := Chat.load(loaded, config)).banned_ids), chat, seed=subject.seed)
    worst = float((before - after).abs().max())
    if not worst < TOLERANCE:
        raise Unfit(f"log-probs differ by {worst:.1e} after a round trip", REPORT)
    return f"round trip through from_pretrained differs by {worst:.1e}"


def _chat(subject: Subject) -> Chat:
    """Of the user's model, built without weights, or of a tiny one."""
    if not subject.model:
        return _policy(case.tiny_model("dense", subject.seed))[1]
    from accelerate import init_empty_weights
    from transformers import AutoModelForImageTextToText

    config = ModelConfig(path=subject.model)
    with init_empty_weights():
        model = AutoModelForImageTextToText.from_config(read_config(subject.model))
    return Chat.load(model, config)


def _policy(model: Any) -> tuple[PolicyModule, Chat]:
    prepared = prepare_model(model, case.MODEL)
    chat = Chat(case.processor(), prepared, case.MODEL)
    return PolicyModule(prepared, chat.banned_ids), chat


@torch.no_grad()
def _logprobs(policy: PolicyModule, chat: Chat, *, seed: int) -> Tensor:
    return policy(pack(case.groups(chat, seed), chat.blank_pixels()))[0]


def _prefix_error(kind: Literal["dense", "moe"], seed: int) -> tuple[float, str]:
    """Largest relative L2 difference of any gradient tensor, and its name."""
    policy, chat = _policy(case.tiny_model(kind, seed))
    groups = case.groups(chat, seed)
    # A weight for every token that depends on the token and its response: the same in both layouts.
    shared = _gradients(policy, [pack(groups, chat.blank_pixels())])
    padded = _gradients(policy, [pad([g], chat.blank_pixels(), chat.pad_id) for g in groups])
    errors = [(float((shared[n] - g).norm() / g.norm().clamp_min(1e-12)), n) for n, g in padded.items()]
    return max(errors)


def _gradients(policy: PolicyModule, batches: Sequence[MicroBatch]) -> dict[str, Tensor]:
    policy.zero_grad(set_to_none=True)
    for batch in batches:
        weights = batch.advantages.repeat_interleave(batch.lengths) * (1 + batch.targets.float() % 7)
        (policy(batch)[0] * weights).sum().backward()
    # Weights whose gradient is rounding (a shift that softmax ignores) have no relative error to speak of.
    return {n: p.grad.clone() for n, p in policy.named_parameters() if p.grad is not None and p.grad.norm() > 1e-4}


def _updated_logprobs(stage: int, seed: int) -> Tensor:
    policy, chat = _policy(case.tiny_model("moe", seed))
    world = init_world()
    # eps = 1 makes Adam nearly linear: with 1e-8, a gradient of rounding would move a weight by its sign.
    optim = OptimConfig(lr=0.1, eps=1.0, warmup_steps=0)
    engine = PolicyEngine(policy, optim, ZeroConfig(stage=stage), "float32", world, 1)  # type: ignore[arg-type]
    groups = [dataclasses.replace(g, rollouts=g.rollouts[:1]) for g in case.groups(chat, seed)]
    batch = [_pack(groups, chat)]
    engine.update(batch, batch[0], imitation_objective(REDUCTION, global_denominators(batch, world)))
    return engine.logprobs(batch, batch[0])[0][0].detach().clone()


def _pack(groups: Sequence[RolloutGroup], chat: Chat) -> MicroBatch:
    return pack(groups, chat.blank_pixels())
