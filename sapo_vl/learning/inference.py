"""A policy that nothing trains: its weights and nothing beside them, whole on every rank or in ZeRO-3's pieces."""

from __future__ import annotations

from typing import Any

import deepspeed

from sapo_vl.distributed import World
from sapo_vl.learning.optim import OptimConfig, ZeroConfig, deepspeed_config
from sapo_vl.model.policy import PolicyModule


def inference_config(zero: ZeroConfig, dtype: str) -> dict[str, Any]:
    """The DeepSpeed settings of a model without an optimizer."""
    config = deepspeed_config(OptimConfig(), zero.model_copy(update={"offload_optimizer": False}), dtype)
    return {key: value for key, value in config.items() if key != "optimizer"}


def for_inference(policy: PolicyModule, zero: ZeroConfig, dtype: str, world: World) -> PolicyModule:
    """The policy, ready for passes without gradient: no optimizer, no master weights, no gradients.

    Under ZeRO-3 its weights are gathered by module while it runs, and all ranks must run it together; it was loaded
    inside a `HfDeepSpeedConfig` then, or is partitioned here.
    """
    policy = policy.to(world.device).eval().requires_grad_(False)
    if zero.stage < 3:
        return policy
    engine: Any = deepspeed.initialize(model=policy, config=inference_config(zero, dtype), dist_init_required=False)[0]
    return engine.module
