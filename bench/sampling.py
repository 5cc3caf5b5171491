"""Sampling G responses per prompt: transformers' generate on G padded copies against prefill once, share the KV."""

from __future__ import annotations

import argparse

import numpy as np
import torch
from common import paired, random_prompt, tiny_policy

from sapo_vl.rollout import SamplingParams, TransformersEngine

CASES = ((64, 12, 8, 8), (256, 32, 8, 2))  # image side, new tokens, responses, prompts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kind", choices=["dense", "moe"], default="moe")
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    policy, chat = tiny_policy(args.kind)
    policy.eval()
    engine = TransformersEngine(policy, chat, prompts_per_batch=64)
    # Both sides must sample the full length, or the luckier one would win: no token ends a response.
    chat.eos_ids = (len(chat.tokenizer) + 1,)
    rng = np.random.default_rng(0)
    print(f"{args.kind}; CPU seconds, median of {args.repeats}")
    print("image  tokens  responses  prompts  generate    engine    ratio")
    for side, length, responses, count in CASES:
        prompts = [random_prompt(chat, rng, side, i) for i in range(count)]
        ids = torch.from_numpy(np.stack([p.ids for p in prompts])).repeat_interleave(responses, 0)
        pixels = torch.cat([p.pixel_values for p in prompts for _ in range(responses)])  # type: ignore[misc]
        grid = torch.cat([p.image_grid_thw for p in prompts for _ in range(responses)])  # type: ignore[misc]

        def generate(ids=ids, pixels=pixels, grid=grid, length=length) -> None:
            with torch.no_grad():
                policy.hf.generate(  # type: ignore[operator]
                    input_ids=ids,
                    attention_mask=torch.ones_like(ids),
                    mm_token_type_ids=(ids == chat.image_token_id).int(),
                    pixel_values=pixels,
                    image_grid_thw=grid,
                    do_sample=True,
                    max_new_tokens=length,
                    min_new_tokens=length,
                    use_cache=True,
                    suppress_tokens=list(chat.banned_ids),
                )

        params = SamplingParams(n=responses, max_new_tokens=length, temperature=1.0, seed=0)
        ways = {"generate": generate, "engine": lambda prompts=prompts, params=params: engine.generate(prompts, params)}
        s = paired(ways, args.repeats)
        ratio = s["generate"] / s["engine"]
        print(f"{side:5d}  {length:6d}  {responses:9d}  {count:7d}", end="")
        print(f"  {s['generate']:8.3f}  {s['engine']:8.3f}  {ratio:6.2f}x")


if __name__ == "__main__":
    main()
