"""Samples from a model folder with and without a trainer around it, on every rank of a launch; says what each holds.

    sampling_worker.py FOLDER

`rank_R.json` in FOLDER gets, by the name of a way, responses and the bytes of parameters, gradients and all else.
"""

from __future__ import annotations

import gc
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from helpers_models import make_problem

from sapo_vl.distributed import init_world
from sapo_vl.learning.optim import OptimConfig, ZeroConfig
from sapo_vl.model.loading import ModelConfig
from sapo_vl.model.lora import LoraConfig
from sapo_vl.rollout import RolloutConfig, SamplingParams
from sapo_vl.session import SamplingSession, open_sampling, open_session

PARAMS = SamplingParams(n=2, max_new_tokens=6, temperature=1.0, seed=3)
ROLLOUT = RolloutConfig(max_new_tokens=8)


def held() -> int:
    """Bytes of all tensors of this process, each storage once."""
    gc.collect()
    with torch.no_grad():
        found = {
            t.untyped_storage().data_ptr(): t.untyped_storage().nbytes()
            for t in gc.get_objects()
            if issubclass(type(t), torch.Tensor) and t.device.type != "meta"
        }
    return sum(found.values())


def responses(session: SamplingSession) -> Any:
    rng = np.random.default_rng(session.world.rank)
    prompts = [session.chat.prompt(make_problem(rng, f"p{i}", sizes)) for i, sizes in enumerate([[(32, 48)], []])]
    groups = session.rollouts.generate(prompts, PARAMS)
    return [[r.response_ids.tolist(), r.logprobs.tolist()] for g in groups for r in g.rollouts]


def main(folder: Path) -> None:
    world = init_world()
    config = ModelConfig(path=str(folder / "model"), min_pixels=256, max_pixels=16384, max_prompt_tokens=400)
    adapted = config.model_copy(update={"lora": LoraConfig(), "freeze": ("vision",)})  # what trains is left out
    found: dict[str, Any] = {}
    for stage in (0, 3):
        before = held()
        session = open_sampling(
            adapted,
            ZeroConfig(stage=stage),
            ROLLOUT,
            world,
            seed=0,
            gpu_share=0.9,  # type: ignore[arg-type]
        )
        found[f"alone {stage}"] = {"held": held() - before, "responses": responses(session)}
        del session
    before = held()
    session = open_session(config, OptimConfig(), ZeroConfig(stage=1), ROLLOUT, world, total_updates=1, seed=0)
    found["trainer"] = {"held": held() - before, "responses": responses(session)}
    (folder / f"rank_{world.rank}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
