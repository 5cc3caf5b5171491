"""The frozen reference policy for the KL penalty: the weights the run starts from."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from sapo_vl.learning.objectives import ReferenceFn
from sapo_vl.model.batching import MicroBatch
from sapo_vl.model.loading import ModelConfig, load_model
from sapo_vl.model.policy import PolicyModule


def load_reference(
    config: ModelConfig, banned_ids: Sequence[int], temperature: float, device: torch.device
) -> ReferenceFn:
    """A second, frozen copy of `config.path` on every rank (whole, also under ZeRO-3: count its memory).

    It is always read from there, so a resumed run has the reference it started with.
    """
    model = load_model(config.model_copy(update={"lora": None, "freeze": (), "gradient_checkpointing": False}))
    policy = PolicyModule(model, banned_ids).to(device).eval().requires_grad_(False)

    @torch.no_grad()
    def reference(batch: MicroBatch) -> Tensor:
        return policy(batch, temperature=temperature)[0]

    return reference
