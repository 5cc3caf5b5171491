"""Runs on two ranks for test_zero.py: updates under settings of DeepSpeed that a GPU would have, and the reference.

    zero_worker.py FOLDER SEED

FOLDER holds the models `dense` and `moe`, written by the test; results go there.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from helpers_models import MODEL, Kind, flat, make_case, with_old_logprobs
from safetensors.torch import save_file
from torch import Tensor
from transformers.integrations import HfDeepSpeedConfig

from sapo_vl.distributed import World, init_world, shutdown_world
from sapo_vl.learning.diagnostics import UpdateStats
from sapo_vl.learning.engine import PolicyEngine, gathered
from sapo_vl.learning.objectives import global_denominators, policy_objective
from sapo_vl.learning.optim import OptimConfig, Tuning, ZeroConfig, deepspeed_config
from sapo_vl.learning.reference import load_reference
from sapo_vl.learning.tuning import WHOLE_ELEMENTS
from sapo_vl.losses import LossConfig
from sapo_vl.model.folder import examine
from sapo_vl.model.loading import load_model
from sapo_vl.model.policy import PolicyModule
from sapo_vl.session import setup_logging

OPTIM = OptimConfig(lr=1e-3, eps=1.0)  # see distributed_worker.py
ON_HOST = {"offload_optimizer": True}
# name -> (model, settings, tuning), all in float32
UPDATES: Mapping[str, tuple[Kind, ZeroConfig, Tuning]] = {
    "dense": ("dense", ZeroConfig(stage=1), Tuning()),
    "1, overlapping": ("dense", ZeroConfig(stage=1), Tuning(overlap=True)),
    "2, overlapping, on the host": ("dense", ZeroConfig(stage=2, **ON_HOST), Tuning(overlap=True)),
    "3, small weights whole, on the host": ("dense", ZeroConfig(stage=3, **ON_HOST), Tuning(whole_elements=20_000)),
    "moe": ("moe", ZeroConfig(stage=1), Tuning()),
    "3, overlapping": ("moe", ZeroConfig(stage=3), Tuning(overlap=True, whole_elements=WHOLE_ELEMENTS)),
}
# name -> settings, on the dense model in bfloat16: the gradient of one micro-batch, and that of many like it
SUMS: Mapping[str, ZeroConfig] = {
    "2": ZeroConfig(stage=2),
    "2, float32": ZeroConfig(stage=2, grad_accum_dtype="float32"),
    "3, float32, on the host": ZeroConfig(stage=3, grad_accum_dtype="float32", **ON_HOST),
}
REPEATS = (1, 12, 20, 28, 36, 48)
SHARES = [[[0], [2], [3]], [[1, 4]]]  # rank -> micro-batches -> groups
TEMPERATURE = 1.2


def open_engine(
    kind: Kind, zero: ZeroConfig, tuning: Tuning, dtype: str, folder: Path, world: World, banned_ids: Sequence[int]
) -> PolicyEngine:
    path = folder / kind
    examined = examine(str(path))
    settings = HfDeepSpeedConfig(deepspeed_config(OPTIM, zero, dtype, tuning)) if zero.stage == 3 else None
    model = load_model(MODEL.model_copy(update={"path": str(path), "dtype": dtype}), examined)
    engine = PolicyEngine(PolicyModule(model, banned_ids), OPTIM, zero, dtype, world, 4, tuning)
    del settings
    return engine


def two_updates(name: str, folder: Path, seed: int, world: World) -> dict[str, Tensor]:
    """The weights after them."""
    kind, zero, tuning = UPDATES[name]
    case = make_case(kind, seed)
    groups = with_old_logprobs(case, noise=0.3)
    engine = open_engine(kind, zero, tuning, "float32", folder, world, case.chat.banned_ids)
    batches = [flat(case.chat, [groups[i] for i in share]) for share in SHARES[world.rank]]
    for _ in range(2):
        objective = policy_objective(LossConfig(), global_denominators(batches, world), UpdateStats())
        assert engine.update(batches, flat(case.chat, [groups[4]]), objective).applied
    found = {}
    for key, p in engine.module.named_parameters():
        with gathered([p], zero.stage):
            found[key] = p.detach().clone()
    engine.ds.destroy()
    return found


def sums(name: str, folder: Path, seed: int, world: World) -> dict[str, Tensor]:
    """Norms of the gradient of so many times the same micro-batch as REPEATS says."""
    case = make_case("dense", seed)
    text = flat(case.chat, [with_old_logprobs(case, noise=0.3)[4]])
    engine = open_engine("dense", SUMS[name], Tuning(), "bfloat16", folder, world, case.chat.banned_ids)
    engine.optim = OPTIM.model_copy(update={"schedule": "linear"})
    engine.total_updates, engine.updates = 1, 1  # learning rate 0
    norms = []
    for times in REPEATS:
        objective = policy_objective(LossConfig(), global_denominators([text], world), UpdateStats())
        norms.append(engine.update([text] * times, text, objective).grad_norm)
    engine.ds.destroy()
    return {"norms": torch.tensor(norms)}


def halves(kind: Kind, folder: Path, seed: int, world: World) -> dict[str, Tensor]:
    """In bfloat16, whole and sharded: log-probs of this rank's micro-batches, and what is no weight."""
    case = make_case(kind, seed)
    batches = [flat(case.chat, [case.groups[i] for i in share]) for share in SHARES[world.rank]]
    found = {}
    for stage in (1, 3):
        zero = ZeroConfig(stage=stage)
        engine = open_engine(kind, zero, Tuning(), "bfloat16", folder, world, case.chat.banned_ids)
        for i, told in enumerate(engine.logprobs(batches, flat(case.chat, [case.groups[4]]), TEMPERATURE)):
            found[f"{stage} log-probs {i}"] = told.logprobs
        found |= {f"{stage} {name}": value.clone() for name, value in engine.module.named_buffers()}
        engine.ds.destroy()
    return found


def references(kind: Kind, folder: Path, seed: int, world: World) -> dict[str, Tensor]:
    """Log-probs of this rank's micro-batches, by a whole reference and by one that is sharded."""
    case = make_case(kind, seed)
    batches = [flat(case.chat, [case.groups[i] for i in share]) for share in SHARES[world.rank]]
    model = MODEL.model_copy(update={"path": str(folder / kind)})
    found = {}
    for stage, params in ((1, False), (3, False), (3, True)):
        zero = ZeroConfig(stage=stage, offload_params=params)  # type: ignore[arg-type]
        reference = load_reference(model, zero, Tuning(), case.chat.banned_ids, TEMPERATURE, world)
        for i, mb in enumerate(reference.noted(batches, flat(case.chat, [case.groups[4]]))):
            assert mb.reference_logprobs is not None
            found[f"{stage}{' on the host' * params} {i}"] = mb.reference_logprobs
        held = sum(p.ds_tensor.numel() if stage == 3 else p.numel() for p in reference.policy.parameters())
        found[f"held {stage}{' on the host' * params}"] = torch.tensor(held)
    return found


def main(folder: Path, seed: int) -> None:
    world = init_world()
    setup_logging(world)
    torch.set_num_threads(1)
    for name in UPDATES:
        save_file(two_updates(name, folder, seed, world), folder / f"updates {name}.{world.rank}")
    for name in SUMS:
        save_file(sums(name, folder, seed, world), folder / f"sums {name}.{world.rank}")
    for kind in ("dense", "moe"):
        save_file(halves(kind, folder, seed, world), folder / f"half {kind}.{world.rank}")
        save_file(references(kind, folder, seed, world), folder / f"reference {kind}.{world.rank}")
    shutdown_world()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
