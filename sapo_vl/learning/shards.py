"""The weights of a checkpoint, out of DeepSpeed's files and without its engine: any ZeRO stage, any number of ranks.

Up to stage 2 the main rank's file has them whole. Under stage 3 every rank has a piece of each: of what learns in fp32,
in the optimizer's file, one after the other and without names; of what is frozen in its model file, by name. Files in
torch's archive format are mapped, not read: what a weight takes is read when it is asked for.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sapo_vl.learning.checkpoint import CheckpointError, RestrictedCheckpointEngine, read_manifest

WHOLE = "shards/mp_rank_00_model_states.pt"
PIECES = re.compile(r"shards/(?:bf16_)?zero_pp_rank_(\d+)_mp_rank_00_(model|optim)_states\.pt")
POLICY = "hf."  # before a name of the model, in that of the module which DeepSpeed holds


@dataclass(frozen=True, slots=True)
class Stored:
    """One weight as it lies in the files."""

    shape: tuple[int, ...]
    pieces: tuple[Tensor, ...]  # laid end to end they are the weight, flat, and perhaps padding

    def whole(self, dtype: torch.dtype) -> Tensor:
        """Of one piece in `dtype` a view of the file, else a copy."""
        flat = self.pieces[0].reshape(-1) if len(self.pieces) == 1 else torch.cat([p.reshape(-1) for p in self.pieces])
        return flat[: math.prod(self.shape)].view(self.shape).to(dtype)


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
        else:
            found = {name: Stored(tuple(value.shape), (value,)) for name, value in module.items()}
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise CheckpointError(
            f"the files in {folder}/shards are not laid out as this version of DeepSpeed writes them ({error!r}); "
            "export with the versions that wrote them (summary.json of a run has them)"
        ) from error
    if others := {value.dtype for value in module.values()} - {dtype}:
        raise CheckpointError(
            f"{folder} is of a model in {' and '.join(sorted(map(str, others)))}, the config of its run says {dtype} "
            "(model.dtype): they are not of one run"
        )
    return {name.removeprefix(POLICY): stored for name, stored in found.items() if name.startswith(POLICY)}


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
