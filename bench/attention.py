"""Attention over the flat row: scores computed against scores needed, bytes of indices and masks, and the time of
forward and backward of the whole model against the padded rectangles.

The first two are counted and need no GPU; FlexAttention's blocks of 128 x 128 are counted from its block mask.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import time

import numpy as np
import torch
from common import random_prompt, tiny_policy

from sapo_vl.model import attention_dense, attention_flex, attention_merged
from sapo_vl.model.batching import MicroBatch, pack
from sapo_vl.model.chat import Chat
from sapo_vl.model.policy import PolicyModule
from sapo_vl.model.prefix_attention import build_layout
from sapo_vl.model.segments import Groups, check_groups, needed_scores, segments
from sapo_vl.types import Finish, Rollout, RolloutGroup

# image side, largest response, responses, groups of one update
CASES = ((64, 16, 8, 8), (256, 32, 8, 4), (512, 64, 16, 2))


def lognormal(seed: int, groups: int = 2, size: int = 16, mean: float = 600, cap: int = 2048) -> Groups:
    """Prompts of 400 to 1300 tokens with lognormal responses (sigma 0.8)."""
    rng = np.random.default_rng(seed)
    lengths = np.clip(rng.lognormal(np.log(mean) - 0.32, 0.8, (groups, size)), 1, cap).astype(int)
    return check_groups([(int(rng.integers(400, 1300)), row.tolist()) for row in lengths])


def counts(groups: Groups) -> dict[str, tuple[float, float]]:
    """Of each way: (scores computed / needed, bytes of index and mask tensors per token)."""
    tokens, needed = segments(groups)[-1].stop, needed_scores(groups)
    rectangles = attention_dense.rectangles(groups)
    plan = attention_merged.make_plan(groups)
    mask = attention_flex.block_mask(groups, torch.device("cpu"))
    found = {
        "dense": (attention_dense.computed_scores(rectangles), rectangles.tensors()),
        "merged (CPU)": (attention_merged.computed_scores(plan), list(plan.tensors())),
        "flex (GPU)": (attention_flex.computed_scores(mask), attention_flex.mask_tensors(mask)),
    }
    return {way: (scores / needed, sum(t.nbytes for t in held) / tokens) for way, (scores, held) in found.items()}


def random_batch(chat: Chat, side: int, longest: int, size: int, count: int, *, ragged: bool) -> MicroBatch:
    rng = np.random.default_rng(0)
    groups = []
    for number in range(count):
        lengths = rng.integers(1, longest + 1, size) if ragged else np.full(size, longest)
        rollouts = tuple(
            Rollout(
                response_ids=rng.integers(20, 250, n).astype(np.int64),
                logprobs=np.zeros(n, np.float32),
                finish=Finish.STOP,
                weight_version=0,
                advantage=1.0,
            )
            for n in lengths.tolist()
        )
        groups.append(RolloutGroup(prompt=random_prompt(chat, rng, side, number), rollouts=rollouts))
    return pack(groups, chat.blank_pixels())


def step(policy: PolicyModule, batch: MicroBatch) -> float:
    """CPU seconds of forward and backward."""
    started = time.process_time()
    policy.zero_grad()
    policy(batch)[0].sum().backward()
    return time.process_time() - started


def pairs(policy: PolicyModule, merged: MicroBatch, repeats: int) -> tuple[list[float], list[float], float]:
    """CPU seconds of the dense and of the merged way, turn by turn after one of each; how their gradients differ."""
    assert merged.layout is not None
    dense = dataclasses.replace(merged, layout=build_layout(merged.layout.groups, "dense"))
    seconds: tuple[list[float], list[float]] = ([], [])
    gradients = []
    for batch in (dense, merged):
        step(policy, batch)
        gradients.append(torch.cat([p.grad.flatten() for p in policy.parameters() if p.grad is not None]))
    for _ in range(repeats):
        for batch, found in zip((dense, merged), seconds, strict=True):
            found.append(step(policy, batch))
    return *seconds, float((gradients[1] - gradients[0]).norm() / gradients[0].norm())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kind", choices=["dense", "moe"], default="dense")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--seeds", type=int, default=5, help="draws of lengths that are counted")
    args = parser.parse_args()
    print("2 groups of 16 lognormal responses, cap 2048: scores computed / needed; bytes of indices and masks a token")
    for mean in (300, 600, 1500):
        found = [counts(lognormal(seed, mean=mean)) for seed in range(args.seeds)]
        for way in found[0]:
            scores, held = zip(*(f[way] for f in found), strict=True)
            print(
                f"mean {mean:4d}  {way:13} {statistics.mean(scores):8.2f}  ({min(scores):.2f} to {max(scores):.2f}) "
                f"{statistics.mean(held):12.0f}  ({min(held):.0f} to {max(held):.0f})"
            )
    policy, chat = tiny_policy(args.kind)
    print(f"{args.kind}; CPU seconds of forward and backward of the model, medians; ratios of {args.repeats} pairs")
    for side, longest, size, count in CASES:
        for ragged in (False, True):
            batch = random_batch(chat, side, longest, size, count, ragged=ragged)
            dense, merged, apart = pairs(policy, batch, args.repeats)
            ratios = [a / b for a, b in zip(dense, merged, strict=True)]
            lengths = f"{'1 to ' if ragged else ''}{longest}"
            print(
                f"{side:4d} px, {count} x {size} x {lengths:7}  dense {statistics.median(dense):.3f}  merged "
                f"{statistics.median(merged):.3f}  {statistics.median(ratios):.2f}x ({min(ratios):.2f} to "
                f"{max(ratios):.2f})  gradients {apart:.0e} apart",
                flush=True,
            )


if __name__ == "__main__":
    main()
