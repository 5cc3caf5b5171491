"""Loads MoE folders of both expert layouts, also of sizes that look alike, with and without ZeRO-3; saves what it got.

    layout_worker.py FOLDER

FOLDER holds model folders; for each, `NAME.zero0.safetensors` and `NAME.zero3.safetensors` are written beside it.
"""

from __future__ import annotations

import sys
from pathlib import Path

import deepspeed
from safetensors.torch import save_file
from transformers.integrations import HfDeepSpeedConfig

from sapo_vl.distributed import init_world
from sapo_vl.learning.optim import OptimConfig, ZeroConfig, deepspeed_config
from sapo_vl.model.folder import examine
from sapo_vl.model.loading import ModelConfig, load_model


def main(root: Path) -> None:
    world = init_world()
    for path in sorted(p for p in root.iterdir() if p.is_dir()):
        folder = examine(str(path))
        for stage in (0, 3):
            sharding = None
            if stage == 3:
                sharding = HfDeepSpeedConfig(deepspeed_config(OptimConfig(), ZeroConfig(stage=3), "float32"))
            model = load_model(ModelConfig(path=str(path)), folder)
            del sharding
            state = {}
            for name, p in model.named_parameters():
                with deepspeed.zero.GatheredParameters([p], enabled=stage == 3):
                    state[name] = p.detach().clone()
            if world.is_main:
                save_file(state, root / f"{path.name}.zero{stage}.safetensors")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
