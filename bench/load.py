"""The model of a case of bench/vs_trl_cases.py in this process, with a rollout batch of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from vs_trl_cases import Case, build_model, problems

from sapo_vl.model.batching import MicroBatch, make_micro_batches, split_by_budget, split_mini_batches
from sapo_vl.model.chat import Chat
from sapo_vl.model.loading import ModelConfig, prepare_model
from sapo_vl.model.policy import PolicyModule
from sapo_vl.rollout import SamplingParams, TransformersEngine
from sapo_vl.types import Finish, Prompt, Rollout, RolloutGroup

BUDGET = 8192  # tokens of a micro-batch, as BatchConfig has it


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """A policy, and the engine that samples from it; no response ends before its limit."""

    case: Case
    policy: PolicyModule
    chat: Chat
    engine: TransformersEngine
    prompts: tuple[Prompt, ...]

    def params(self, tokens: int) -> SamplingParams:
        return SamplingParams(n=self.case.group, max_new_tokens=tokens, temperature=1.0, seed=0)

    def sample(self) -> list[RolloutGroup]:
        return self.engine.generate(self.prompts, self.params(self.case.tokens))

    def micro_batches(self, groups: Sequence[RolloutGroup], shared: bool = True) -> list[MicroBatch]:
        """Those of the two updates of a step, as the trainer packs them."""
        return [
            mb
            for dealt in split_mini_batches(groups, 2)
            for mb in make_micro_batches(split_by_budget(dealt, BUDGET), self.chat, shared)
        ]

    def backward(self, batches: Sequence[MicroBatch]) -> None:
        for mb in batches:
            self.policy.zero_grad()
            self.policy(mb)[0].sum().backward()

    @torch.no_grad()
    def logprobs(self, batches: Sequence[MicroBatch]) -> torch.Tensor:
        return torch.cat([self.policy(mb)[0] for mb in batches])


def load(case: Case) -> Load:
    """On one thread."""
    torch.set_num_threads(1)
    model: Any
    model, processor = build_model(case)
    config = ModelConfig(min_pixels=1024, max_pixels=1024 * 1024)
    model = prepare_model(model, config)
    chat = Chat(processor, model, config)
    policy = PolicyModule(model, chat.banned_ids)
    engine = TransformersEngine(policy, chat)
    chat.eos_ids = (len(chat.tokenizer) + 1,)
    prompts = tuple(chat.prompt(p) for p in problems(case, case.prompts))
    return Load(case=case, policy=policy, chat=chat, engine=engine, prompts=prompts)


def random_groups(load: Load) -> list[RolloutGroup]:
    """Responses of random tokens, for what does not care where they came from."""
    rng = np.random.default_rng(0)

    def response() -> Rollout:
        ids = rng.integers(20, 250, load.case.tokens).astype(np.int64)
        return Rollout(
            response_ids=ids,
            logprobs=np.zeros(len(ids), np.float32),
            finish=Finish.STOP,
            weight_version=0,
            advantage=1.0,
        )

    return [RolloutGroup(prompt=p, rollouts=tuple(response() for _ in range(load.case.group))) for p in load.prompts]
