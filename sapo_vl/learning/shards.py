"""The weights of a checkpoint, out of DeepSpeed's files and without its engine: any ZeRO stage, any number of ranks.

Up to stage 2 the main rank's file has them whole. Under stage 3 every rank has a piece of each: of what learns in fp32,
in the optimizer's file, one after the other and without names; of what is frozen in its model file, by name. The same
for what the optimizer keeps of each weight, but that stages 1 and 2 lay the weights of a group end to end and cut all
of it into as many shares as there are ranks. Files in torch's archive format are mapped, not read: what a weight takes
is read when it is asked for.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sapo_vl.learning.checkpoint import CheckpointError, RestrictedCheckpointEngine, read_manifest

WHOLE = "shards/mp_rank_00_model_states.pt"
PIECES = re.compile(r"shards/(?:bf16_)?zero_pp_rank_(\d+)_mp_rank_00_(model|optim)_states\.pt")
POLICY = "hf."  # before a name of the model, in that of the module which DeepSpeed holds
OTHER_LAYOUT = (KeyError, IndexError, TypeError, AttributeError, ValueError)


@dataclass(frozen=True, slots=True)
class Stored:
    """One weight as it lies in the files."""

    shape: tuple[int, ...]
    pieces: tuple[Tensor, ...]  # laid end to end they are the weight, flat, and perhaps padding

    def whole(self, dtype: torch.dtype) -> Tensor:
        """Of one piece in `dtype` a view of the file, else a copy."""
        flat = self.pieces[0].reshape(-1) if len(self.pieces) == 1 else torch.cat([p.reshape(-1) for p in self.pieces])
        return flat[: math.prod(self.shape)].view(self.shape).to(dtype)

    def part(self, start: int, size: int) -> Tensor:
        """[size] the values of the flat weight from `start` on."""
        parts, at = [], -start
        for piece in self.pieces:
            first, last = max(-at, 0), min(size - at, piece.numel())
            if first < last:
                parts.append(piece.reshape(-1)[first:last])
            at += piece.numel()
        return parts[0] if len(parts) == 1 else torch.cat(parts)


@dataclass(frozen=True, slots=True, kw_only=True)
class Learned:
    """What the optimizer keeps of one weight."""

    weight: Stored  # fp32
    moments: Mapping[str, Stored]  # such as exp_avg; none before the first update
    counts: Mapping[str, Any]  # the rest, such as the number of updates


def stored_weights(folder: Path, dtype: torch.dtype) -> dict[str, Stored]:
    """Every weight of a whole checkpoint (`find_damage`), by its name in the model; a tied one perhaps under one name.

    Raises CheckpointError if a file cannot be read, its content is not what DeepSpeed writes, or it is not of a model
    that was trained in `dtype`.
    """
    manifest = read_manifest(folder)
    try:
        ranks = manifest["world_size"] if manifest["zero_stage"] == 3 else 0
        files = _files(folder, manifest["files"])
        models = [_load(files["model", rank]) for rank in range(ranks)] or [_load(folder / WHOLE)]
        # Under stage 3 what is in there is empty, but for its type.
        module: dict[str, Tensor] = {n: v for n, v in models[0]["module"].items() if n.startswith(POLICY)}
        if ranks:
            found = _of_pieces(models, [_load(files["optim", rank]) for rank in range(ranks)])
            # Buffers are whole.
            found |= {n: Stored(tuple(v.shape), (v,)) for n, v in module.items() if v.numel() and n not in found}
        else:
            found = {name: Stored(tuple(value.shape), (value,)) for name, value in module.items()}
    except OTHER_LAYOUT as error:
        raise _other_layout(folder, error) from error
    if others := {value.dtype for value in module.values()} - {dtype}:
        raise CheckpointError(
            f"{folder} is of a model in {' and '.join(sorted(map(str, others)))}, the config of its run says {dtype} "
            "(model.dtype): they are not of one run"
        )
    return {name.removeprefix(POLICY): stored for name, stored in found.items() if name.startswith(POLICY)}


def stored_learning(folder: Path, shapes: Mapping[str, Sequence[int]]) -> dict[str, Learned]:
    """What the optimizer (AdamW) of a whole checkpoint (`find_damage`) keeps of every weight that learns.

    `shapes`: of these weights, by name in the module which DeepSpeed holds and in its order. Raises CheckpointError if
    a file cannot be read, its content is not what DeepSpeed writes, or it is of other weights.
    """
    manifest = read_manifest(folder)
    stage, ranks = manifest["zero_stage"], range(manifest["world_size"])
    try:
        files = _files(folder, manifest["files"])
        found = {}
        if stage == 0:
            found = _kept_whole(_load(folder / WHOLE), shapes)
        else:
            optimizers = [_load(files["optim", rank])["optimizer_state_dict"] for rank in ranks]
            cuts = _cuts_by_rank(optimizers) if stage < 3 else _cuts_by_weight(_load(files["model", 0]), len(ranks))
            flat = "single_partition_of_fp32_groups" if stage < 3 else "fp32_flat_groups"
            state = "base_optimizer_state" if stage < 3 else "optimizer_state_dict"
            for group, cut in enumerate(cuts):
                weights = [optimizer[flat][group].detach() for optimizer in optimizers]
                states = [optimizer[state]["state"].get(group, {}) for optimizer in optimizers]
                found |= {name: _kept(tuple(shapes[name]), places, weights, states) for name, places in cut.items()}
        if missing := shapes.keys() - found.keys():
            raise ValueError(f"{min(missing)} is not there")
        for name, learned in found.items():
            for stored in (learned.weight, *learned.moments.values()):
                if sum(piece.numel() for piece in stored.pieces) < math.prod(stored.shape):
                    raise ValueError(f"{name} has not as many values as its shape {list(stored.shape)} says")
    except OTHER_LAYOUT as error:
        raise _other_layout(folder, error) from error
    return found


def _other_layout(folder: Path, error: Exception) -> CheckpointError:
    return CheckpointError(
        f"the files in {folder}/shards are not laid out as this version of DeepSpeed writes them ({error!r}); "
        "use the versions that wrote them (summary.json of a run has them)"
    )


def _files(folder: Path, names: Iterable[str]) -> dict[tuple[str, int], Path]:
    """("model" or "optim", rank) -> file, of those that are there for each rank."""
    return {(m[2], int(m[1])): folder / name for name in names if (m := PIECES.fullmatch(name))}


def _load(path: Path) -> Any:
    return RestrictedCheckpointEngine().load(str(path), "cpu", mapped=True)


def _of_pieces(models: Sequence[Any], optimizers: Sequence[Any]) -> dict[str, Stored]:
    """From the content of both files of every rank."""
    found = {
        name: Stored(tuple(shape), tuple(model["frozen_param_fragments"][name] for model in models))
        for name, shape in (models[0]["frozen_param_shapes"] or {}).items()
    }
    flat = [optimizer["optimizer_state_dict"]["fp32_flat_groups"] for optimizer in optimizers]
    for shapes, *mine in zip(models[0]["param_shapes"], *flat, strict=True):  # a group of parameters each
        found |= _cut(shapes, mine)
    return found


def _cut(shapes: Mapping[str, Sequence[int]], flat: Sequence[Tensor]) -> dict[str, Stored]:
    """The weights of one group, from what each rank has of all of them: of each ceil(numel / ranks) values."""
    found, at = {}, 0
    for name, shape in shapes.items():
        size = -(-math.prod(shape) // len(flat))
        found[name] = Stored(tuple(shape), tuple(values[at : at + size] for values in flat))
        at += size
    if {len(values) for values in flat} != {at}:
        raise ValueError(f"{[len(values) for values in flat]} values on each rank where its weights have {at}")
    return found


@dataclass(frozen=True, slots=True)
class _Place:
    """A piece of a weight: [start, start + size) of what `rank` has of the weight's group."""

    rank: int
    start: int
    size: int


def _cuts_by_rank(optimizers: Sequence[Any]) -> list[dict[str, list[_Place]]]:
    """Stages 1 and 2, group by group: every rank has written down where in its share which weight lies."""
    groups: list[dict[str, list[_Place]]] = [{} for _ in optimizers[0]["param_slice_mappings"]]
    for rank, optimizer in enumerate(optimizers):
        for group, there in zip(groups, optimizer["param_slice_mappings"], strict=True):
            for name, address in there.items():
                group.setdefault(name, []).append(_Place(rank, address.start, address.numel))
    return groups


def _cuts_by_weight(model: Any, ranks: int) -> list[dict[str, list[_Place]]]:
    """Stage 3, group by group."""
    groups = []
    for shapes in model["param_shapes"]:
        group, at = {}, 0
        for name, shape in shapes.items():
            size = -(-math.prod(shape) // ranks)
            group[name] = [_Place(rank, at, size) for rank in range(ranks)]
            at += size
        groups.append(group)
    return groups


def _kept(
    shape: tuple[int, ...], places: Sequence[_Place], weights: Sequence[Tensor], states: Sequence[Mapping[str, Any]]
) -> Learned:
    """Of one weight; `weights` and `states` are those of its group on every rank."""

    def stored(flat: Callable[[int], Tensor]) -> Stored:
        return Stored(shape, tuple(flat(place.rank)[place.start : place.start + place.size] for place in places))

    moments = _moments(states[0])
    return Learned(
        weight=stored(lambda rank: weights[rank]),
        moments={key: stored(lambda rank, key=key: states[rank][key]) for key in moments},
        counts={key: value for key, value in states[0].items() if key not in moments},
    )


def _kept_whole(model: Any, shapes: Mapping[str, Sequence[int]]) -> dict[str, Learned]:
    """Stage 0: AdamW's own file, weight by weight; around it, if the model is not in fp32, the copies that are."""
    optimizer, copies = model["optimizer"], [model["module"][name] for name in shapes]
    if "fp32_groups" in optimizer:
        optimizer, copies = optimizer["optimizer_state_dict"], [c for g in optimizer["fp32_groups"] for c in g]
    (group,) = optimizer["param_groups"]
    found = {}
    for (name, shape), number, weight in zip(shapes.items(), group["params"], copies, strict=True):
        state = optimizer["state"].get(number, {})
        alone = [{key: state[key].reshape(-1) if key in _moments(state) else value for key, value in state.items()}]
        found[name] = _kept(tuple(shape), [_Place(0, 0, weight.numel())], [weight.detach().reshape(-1)], alone)
    return found


def _moments(state: Mapping[str, Any]) -> list[str]:
    """Keys of what the optimizer keeps for each value."""
    return [key for key, value in state.items() if isinstance(value, Tensor) and value.dim() > 0]
