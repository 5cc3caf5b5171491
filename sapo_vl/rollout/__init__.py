"""Rollout engines: prompts in, groups of sampled responses out. Token ids in and out, nothing is re-tokenised."""

from sapo_vl.rollout.base import RolloutConfig, RolloutEngine, SamplingParams
from sapo_vl.rollout.hf import TransformersEngine

__all__ = ["RolloutConfig", "RolloutEngine", "SamplingParams", "TransformersEngine"]
