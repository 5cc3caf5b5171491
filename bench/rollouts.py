"""Rollouts through the pipeline against plain vLLM (`LLM.generate` on the same prompts), and the two engines.

The pipeline checks ids and log-probs, decodes, and keeps what it got; plain vLLM only samples. Weights do not change.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np
from common import paired, random_prompt

from sapo_vl.distributed import init_world
from sapo_vl.doctor import case
from sapo_vl.learning.optim import OptimConfig, ZeroConfig
from sapo_vl.model.export import save_hf_folder
from sapo_vl.rollout import RolloutConfig, SamplingParams, TransformersEngine
from sapo_vl.rollout.vllm.engine import VllmEngine, request_seed
from sapo_vl.session import open_session

CASES = ((64, 12, 8, 16), (128, 32, 8, 16))  # image side, new tokens, responses, prompts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kind", choices=["dense", "moe"], default="moe")
    parser.add_argument("--repeats", type=int, default=5)
    args = parser.parse_args()
    world = init_world()
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "model"
        save_hf_folder(case.tiny_model(args.kind, 0), case.processor(), folder)
        config = RolloutConfig(engine="vllm", max_new_tokens=32)
        model = case.MODEL.model_copy(update={"path": str(folder)})
        session = open_session(model, OptimConfig(), ZeroConfig(stage=0), config, world, total_updates=1, seed=0)
    engine, chat = session.rollouts, session.chat
    assert isinstance(engine, VllmEngine)
    trainers_own = TransformersEngine(session.engine.module, chat)
    rng = np.random.default_rng(0)
    print(f"{args.kind}; process CPU seconds, median of {args.repeats}")
    print("image  tokens  responses  prompts  LLM.generate  pipeline  ratio  transformers  ratio")
    for side, length, responses, count in CASES:
        prompts = [random_prompt(chat, rng, side, i) for i in range(count)]
        params = SamplingParams(n=responses, max_new_tokens=length, temperature=1.0, seed=0)
        requests = [
            engine.contract.sampling(params, request_seed(p.problem.id, 0), chat.eos_ids, chat.banned_ids)
            for p in prompts
        ]
        raw = [engine.contract.request(p) for p in prompts]
        ways = {
            "plain": lambda raw=raw, requests=requests: engine.llm.generate(raw, requests, use_tqdm=False),
            "pipeline": lambda prompts=prompts, params=params: engine.generate(prompts, params),
            "transformers": lambda prompts=prompts, params=params: trainers_own.generate(prompts, params),
        }
        s = paired(ways, args.repeats)
        print(f"{side:5d}  {length:6d}  {responses:9d}  {count:7d}", end="")
        print(f"  {s['plain']:12.3f}  {s['pipeline']:8.3f}  {s['pipeline'] / s['plain']:5.2f}", end="")
        print(f"  {s['transformers']:12.3f}  {s['transformers'] / s['pipeline']:5.2f}")


if __name__ == "__main__":
    main()
