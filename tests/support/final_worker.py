"""Writes the model under ZeRO-3 on every rank for test_final.py: once in whole, once on a disk that fills up midway.

    final_worker.py MODEL OUT

Each rank leaves OUT/rankN.json; the test judges.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from pathlib import Path
from typing import Any

import deepspeed
import torch

from sapo_vl.distributed import init_world, shutdown_world
from sapo_vl.learning import final
from sapo_vl.learning.optim import OptimConfig, ZeroConfig
from sapo_vl.model.loading import ModelConfig
from sapo_vl.rollout import RolloutConfig
from sapo_vl.session import open_session


def main(model: Path, out: Path) -> None:
    world = init_world()
    session = open_session(
        ModelConfig(path=str(model), min_pixels=256, max_prompt_tokens=400),
        OptimConfig(),
        ZeroConfig(stage=3),
        RolloutConfig(),
        world,
        total_updates=1,
        seed=0,
    )
    probe = final.make_probe(session.chat)
    parameters = list(session.engine.module.hf.parameters())
    with torch.no_grad(), deepspeed.zero.GatheredParameters(parameters, modifier_rank=0):
        if world.is_main:
            for p in parameters:
                p.add_(0.25)
    proof = final.save_model(session.engine, session.folder, "float32", out / "final", probe)
    result: dict[str, Any] = {"proof": dataclasses.asdict(proof)}

    write = final.write_weights

    def fills_up(weights: Any, folder: Path) -> None:
        taken = iter(weights)
        write((next(taken) for _ in range(3)), folder)
        raise OSError(28, "No space left on device")

    final.write_weights = fills_up
    try:
        final.save_model(session.engine, session.folder, "float32", out / "second", probe)
    except final.ExportError as error:
        result["refused"] = str(error)
    # The ranks are still in step.
    result["after"] = float(session.engine.logprobs([probe], probe)[0][0].sum()) if probe is not None else None
    (out / f"rank{world.rank}.json").write_text(json.dumps(result))
    shutdown_world()


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
