"""Prompts become groups of sampled responses.

In: prompts, sampling parameters, and the policy's weights after each step. Out: `RolloutGroup`s with ids, log-probs
under the sampling law, finish status and weight version; token ids in and out, nothing is re-tokenised. May import
model, learning (whose engine gathers the weights, whose advantages say what teaches nothing), data, types, strict and
distributed.
"""

from sapo_vl.rollout.base import RolloutConfig, RolloutEngine, SamplingParams
from sapo_vl.rollout.hf import TransformersEngine

__all__ = ["RolloutConfig", "RolloutEngine", "SamplingParams", "TransformersEngine"]
