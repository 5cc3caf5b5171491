"""The trainer of server_chaos.py: new weights and a batch each round, as the loop of training does it.

server_chaos_worker.py FOLDER ROUNDS SEED URL...
"""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import torch
from helpers_models import MODEL, make_policy, make_prompts

from sapo_vl.distributed import World
from sapo_vl.rollout import SamplingParams
from sapo_vl.rollout.source import check_versions
from sapo_vl.rollout.vllm.config import ServerConfig
from sapo_vl.rollout.vllm.server import VllmServerEngine
from sapo_vl.session import setup_logging
from sapo_vl.types import Finish


def main(folder: Path, rounds: int, seed: int, urls: tuple[str, ...]) -> None:
    world = World.alone()
    setup_logging(world)
    _, chat = make_policy("dense", seed)
    sizes: list[list[tuple[int, int]]] = [[(48, 32)], [], [(32, 64), (32, 32)], [(64, 64)], [], [(16, 16)], [], []]
    print("IMAGE", chat.image_token_id, flush=True)
    prompts = make_prompts(chat, np.random.default_rng(seed), sizes)
    config = ServerConfig(urls=urls, allow_remote=True, timeout_s=2.0, startup_s=120.0, retries=20, max_in_flight=1)
    version = [0]
    engine = VllmServerEngine(
        MODEL, config, chat, lambda: iter({"a.weight": torch.full((2, 3), float(version[0]))}.items()),
        {"a.weight": (2, 3)}, world, folder, max_new_tokens=12, max_failed_share=1.0,
    )  # fmt: skip
    for number in range(1, rounds + 1):
        began = time.monotonic()
        version[0] = number
        print("BEGIN", json.dumps([number, "sync"]), flush=True)
        engine.sync(number)
        print("BEGIN", json.dumps([number, "step"]), flush=True)
        groups = engine.generate(prompts, SamplingParams(n=2, max_new_tokens=12, temperature=1.0, seed=number))
        check_versions(groups, number, 0)
        assert [g.prompt.problem.id for g in groups] == [p.problem.id for p in prompts]
        rollouts = [r for g in groups for r in g.rollouts]
        whole = [r for r in rollouts if r.finish is not Finish.FAILED]
        result = {
            "round": number,
            "seconds": round(time.monotonic() - began, 2),
            "responses": len(rollouts),
            "failed": len(rollouts) - len(whole),
            "weights": Counter(int(r.response_ids[0]) - 100 for r in whole),
        }
        print("RESULT", json.dumps(result), flush=True)
    engine.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), tuple(sys.argv[4:]))
