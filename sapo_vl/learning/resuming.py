"""A run goes on from a checkpoint, on the ranks and under the ZeRO stage that there are.

Those that saved it: DeepSpeed reads its own files, and the run is the same to the bit. Others: what every weight's
optimizer kept is read weight by weight (`shards.py`) and put where this rank keeps it. (DeepSpeed's universal
checkpoints want a converted copy on the disk, and are read by running what their files say.)
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from deepspeed.ops.adam import DeepSpeedCPUAdam
from torch import Tensor

from sapo_vl.learning.checkpoint import (
    MANIFEST,
    CheckpointError,
    RestrictedCheckpointEngine,
    learning_digest,
    read_manifest,
)
from sapo_vl.learning.engine import PolicyEngine
from sapo_vl.learning.random_state import set_random_state
from sapo_vl.learning.shards import POLICY, Learned, Stored, stored_learning, stored_weights
from sapo_vl.strict import read_mapping

log = logging.getLogger(__name__)

Deal = Callable[[Sequence[dict[str, Any]]], dict[str, Any]]  # states of the ranks that saved -> that of this rank


def load_checkpoint(folder: Path, engine: PolicyEngine, deal: Deal) -> dict[str, Any]:
    """Restores a fresh engine and the random state; returns the saved `state` with "step" and this rank's "per_rank".

    `deal` makes the latter where another number of ranks saved it. A rank that there was not keeps the random state
    that it started with.

    Raises CheckpointError if the checkpoint was saved with other parameters that learn, or if a file of it cannot be
    read.
    """
    manifest, world = read_manifest(folder), engine.world
    learning = learning_digest(engine)
    if manifest.get("learning", learning) != learning:  # those from before it was written down have none
        raise CheckpointError(
            f"{folder} was saved with other parameters that learn than this run has, by name or shape: model.path, "
            "model.freeze or model.lora has changed; resume with the same, or start from the weights in final/"
        )
    ranks, stage = manifest.get("world_size"), manifest.get("zero_stage")
    if not isinstance(ranks, int) or ranks < 1 or stage not in range(4):
        raise CheckpointError(f"{folder / MANIFEST} lacks what a run saves: world_size={ranks!r}, zero_stage={stage!r}")
    if stage == engine.zero.stage and (ranks == world.size or stage == 0):
        _load_as_saved(folder, engine)
    else:
        take_up(folder, engine)
    if engine.optim.name == "adamw":
        match_counts(engine.ds.basic_optimizer)
    if world.is_main and (ranks, stage) != (world.size, engine.zero.stage):
        log.warning(
            "%s was saved with %d ranks and zero.stage=%d; this run has %d and zero.stage=%d: it goes on with the same "
            "data and optimizer, equal but for rounding",
            *(folder, ranks, stage, world.size, engine.zero.stage),
        )
    try:
        engine.updates, engine.dropped_in_a_row = manifest["updates"], manifest["dropped_in_a_row"]
        if world.rank < ranks:
            set_random_state(_of_rank(folder, world.rank)["random"])
        if ranks == world.size:
            mine = _of_rank(folder, world.rank)["per_rank"]
        else:
            mine = deal([_of_rank(folder, rank)["per_rank"] for rank in range(ranks)])
        return {**manifest["state"], "step": manifest["step"], "per_rank": mine}
    except (LookupError, TypeError, ValueError, RuntimeError) as error:  # its digest is right: it was made like that
        raise CheckpointError(f"{folder / MANIFEST} or a rank's file lacks what a run saves: {error!r}") from error


def _load_as_saved(folder: Path, engine: PolicyEngine) -> None:
    """What DeepSpeed itself reads; but settings of the optimizer are those of this run, not those of the file."""
    optimizer = engine.ds.optimizer
    kept = ("params", "step")  # a count of updates, where an optimizer has it there
    settings = [{key: value for key, value in group.items() if key not in kept} for group in optimizer.param_groups]
    engine.ds.checkpoint_engine = RestrictedCheckpointEngine()
    path, _ = engine.ds.load_checkpoint(str(folder), tag="shards")
    if path is None:
        raise CheckpointError(f"DeepSpeed found nothing to load in {folder}/shards")
    for group, given in zip(optimizer.param_groups, settings, strict=True):
        group.update(given)
    if hasattr(optimizer, "clip_grad"):
        optimizer.clip_grad = engine.optim.clip


def match_counts(optimizer: torch.optim.Optimizer) -> None:
    """DeepSpeed's Adam counts its updates in a number, torch's fused one in a tensor beside the weight. A checkpoint
    may be the other's, where the optimizer has moved to the host, or a compiler has come or gone; and one of another
    layout is read on the host."""
    compiled = isinstance(optimizer, DeepSpeedCPUAdam)
    for weight, state in optimizer.state.items():
        step = state.get("step")
        if step is None:
            continue
        if compiled:
            state["step"] = int(step)
        elif isinstance(step, Tensor):
            state["step"] = step.to(weight.device)
        else:
            state["step"] = torch.tensor(float(step), device=weight.device)


def _of_rank(folder: Path, rank: int) -> dict[str, Any]:
    return read_mapping(folder / f"rank_{rank}.json")


def take_up(folder: Path, engine: PolicyEngine) -> None:
    """Puts weights and optimizer of a checkpoint, of any number of ranks and ZeRO stage, into a fresh engine.

    Extra memory: one weight. Raises CheckpointError if a file cannot be read, or is of another model.
    """
    parameters = dict(engine.module.named_parameters())
    shapes = {name: tuple(getattr(p, "ds_shape", p.shape)) for name, p in parameters.items()}
    learned = stored_learning(folder, {name: shapes[name] for name, p in parameters.items() if p.requires_grad})
    stored = stored_weights(folder, next(iter(parameters.values())).dtype)
    fixed = {name: value for name, value in [*parameters.items(), *_buffers(engine)] if name not in learned}
    for name, value in fixed.items():
        given, shape = stored.get(name.removeprefix(POLICY)), shapes.get(name, tuple(value.shape))
        if given is None or given.shape != shape:
            raise CheckpointError(
                f"{folder} has no weight {name} of the shape {list(shape)}: it is of another model; resume with the "
                "model.path of its run"
            )
        _set(value, given, engine)
    for flat, places, state in _flats(engine):
        _fill(flat, places, {name: learned[name].weight for name in places})
        state.update(_moved(flat, places, learned))
    for name, one in learned.items():
        _set(parameters[name], one.weight, engine)
    if engine.zero.stage == 3:
        optimizer = engine.ds.optimizer
        pairs = zip(optimizer.fp16_partitioned_groups_flat, optimizer.fp32_partitioned_groups_flat, strict=True)
        for lower, flat in pairs:
            lower.data.copy_(flat.data)
        if whole := optimizer.persistent_parameters:  # small ones, of which a rank may hold what it has just replaced
            whole[0].partition(whole)


def _buffers(engine: PolicyEngine) -> Iterator[tuple[str, Tensor]]:
    """Those that are saved."""
    saved = engine.module.state_dict(keep_vars=True)
    return ((name, buffer) for name, buffer in engine.module.named_buffers() if name in saved)


def _set(value: Tensor, given: Stored, engine: PolicyEngine) -> None:
    """Of a parameter or a buffer: the whole, or what this rank holds of it under stage 3."""
    piece = getattr(value, "ds_tensor", None)
    if piece is None:
        value.data.copy_(given.whole(value.dtype))
    else:
        place = _Place(engine.world.rank * piece.numel(), 0, _size(given.shape, piece.numel(), engine.world.rank))
        _fill(piece.data, {"": place}, {"": given})


@dataclass(frozen=True, slots=True)
class _Place:
    """Where values of a flat weight, from `start` on, lie in a tensor of this rank: [at, at + size)."""

    start: int
    at: int
    size: int


def _size(shape: Sequence[int], piece: int, rank: int) -> int:
    """How many values of a weight `rank` holds, of which every rank has room for `piece`: the rest is padding."""
    return max(0, min(piece, math.prod(shape) - rank * piece))


def _flats(engine: PolicyEngine) -> Iterator[tuple[Tensor, dict[str, _Place], dict[str, Any]]]:
    """(tensor in fp32 that this rank updates, what of which weights lies in it, the optimizer's state for it)."""
    names = {p: name for name, p in engine.module.named_parameters()}
    optimizer, stage = engine.ds.optimizer, engine.zero.stage
    if stage == 0:  # a tensor is a weight, or its copy in fp32
        own = engine.ds.basic_optimizer
        tensors = [tensor for group in own.param_groups for tensor in group["params"]]
        learning = [name for p, name in names.items() if p.requires_grad]
        for name, tensor in zip(learning, tensors, strict=True):
            yield tensor, {name: _Place(0, 0, tensor.numel())}, own.state[tensor]
    elif stage < 3:
        for flat, group in zip(optimizer.single_partition_of_fp32_groups, optimizer.bit16_groups, strict=True):
            found = [(names[p], p._hp_mapping) for p in group if p._hp_mapping is not None]
            places = {
                name: _Place(m.lp_fragment_address.start, m.hp_fragment_address.start, m.hp_fragment_address.numel)
                for name, m in found
            }
            yield flat, places, optimizer.state[flat]
    else:
        for flat, group in zip(optimizer.fp32_partitioned_groups_flat, optimizer.fp16_groups, strict=True):
            places, at, rank = {}, 0, engine.world.rank
            for p in group:
                piece = p.ds_tensor.numel()
                places[names[p]] = _Place(rank * piece, at, _size(p.ds_shape, piece, rank))
                at += piece
            yield flat, places, optimizer.state[flat]


def _fill(flat: Tensor, places: Mapping[str, _Place], given: Mapping[str, Stored]) -> None:
    values = flat.data.view(-1)
    for name, place in places.items():
        if place.size:
            values[place.at : place.at + place.size].copy_(given[name].part(place.start, place.size))


def _moved(flat: Tensor, places: Mapping[str, _Place], learned: Mapping[str, Learned]) -> dict[str, Any]:
    """The optimizer's state for a tensor; {} before the first update, or of a rank that has nothing but padding."""
    if not places:
        return {}
    some = learned[next(iter(places))]
    state: dict[str, Any] = {k: v.clone() if isinstance(v, Tensor) else v for k, v in some.counts.items()}
    for key in some.moments:
        state[key] = torch.zeros_like(flat.data)
        _fill(state[key], places, {name: learned[name].moments[key] for name in places})
    return state
