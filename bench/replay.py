"""Routing replay: an update through recorded routes against a free one, and what R2's and R3's records cost.

Of one rollout batch, in one process, ways taking turns: sampling with and without a record of the experts (R3, and the
flip metric), the pass of the old policy with and without one (R2), and forward and backward free and replayed.
"""

from __future__ import annotations

import argparse
import dataclasses

import numpy as np
from common import paired, random_group, tiny_policy

from sapo_vl.model.batching import MicroBatch, pack
from sapo_vl.model.loading import base_model
from sapo_vl.model.policy import PolicyModule
from sapo_vl.model.routing import RouteTape, attach_routing
from sapo_vl.rollout import SamplingParams, TransformersEngine


def learn(policy: PolicyModule, batch: MicroBatch, tape: RouteTape | None) -> None:
    logprobs, _ = policy(batch, tape=tape)
    logprobs.sum().backward()
    policy.zero_grad(set_to_none=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--side", type=int, default=64, help="of the images, in pixels")
    parser.add_argument("--length", type=int, default=14, help="of the responses, in tokens")
    args = parser.parse_args()
    policy, chat = tiny_policy("moe")
    spec = policy.routes = attach_routing(base_model(policy.hf))
    assert spec is not None
    rng = np.random.default_rng(0)
    groups = [random_group(chat, rng, args.side, 8, args.length, i) for i in range(32)]
    batch = pack(groups, chat.blank_pixels())
    record = RouteTape(spec)
    policy(batch, tape=record)
    old = record.native
    batch = dataclasses.replace(batch, old_routes=old)
    engine = TransformersEngine(policy, chat, prompts_per_batch=32)
    prompts = [g.prompt for g in groups]
    sampling = SamplingParams(n=8, max_new_tokens=args.length, temperature=1.0)

    per_token = old[0].nbytes
    formula = len(spec.layers) * spec.top_k * spec.dtype.itemsize
    print(
        f"{per_token} bytes a token; {len(spec.layers)} MoE layers x {spec.top_k} experts x {spec.dtype.itemsize}",
        end="",
    )
    print(f" = {formula}; 30B-A3B (48 x 8) has 384, 235B-A22B (94 x 8) 752")
    seconds = paired(
        {
            "sampling": lambda: engine.generate(prompts, sampling),
            "sampling, recorded": lambda: engine.generate(prompts, dataclasses.replace(sampling, routes=True)),
            "update": lambda: learn(policy, batch, None),
            "update, recorded": lambda: learn(policy, batch, RouteTape(spec)),
            "update, replayed": lambda: learn(policy, batch, RouteTape(spec, old)),
        },
        args.repeats,
    )
    print(f"32 prompts x 8 responses of {args.length} tokens, images of {args.side} px")
    print(f"CPU seconds, median of {args.repeats}, and as a ratio to the first of its kind")
    for name, value in seconds.items():
        print(f"{name:20s} {value:7.3f}  {value / seconds[name.split(',')[0]]:5.3f}")


if __name__ == "__main__":
    main()
