"""Routing replay: what recording and replaying routes costs, part by part and for a step of two updates.

Of one rollout batch, in one process, ways taking turns: sampling with and without a record of the experts (R3, and the
flip metric), the pass of the old policy with and without one (R2), and forward and backward free and replayed. The
steps at the end are sums of these parts.
"""

from __future__ import annotations

import argparse
import dataclasses

import numpy as np
import torch
from common import paired, random_group, tiny_policy

from sapo_vl.model.batching import MicroBatch, pack
from sapo_vl.model.loading import base_model
from sapo_vl.model.policy import PolicyModule
from sapo_vl.model.routing import RouteTape, attach_routing
from sapo_vl.rollout import SamplingParams, TransformersEngine


@torch.no_grad()
def old_pass(policy: PolicyModule, batch: MicroBatch, tape: RouteTape | None) -> None:
    policy(batch, tape=tape)
    if tape is not None:
        tape.native.cpu()


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
    engine = TransformersEngine(policy, chat)
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
            "old pass": lambda: old_pass(policy, batch, None),
            "old pass, recorded": lambda: old_pass(policy, batch, RouteTape(spec)),
            "old pass, replayed": lambda: old_pass(policy, batch, RouteTape(spec, old)),
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
    record, replay = ", recorded", ", replayed"
    none = seconds["sampling"] + seconds["old pass"] + 2 * seconds["update"]
    bare = seconds["sampling"] + 2 * seconds["update"]
    r2 = seconds["old pass" + record] + 2 * seconds["update" + replay]
    r3 = seconds["sampling" + record] + 2 * seconds["update" + replay]
    print("a step of 2 updates, against one without replay")
    print(f"R2  {(seconds['sampling'] + r2) / none:5.3f} with rollout.old_logprobs=trainer in both,", end=" ")
    print(f"{(seconds['sampling'] + r2) / bare:5.3f} where the pass of the old policy is there for R2 alone")
    print(f"R3  {(r3 + seconds['old pass' + replay]) / none:5.3f} with it in both, {r3 / bare:5.3f} without")


if __name__ == "__main__":
    main()
