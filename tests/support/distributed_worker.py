"""Runs on every rank for test_distributed.py: real updates and rollouts under every ZeRO stage.

    distributed_worker.py FOLDER SEED

FOLDER holds the models `dense` and `moe`, written by the test; results go there. What is right is decided by the
test, which works it out in one process without DeepSpeed; here numbers are only recorded.
"""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import peft
import torch
from deepspeed.utils import safe_get_full_grad
from helpers_models import MODEL, Kind, flat, make_case, make_prompts, with_old_logprobs, with_random_routes
from safetensors.torch import save_file
from torch import Tensor

from sapo_vl.distributed import World, init_world, shutdown_world
from sapo_vl.learning.diagnostics import UpdateStats
from sapo_vl.learning.engine import Objective, ObjectiveFn, PolicyEngine, gathered
from sapo_vl.learning.objectives import global_denominators, policy_objective
from sapo_vl.learning.optim import OptimConfig, ZeroConfig
from sapo_vl.learning.replay import FlipStats
from sapo_vl.learning.weights import hub_adapters, hub_weights, manifest
from sapo_vl.losses import LossConfig
from sapo_vl.model.batching import MicroBatch
from sapo_vl.model.loading import ModelConfig
from sapo_vl.model.lora import LoraConfig
from sapo_vl.rollout import RolloutConfig, SamplingParams
from sapo_vl.rollout.schedule import Held
from sapo_vl.rollout.vllm.adapters import adapted_weights, write_adapters
from sapo_vl.session import Session, open_session, setup_logging
from sapo_vl.types import RolloutGroup

LORA = LoraConfig(rank=4, target_modules=("q_proj", "o_proj"))
LORA_EXPERTS = LoraConfig(rank=3, alpha=5)  # the default targets


@dataclasses.dataclass(frozen=True)
class Variant:
    kind: Kind
    stage: int
    model: dict[str, Any] = dataclasses.field(default_factory=dict)

    def config(self, folder: Path) -> ModelConfig:
        return MODEL.model_copy(update={"path": str(folder / self.kind), **self.model})


PLAIN = {f"{kind}-{stage}": Variant(kind, stage) for kind in ("dense", "moe") for stage in range(4)}  # type: ignore[arg-type]
VARIANTS = PLAIN | {
    "dense-1-lora": Variant("dense", 1, {"lora": LORA}),
    "dense-3-lora": Variant("dense", 3, {"lora": LORA}),
    **{f"moe-{stage}-lora": Variant("moe", stage, {"lora": LORA_EXPERTS}) for stage in (0, 3)},
    "moe-3-lora-more": Variant(
        "moe", 3, {"lora": LORA_EXPERTS, "experts_implementation": "grouped_mm", "gradient_checkpointing": True}
    ),
    "dense-2-frozen": Variant("dense", 2, {"freeze": ("vision", "embeddings")}),
    "moe-3-frozen": Variant("moe", 3, {"freeze": ("vision", "merger", "router")}),
    "moe-3-checkpointing": Variant("moe", 3, {"gradient_checkpointing": True}),
}

# eps = 1 makes Adam nearly linear: with the usual 1e-8 a weight with next to no gradient would move by the sign
# of its rounding error. The schedule gives lr 1 to update 0 and lr 0 to all later ones.
OPTIM = OptimConfig(lr=1.0, eps=1.0, clip=0.5, schedule="linear")
TEMPERATURE = 1.2
SAMPLING = SamplingParams(n=3, max_new_tokens=24, temperature=1.3, seed=11)
ROLLOUT_STAGES = (0, 3)  # whole weights, and weights gathered layer by layer
LR_ZERO, LR_ONE = 1, 0  # values of PolicyEngine.updates


class Reading(PolicyEngine):
    """Keeps the gradient of the last update, whole, as it was before clipping."""

    gradient: dict[str, Tensor]

    def _step(self) -> tuple[bool, float]:
        self.gradient = {
            name: safe_get_full_grad(p).detach().clone().float()
            for name, p in self.module.named_parameters()
            if p.requires_grad
        }
        return super()._step()


def sample_prompts(chat: Any, rng: Any) -> list[Any]:
    return make_prompts(chat, rng, [[(48, 32)], [], [(32, 32), (64, 48)], [], [], [(32, 80)]])


# name -> rank -> micro-batches -> indices of groups. The groups are image, text, images, image, text.
SPLITS: dict[int, dict[str, list[list[list[int]]]]] = {
    1: {"one": [[[0, 1, 2, 3, 4]]], "each": [[[0], [1], [2], [3], [4]]]},
    2: {
        "uneven, text only on rank 1": [[[0], [2], [3]], [[1, 4]]],
        "rank 0 idle": [[], [[0, 1], [2, 3, 4]]],
    },
}


def open_variant(variant: Variant, folder: Path, world: World) -> Session:
    session = open_session(
        variant.config(folder),
        OPTIM,
        ZeroConfig(stage=variant.stage),  # type: ignore[arg-type]
        RolloutConfig(),
        world,
        total_updates=1,
        seed=3,
        replay="r3" if variant.kind == "moe" else "none",
    )
    session.engine.__class__ = Reading
    return session


def local_hash(engine: PolicyEngine) -> str:
    """Of the bytes of this rank's weights, or of its shards of them."""
    digest = hashlib.sha256()
    for _, p in engine.module.named_parameters():
        digest.update(getattr(p, "ds_tensor", p).detach().contiguous().numpy().tobytes())
    return digest.hexdigest()


class Updates:
    """One session and the groups its updates learn from."""

    def __init__(self, session: Session, groups: list[RolloutGroup]) -> None:
        self.session, self.groups = session, groups
        self.world, self.chat, self.engine = session.world, session.chat, session.engine
        self.stats: dict[str, Any] = {}

    def batches(self, split: Sequence[Sequence[Sequence[int]]]) -> list[MicroBatch]:
        return [flat(self.chat, [self.groups[i] for i in part]) for part in split[self.world.rank]]

    def objective(self, batches: list[MicroBatch]) -> ObjectiveFn:
        return policy_objective(LossConfig(), global_denominators(batches, self.world), UpdateStats())

    def update(self, batches: list[MicroBatch], objective: ObjectiveFn | None = None) -> dict[str, Any]:
        filler = flat(self.chat, [self.groups[4]])  # text only
        function = objective or self.objective(batches)
        asked: list[list[str]] = []

        def watched(mb: MicroBatch, logprobs: Tensor, entropy: Tensor) -> Objective:
            asked.append([g.prompt.problem.id for g in mb.groups])
            return function(mb, logprobs, entropy)

        result = self.engine.update(batches, filler, watched, TEMPERATURE)
        return {
            "asked": asked,
            "applied": result.applied,
            "loss": result.loss,
            "norm": result.grad_norm,
            "lr": result.lr,
            "offenders": [list(o) for o in result.offenders],
            "dropped_in_a_row": self.engine.dropped_in_a_row,
        }

    def nonfinite(self, split: list[list[list[int]]], rank: int, place: int, response: int, how: str) -> dict[str, Any]:
        """An update with one bad response, in micro-batch `place` of `rank`; hashes before and after."""
        batches = self.batches(split)
        right = self.objective(batches)
        mine = self.world.rank == rank
        start = int(batches[place].lengths[:response].sum()) if mine else 0
        if how == "loss" and mine:
            old = batches[place].old_logprobs.clone()
            old[start] = float("nan")
            batches[place] = dataclasses.replace(batches[place], old_logprobs=old)
        seen = 0

        def bad(mb: MicroBatch, logprobs: Tensor, entropy: Tensor) -> Objective:
            """The same loss with a slope that is infinite, or with a value that is, but not the slope.

            how="sum": a value that is, though no response's own is, as where a sum overflows.
            """
            nonlocal seen
            out = right(mb, logprobs, entropy)
            if mine and seen == place and how == "sum":
                out = dataclasses.replace(out, loss=out.loss + float("inf"))
            elif mine and seen == place and how == "value":
                finite = out.finite.clone()
                finite[response] = False
                out = Objective(loss=out.loss + float("inf"), finite=finite)
            elif mine and seen == place:
                nothing = (logprobs[start] - logprobs[start].detach()).abs().sqrt()
                out = dataclasses.replace(out, loss=out.loss + nothing)
            seen += 1
            return out

        before = local_hash(self.engine)
        result = self.update(batches, right if how == "loss" else bad)
        return result | {"unchanged": before == local_hash(self.engine)}


def check_updates(variant: Variant, name: str, folder: Path, seed: int, world: World) -> dict[str, Any]:
    case = make_case(variant.kind, seed)
    groups = with_old_logprobs(case, noise=0.3, temperature=TEMPERATURE)
    session = open_variant(variant, folder, world)
    out: dict[str, Any] = {}

    if not variant.model and variant.stage in ROLLOUT_STAGES:
        prompts = sample_prompts(session.chat, case.rng)
        share = len(prompts) // world.size
        if world.rank:  # it has room for one group and a bit, and runs its prompts when rank 0 does not
            own: Any = session.rollouts
            room = own.room(SAMPLING)
            own.cache_bytes = lambda: room.need(Held().plus(60, SAMPLING.n)) + room.response_bytes
        sampled = session.rollouts.generate(prompts[world.rank * share : (world.rank + 1) * share], SAMPLING)
        out["rollouts"] = {
            g.prompt.problem.id: [(r.response_ids.tolist(), r.logprobs.tolist(), r.finish.value) for r in g.rollouts]
            for g in sampled
        }
    if variant.model.get("lora"):
        save(world, full_state_dict(session.engine), folder / f"{name}.start.safetensors")

    updates = Updates(session, groups)
    out["splits"] = {}
    for split_name, split in SPLITS[world.size].items():
        session.engine.updates = LR_ZERO
        before = local_hash(session.engine)
        result = updates.update(updates.batches(split))
        out["splits"][split_name] = result | {"unchanged": before == local_hash(session.engine)}
        save(world, session.engine.gradient, folder / f"{name}.{split_name}.safetensors")  # type: ignore[attr-defined]

    if not variant.model:
        split = list(SPLITS[world.size].values())[-1 if world.size == 1 else 0]
        rank, last = world.size - 1, 4 if world.size == 1 else 2
        session.engine.updates = LR_ONE  # a drop must be the check's doing, not the learning rate's
        out["nan loss"] = updates.nonfinite(split, rank, 0, 1, "loss")
        session.engine.updates = LR_ONE
        out["infinite loss, finite gradient"] = updates.nonfinite(split, rank, 0, 1, "value")
        session.engine.updates = LR_ONE
        out["infinite sum of finite losses"] = updates.nonfinite(split, rank, 0, 1, "sum")
        session.engine.updates = LR_ONE
        out["nan gradient, first micro-batch"] = updates.nonfinite(split, 0, 0, 2, "gradient")
        session.engine.updates = LR_ONE
        out["nan gradient, last micro-batch"] = updates.nonfinite(split, 0, last, 0, "gradient")

    session.engine.updates = LR_ONE
    split = next(iter(SPLITS[world.size].values()))
    before = local_hash(session.engine)
    out["applied"] = updates.update(updates.batches(split))
    out["applied"] |= {"changed": before != local_hash(session.engine), "hash": local_hash(session.engine)}
    save(world, full_state_dict(session.engine), folder / f"{name}.after.safetensors")
    if variant.model.get("lora"):
        streamed = dict(hub_weights(session.engine, bucket_bytes=100_000))  # less than one of the experts' weights
        out["manifest"] = {name: list(shape) for name, shape in manifest(session.engine).items()}
        save(world, streamed, folder / f"{name}.streamed.safetensors")

    taken = session.engine.logprobs(updates.batches(split), flat(session.chat, [groups[4]]), TEMPERATURE)
    out["logprobs after"] = [t.logprobs.tolist() for t in taken]
    if variant.kind == "moe":
        out["replay"] = check_replay(updates, split, seed)
        save(world, session.engine.gradient, folder / f"{name}.replay.safetensors")  # type: ignore[attr-defined]
    if variant.model.get("lora"):
        session.engine.updates = LR_ONE
        out["second"] = updates.update(updates.batches(split))
        second = dict(hub_weights(session.engine))
        save(world, second, folder / f"{name}.second.safetensors")
        out["adapters alone"] = merged_elsewhere(session, folder / f"{name}.{world.rank}.adapters", second)
    session.engine.ds.destroy()
    return out


def merged_elsewhere(session: Session, sent: Path, whole: dict[str, Tensor]) -> bool:
    """Whether a server that is sent the adapters alone ends with these weights, to the bit."""
    sent.mkdir()
    count = write_adapters(hub_adapters(session.engine, bucket_bytes=20_000), sent)
    cpu = torch.device("cpu")
    taken = dict(adapted_weights(session.folder.path, sent, count, torch.float32, cpu))
    return taken.keys() == whole.keys() and all(torch.equal(taken[n], w) for n, w in whole.items())


def check_replay(updates: Updates, split: Sequence[Sequence[Sequence[int]]], seed: int) -> dict[str, Any]:
    """Updates of lr 0: free, through the routes that a pass before it recorded (R2), through random ones (R3)."""
    engine, own = updates.engine, updates.groups
    filler = flat(updates.chat, [own[4]])
    spec = engine.module.routes
    assert spec is not None
    out: dict[str, Any] = {}

    def learn(batches: list[MicroBatch]) -> tuple[float, dict[str, Tensor], dict[str, Any]]:
        flips = FlipStats(spec)
        engine.updates = LR_ZERO
        result = engine.update(batches, filler, updates.objective(batches), TEMPERATURE, flips.add)
        return result.loss, engine.gradient, flips.reduce(updates.world)  # type: ignore[attr-defined]

    free = updates.batches(split)
    taken = engine.logprobs(free, filler, TEMPERATURE, record_routes=True)
    recorded = [dataclasses.replace(mb, old_routes=t.routes, replay=True) for mb, t in zip(free, taken, strict=True)]
    loss, gradient, _ = learn(free)
    same_loss, same_gradient, flips = learn(recorded)
    out["r2"] = {
        "same": loss == same_loss and all(torch.equal(gradient[n], same_gradient[n]) for n in gradient),
        "flip": flips["routing/flip"],
        "drift": flips["routing/drift"],
    }
    updates.groups = with_random_routes(np.random.default_rng(seed), spec, own)
    batches = [dataclasses.replace(mb, replay=True) for mb in updates.batches(split)]
    out["logprobs"] = [t.logprobs.tolist() for t in engine.logprobs(batches, filler, TEMPERATURE)]
    loss, _, flips = learn(batches)
    out["r3"] = {"loss": loss, "flip": flips["routing/flip/layers"], "drift": flips["routing/drift/layers"]}
    updates.groups = own
    return out


def save(world: World, tensors: dict[str, Tensor], path: Path) -> None:
    if world.is_main:
        save_file({k: v.contiguous().clone() for k, v in tensors.items()}, path)


def full_state_dict(engine: PolicyEngine) -> dict[str, Tensor]:
    """The Hugging Face model's state dict, whole and on the CPU, on the main rank; {} on the others.

    Under ZeRO-3 parameters are gathered one at a time: the extra memory on an accelerator is one parameter.
    """
    model = engine.module.hf
    state: dict[str, Tensor] = {}
    for name, p in [*model.named_parameters(remove_duplicate=False), *model.named_buffers()]:
        with gathered([p], engine.zero.stage if isinstance(p, torch.nn.Parameter) else 0):
            if engine.world.is_main:
                state[name] = p.detach().to("cpu", copy=True)
    persistent = set(model.state_dict().keys())
    return {k: v for k, v in state.items() if k in persistent}


def run(check: Callable[..., dict[str, Any]], variants: Iterable[str]) -> None:
    """`check(variant, name, folder, seed, world)` for each variant; what it returns goes to a JSON file per rank."""
    folder, seed = Path(sys.argv[1]), int(sys.argv[2])
    # B = 0 at the start would leave A without a gradient, and the sampled law without adapters. Here, in a process of
    # its own, and not on import: tests take names from this file.
    peft.LoraConfig = functools.partial(peft.LoraConfig, init_lora_weights=False)  # type: ignore[misc]
    world = init_world()
    setup_logging(world)
    torch.set_num_threads(1)
    for name in variants:
        result = check(VARIANTS[name], name, folder, seed, world)
        (folder / f"{name}.rank{world.rank}of{world.size}.json").write_text(json.dumps(result))
        print(f"rank {world.rank}: {name} done", flush=True)
    shutdown_world()


if __name__ == "__main__":
    run(check_updates, VARIANTS if os.environ.get("WORLD_SIZE", "1") != "1" else PLAIN)
