"""The frozen reference policy for the KL penalty: the weights the run starts from."""

from __future__ import annotations

import torch
from torch import Tensor

from sapo_vl.batching import MicroBatch
from sapo_vl.config import RunConfig
from sapo_vl.models import load_model
from sapo_vl.objectives import ReferenceFn
from sapo_vl.policy import PolicyModule
from sapo_vl.session import Session


def load_reference(config: RunConfig, session: Session) -> ReferenceFn:
    """A second, frozen copy of model.path on every rank (whole, also under ZeRO-3: count its memory).

    It is always read from model.path, so a resumed run has the reference it started with.
    """
    model = load_model(config.model.model_copy(update={"lora": None, "freeze": (), "gradient_checkpointing": False}))
    policy = PolicyModule(model, session.chat.banned_ids).to(session.world.device).eval().requires_grad_(False)

    @torch.no_grad()
    def reference(batch: MicroBatch) -> Tensor:
        return policy(batch, temperature=config.rollout.temperature)[0]

    return reference
