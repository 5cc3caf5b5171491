"""Micro-batches without a model: what the corrections and their statistics look at, and nothing that they do not."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from sapo_vl.model.batching import MicroBatch, pack
from sapo_vl.types import Finish, Problem, Prompt, Rollout, RolloutGroup

BLANK = (torch.zeros(4, 8), torch.tensor([[1, 2, 2]]))


def make_group(
    name: str, image: bool, rollout_logprobs: Sequence[np.ndarray], advantages: Sequence[float]
) -> RolloutGroup:
    """A group whose responses have these recorded log-probs, one array [R] each, and advantages."""
    ids = np.arange(3)
    prompt = Prompt(
        problem=Problem(id=name, task="t", messages=()),
        ids=ids,
        compact_ids=ids,
        positions=np.tile(ids, (3, 1)),
        pixel_values=BLANK[0] if image else None,
        image_grid_thw=BLANK[1] if image else None,
    )
    rollouts = [
        Rollout(
            response_ids=np.arange(len(logprobs)),
            logprobs=np.asarray(logprobs, np.float32),
            finish=Finish.STOP,
            weight_version=0,
            advantage=advantage,
        )
        for logprobs, advantage in zip(rollout_logprobs, advantages, strict=True)
    ]
    return RolloutGroup(prompt=prompt, rollouts=tuple(rollouts))


@dataclasses.dataclass(frozen=True)
class Sample:
    """A group and what the trainer says about its tokens: pi_old and pi_theta, response after response."""

    group: RolloutGroup
    old: np.ndarray  # [N] float32
    new: np.ndarray  # [N] float32


def make_samples(seed: int, count: int = 6, gap: float = 0.6, step: float = 0.4, bad: bool = True) -> list[Sample]:
    """Text and image prompts with responses of 1 to 40 tokens; where `bad`, some log-probs of the engine are none."""
    rng = np.random.default_rng(seed)
    samples = []
    for i in range(count):
        lengths = rng.integers(1, 41, int(rng.integers(1, 4)))
        old = [-rng.exponential(1.0, n).astype(np.float32) for n in lengths]
        recorded = [o - gap * rng.normal(size=len(o)).astype(np.float32) for o in old]
        if bad and i % 3 == 0:
            recorded[0][rng.integers(len(recorded[0]))] = rng.choice([np.nan, np.inf, -np.inf])
        new = [o + step * rng.normal(size=len(o)).astype(np.float32) for o in old]
        group = make_group(f"p{i}", i % 2 == 1, recorded, rng.normal(size=len(lengths)).tolist())
        samples.append(Sample(group, np.concatenate(old), np.concatenate(new)))
    return samples


def micro_batch(samples: Sequence[Sample]) -> tuple[MicroBatch, Tensor]:
    """(the micro-batch with pi_old taken by the trainer, log pi_theta [N])."""
    mb = pack([s.group for s in samples], BLANK)
    old = torch.from_numpy(np.concatenate([s.old for s in samples]))
    new = torch.from_numpy(np.concatenate([s.new for s in samples]))
    return dataclasses.replace(mb, old_logprobs=old), new
