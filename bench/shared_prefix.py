"""Forward and backward of one update: G padded copies of every prompt against the shared prefix."""

from __future__ import annotations

import argparse

import numpy as np
from common import paired, random_group, tiny_policy

from sapo_vl.model.batching import pack, pad

CASES = ((64, 12, 8, 16), (256, 32, 8, 1), (256, 64, 16, 1))  # image side, response tokens, responses, groups


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kind", choices=["dense", "moe"], default="moe")
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    policy, chat = tiny_policy(args.kind)
    rng = np.random.default_rng(0)
    print(f"{args.kind}; CPU seconds, median of {args.repeats}")
    print("image  tokens  responses  groups    padded    shared    ratio")
    for side, length, responses, count in CASES:
        groups = [random_group(chat, rng, side, responses, length, i) for i in range(count)]
        blank = chat.blank_pixels()

        def step(batch: object) -> None:
            policy.zero_grad()
            policy(batch)[0].sum().backward()

        ways = {
            "padded": lambda groups=groups, blank=blank: step(pad(groups, blank, chat.pad_id)),
            "shared": lambda groups=groups, blank=blank: step(pack(groups, blank)),
        }
        s = paired(ways, args.repeats)
        ratio = s["padded"] / s["shared"]
        print(
            f"{side:5d}  {length:6d}  {responses:9d}  {count:6d}  {s['padded']:8.3f}  {s['shared']:8.3f}  {ratio:6.2f}x"
        )


if __name__ == "__main__":
    main()
