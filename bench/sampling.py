"""Sampling G responses per prompt with the trainer's own model, against transformers' generate on G padded copies, or
(`--against DIR`) against this engine of another checkout, whose tokens and log-probs are compared as well.

Both sides take turns; CPU seconds of one thread, median of the pairs, and the ratios of the pairs. The model has 4
layers of width 192 with one image token a 32 x 32 block; no token ends a response, or the luckier side would win.
"""

from __future__ import annotations

import argparse
import inspect
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from common import random_prompt
from transformers import (
    PreTrainedModel,
    Qwen2VLImageProcessor,
    Qwen3VLForConditionalGeneration,
    Qwen3VLMoeConfig,
    Qwen3VLMoeForConditionalGeneration,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
)

from sapo_vl.model.chat import Chat
from sapo_vl.model.loading import ModelConfig, prepare_model
from sapo_vl.model.policy import PolicyModule
from sapo_vl.model.tiny import tiny_config, train_tokenizer
from sapo_vl.rollout import SamplingParams, TransformersEngine
from sapo_vl.types import Prompt

PATCH, MERGE = 16, 2
SIZES = {"hidden_size": 192, "intermediate_size": 512, "num_hidden_layers": 4, "num_attention_heads": 6}
SIZES |= {"num_key_value_heads": 2}


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    kind: Literal["dense", "moe"]
    side: int  # of the image, in pixels
    prompts: int
    responses: int
    tokens: int  # new ones

    def text(self) -> str:
        return f"{self.kind:5}  {self.side:4d}  {self.prompts:7d}  {self.responses:9d}  {self.tokens:6d}"


CASES = (
    Case(kind="dense", side=64, prompts=16, responses=8, tokens=16),
    Case(kind="dense", side=256, prompts=8, responses=8, tokens=32),
    Case(kind="dense", side=512, prompts=4, responses=16, tokens=64),
    Case(kind="moe", side=256, prompts=8, responses=8, tokens=32),
)


def build(kind: Literal["dense", "moe"]) -> tuple[PolicyModule, Chat]:
    torch.set_num_threads(1)
    tokenizer = train_tokenizer(["how many red ?"] * 50 + ["user\n", "assistant\n"] * 50)
    config: Any = tiny_config(kind, tokenizer, SIZES)
    config.vision_config.patch_size, config.vision_config.out_hidden_size = PATCH, SIZES["hidden_size"]
    torch.manual_seed(0)
    moe = isinstance(config, Qwen3VLMoeConfig)
    model: PreTrainedModel = (Qwen3VLMoeForConditionalGeneration if moe else Qwen3VLForConditionalGeneration)(config)
    assert model.generation_config is not None
    model.generation_config.eos_token_id = model.generation_config.pad_token_id = tokenizer.eos_token_id
    size = {"shortest_edge": 32 * 32, "longest_edge": 512 * 512}
    image = Qwen2VLImageProcessor(patch_size=PATCH, merge_size=MERGE, size=size)
    video = Qwen3VLVideoProcessor(patch_size=PATCH, merge_size=MERGE, size=size)
    processor = Qwen3VLProcessor(
        image_processor=image, tokenizer=tokenizer, video_processor=video, chat_template=tokenizer.chat_template
    )
    settings = ModelConfig(min_pixels=32 * 32, max_pixels=512 * 512)
    chat = Chat(processor, model, settings)
    chat.eos_ids = (len(tokenizer) + 1,)
    policy = PolicyModule(prepare_model(model, settings), chat.banned_ids)
    return policy.eval(), chat


def engine_of(policy: PolicyModule, chat: Chat) -> TransformersEngine:
    """Also of a checkout whose engine is bounded by a number of prompts."""
    old: dict[str, Any] = (
        {"prompts_per_batch": 64} if "prompts_per_batch" in inspect.signature(TransformersEngine).parameters else {}
    )
    return TransformersEngine(policy, chat, **old)


def prompts_of(case: Case, chat: Chat) -> list[Prompt]:
    rng = np.random.default_rng(0)
    return [random_prompt(chat, rng, case.side, i) for i in range(case.prompts)]


def params_of(case: Case) -> SamplingParams:
    return SamplingParams(n=case.responses, max_new_tokens=case.tokens, temperature=1.0, seed=0)


class Engine:
    """The engine of this process."""

    def __init__(self) -> None:
        self.models: dict[str, tuple[PolicyModule, Chat]] = {}

    def sample(self, case: Case) -> dict[str, Any]:
        """CPU seconds, token ids and log-probs."""
        policy, chat = self.model(case)
        prompts, engine = prompts_of(case, chat), engine_of(policy, chat)
        started = time.process_time()
        groups = engine.generate(prompts, params_of(case))
        seconds = time.process_time() - started
        rollouts = [r for g in groups for r in g.rollouts]
        ids, logprobs = [r.response_ids.tolist() for r in rollouts], [r.logprobs.tolist() for r in rollouts]
        return {"seconds": seconds, "ids": ids, "logprobs": logprobs}

    def generate(self, case: Case) -> dict[str, Any]:
        """CPU seconds of transformers' way."""
        policy, chat = self.model(case)
        prompts = prompts_of(case, chat)
        ids = torch.from_numpy(np.stack([p.ids for p in prompts])).repeat_interleave(case.responses, 0)
        pixels = torch.cat([p.pixel_values for p in prompts for _ in range(case.responses)])  # type: ignore[misc]
        grid = torch.cat([p.image_grid_thw for p in prompts for _ in range(case.responses)])  # type: ignore[misc]
        started = time.process_time()
        with torch.no_grad():
            policy.hf.generate(  # type: ignore[operator]
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                mm_token_type_ids=(ids == chat.image_token_id).int(),
                pixel_values=pixels,
                image_grid_thw=grid,
                do_sample=True,
                max_new_tokens=case.tokens,
                min_new_tokens=case.tokens,
                use_cache=True,
                suppress_tokens=list(chat.banned_ids),
            )
        return {"seconds": time.process_time() - started}

    def model(self, case: Case) -> tuple[PolicyModule, Chat]:
        if case.kind not in self.models:
            self.models[case.kind] = build(case.kind)
        return self.models[case.kind]


class Elsewhere:
    """The engine of another checkout, in a process that waits for its turns."""

    def __init__(self, checkout: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, __file__, "--serve"],
            env=os.environ | {"PYTHONPATH": os.pathsep.join([checkout, str(Path(__file__).parent)])},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def sample(self, case: Case) -> dict[str, Any]:
        assert self.process.stdin is not None and self.process.stdout is not None
        print(CASES.index(case), file=self.process.stdin, flush=True)
        return json.loads(self.process.stdout.readline())

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def serve() -> None:
    engine = Engine()
    for line in sys.stdin:
        print(json.dumps(engine.sample(CASES[int(line)])), flush=True)


def differences(a: dict[str, Any], b: dict[str, Any]) -> str:
    """Of two samples of a case. Behind the first token that differs, log-probs are those of other texts."""
    same = [x == y for x, y in zip(a["ids"], b["ids"], strict=True)]
    gaps = [
        abs(p - q)
        for x, y, s in zip(a["logprobs"], b["logprobs"], same, strict=True)
        if s
        for p, q in zip(x, y, strict=True)
    ]
    return f"{sum(same)}/{len(same)} equal, log-probs within {max(gaps, default=float('nan')):.1e}"


def compare(case: Case, one: Callable[[Case], dict[str, Any]], two: Callable[[Case], dict[str, Any]], n: int) -> str:
    found = one(case), two(case)
    pairs = [(one(case)["seconds"], two(case)["seconds"]) for _ in range(n)]
    ratios = sorted(a / b for a, b in pairs)
    medians = "  ".join(f"{statistics.median(s):8.3f}" for s in zip(*pairs, strict=True))
    ratio = f"{statistics.median(ratios):6.2f}x  ({ratios[0]:.2f} to {ratios[-1]:.2f})"
    return f"{medians}  {ratio}  {differences(*found) if 'ids' in found[0] else ''}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5, help="pairs")
    parser.add_argument("--against", metavar="DIR", help="another checkout of this repository")
    parser.add_argument("--only", type=int, choices=range(len(CASES)), help="one case by its number")
    parser.add_argument("--serve", action="store_true", help="sample the cases that standard input names by number")
    args = parser.parse_args()
    if args.serve:
        return serve()
    here = Engine()
    other = Elsewhere(args.against) if args.against else None
    print(f"model  side  prompts  responses  tokens  {'before' if other else 'generate':>8}    engine  ratio of pairs")
    for case in CASES if args.only is None else (CASES[args.only],):
        print(case.text() + "  " + compare(case, other.sample if other else here.generate, here.sample, args.repeats))
    if other:
        other.close()


if __name__ == "__main__":
    main()
