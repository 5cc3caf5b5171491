"""Runs on every rank for test_resuming.py: what is saved on some ranks is taken up on others, under another ZeRO stage.

    resuming_worker.py FOLDER SEED JOBS

JOBS is the name of a JSON file in FOLDER with a list of {"name", "variant", "from", "plant", "optim"}. Without "from" a
job learns two updates and saves; with it, it goes on from what the job of that name saved, or from a copy with code in
files of the kind "plant". Each then learns one more, but in bfloat16. As distributed_worker.py, it records and the
test judges.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import distributed_worker
import torch
from checkpoint_worker import refusal
from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state
from distributed_worker import (
    LR_ONE,
    OPTIM,
    TEMPERATURE,
    VARIANTS,
    Updates,
    Variant,
    full_state_dict,
    open_variant,
    save,
)
from helpers_models import make_case, with_old_logprobs
from torch import Tensor

from sapo_vl.distributed import World, init_world, shutdown_world
from sapo_vl.learning.checkpoint import save_checkpoint, step_dir
from sapo_vl.learning.engine import PolicyEngine
from sapo_vl.learning.resuming import load_checkpoint
from sapo_vl.session import setup_logging

BF16 = {f"dense-{stage}-bf16": Variant("dense", stage, {"dtype": "bfloat16"}) for stage in range(4)}
FROZEN = {"dense-3-frozen": Variant("dense", 3, {"freeze": ("vision", "embeddings")})}
ALL = VARIANTS | BF16 | FROZEN
MOMENTS = ("exp_avg", "exp_avg_sq")
# Ranks -> for two updates, the groups of each rank's micro-batches; of the five in all, four learn in the first.
SPLITS: dict[int, list[list[list[list[int]]]]] = {
    1: [[[[0, 1], [2, 4]]], [[[0, 1, 2], [3], [4]]]],
    2: [[[[0, 1]], [[2], [4]]], [[[0], [1, 2]], [[3, 4]]]],
    4: [[[[0]], [[1]], [[2]], [[4]]], [[[0, 3]], [[1]], [[2]], [[4]]]],
}


def kept(engine: PolicyEngine) -> dict[str, Tensor]:
    """What the optimizer keeps of each weight that learns, whole, as DeepSpeed itself gives it, and the model."""
    named = {n: p for n, p in engine.module.named_parameters() if p.requires_grad}
    out: dict[str, Tensor] = {}
    if engine.zero.stage in (1, 2):
        engine.ds.optimizer._lazy_init_hp_params_optimizer_state()  # else at the end of the first update
    if engine.zero.stage == 0:
        own = engine.ds.basic_optimizer
        (group,) = own.param_groups
        for name, tensor in zip(named, group["params"], strict=True):
            out |= {f"weight {name}": tensor.detach()} | {f"{key} {name}": own.state[tensor][key] for key in MOMENTS}
        state = own.state
    else:
        for name, p in named.items():
            found = {"weight": safe_get_full_fp32_param(p)}
            found |= {key: safe_get_full_optimizer_state(p, key) for key in MOMENTS}
            out |= {f"{key} {name}": value for key, value in found.items() if value is not None}
        state = engine.ds.optimizer.optimizer.state
    counts = {float(own["step"]) for own in state.values()}
    assert len(counts) == 1, f"weights were updated {counts} times"
    out["step"] = torch.tensor(counts.pop())
    return out | {f"model {name}": value for name, value in full_state_dict(engine).items()}


def run(job: dict[str, Any], folder: Path, seed: int, world: World) -> dict[str, Any]:
    name, variant = job["name"], ALL[job["variant"]]
    groups = with_old_logprobs(make_case(variant.kind, seed), noise=0.3, temperature=TEMPERATURE)
    distributed_worker.OPTIM = OPTIM.model_copy(update=job.get("optim", {}))
    session = open_variant(variant, folder, world)
    updates, engine = Updates(session, groups), session.engine
    out: dict[str, Any] = {}

    def learn(which: int) -> None:
        engine.updates = LR_ONE
        result = updates.update(updates.batches(SPLITS[world.size][which]))
        assert result["applied"] and result["lr"] > 0

    if "from" in job:
        checkpoint = step_dir(folder / job["from"], 2)
        if "plant" in job:
            out["refused"] = refusal(folder / name / job["plant"], engine, plant=checkpoint)
            engine.ds.destroy()
            return out
        torch.rand(1)
        start = torch.get_rng_state()
        state = load_checkpoint(checkpoint, engine, lambda states: {"of": states})
        out = {"state": state, "updates": engine.updates, "dropped": engine.dropped_in_a_row}
        (group,) = engine.ds.optimizer.param_groups
        out["settings"] = [group["betas"], group["weight_decay"], getattr(engine.ds.optimizer, "clip_grad", None)]
        out["dice"] = "as before" if torch.equal(torch.get_rng_state(), start) else torch.rand(2).tolist()
    else:
        learn(0)
        learn(1)
        engine.updates, engine.dropped_in_a_row = 17, 1
        torch.manual_seed(world.rank)
        save_checkpoint(folder / name, 2, engine, {"a": "b", "per_rank": {"rank": world.rank}}, keep=1)
        out["dice"] = torch.rand(2).tolist()
    save(world, kept(engine), folder / f"{name}.now.safetensors")
    if "bf16" not in job["variant"]:  # whose rounding depends on the order of sums
        learn(0)
        save(world, kept(engine), folder / f"{name}.after.safetensors")
    engine.ds.destroy()
    return out


def main() -> None:
    folder, seed = Path(sys.argv[1]), int(sys.argv[2])
    world = init_world()
    setup_logging(world)
    torch.set_num_threads(1)
    for job in json.loads((folder / sys.argv[3]).read_text()):
        result = run(job, folder, seed, world)
        (folder / f"{job['name']}.rank{world.rank}of{world.size}.json").write_text(json.dumps(result))
        print(f"rank {world.rank}: {job['name']} done", flush=True)
    shutdown_world()


if __name__ == "__main__":
    main()
