"""The frozen reference policy for the KL penalty: the weights the run starts from."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import deepspeed
import torch
from transformers.integrations import HfDeepSpeedConfig

from sapo_vl.distributed import World
from sapo_vl.learning.optim import Tuning, ZeroConfig, frozen_config
from sapo_vl.model.batching import MicroBatch
from sapo_vl.model.folder import examine
from sapo_vl.model.loading import ModelConfig, load_model
from sapo_vl.model.policy import PolicyModule


class Reference:
    """A frozen policy on all ranks: whole on each, or `sharded` over them as by ZeRO-3."""

    def __init__(self, policy: PolicyModule, temperature: float, world: World, *, sharded: bool) -> None:
        self.policy, self._temperature, self._world, self._sharded = policy, temperature, world, sharded

    @torch.no_grad()
    def noted(self, micro_batches: Sequence[MicroBatch], filler: MicroBatch) -> list[MicroBatch]:
        """The micro-batches with the log-probs of the reference. All ranks together.

        Where it is sharded, every pass gathers its weights on all ranks: those with fewer micro-batches run `filler`.
        """
        rounds = int(self._world.max(len(micro_batches))) if self._sharded else len(micro_batches)
        out = []
        for i in range(rounds):
            batch = micro_batches[i] if i < len(micro_batches) else filler
            logprobs, _ = self.policy(batch.to(self._world.device), temperature=self._temperature)
            out.append(dataclasses.replace(batch, reference_logprobs=logprobs.cpu()))
        return out[: len(micro_batches)]


def load_reference(
    config: ModelConfig,
    zero: ZeroConfig,
    tuning: Tuning,
    banned_ids: Sequence[int],
    temperature: float,
    world: World,
) -> Reference:
    """A second, frozen copy of `config.path`: over all ranks if the policy's weights are (ZeRO-3), else on each.

    It is always read from there, so a resumed run has the reference it started with.
    """
    plain = config.model_copy(update={"lora": None, "freeze": (), "gradient_checkpointing": False})
    sharded = zero.stage == 3
    folder = examine(config.path, config.revision)
    settings = frozen_config(zero, config.dtype, tuning)
    # transformers shards weights while it reads them only as long as this object lives.
    sharding = HfDeepSpeedConfig(settings) if sharded else None
    model = load_model(plain, folder, world.device)
    policy = PolicyModule(model, banned_ids).to(world.device).eval().requires_grad_(False)
    if sharded:
        engine: Any = deepspeed.initialize(model=policy, config=settings, dist_init_required=False)[0]
        policy = engine.module.eval()
    del sharding
    return Reference(policy, temperature, world, sharded=sharded)
