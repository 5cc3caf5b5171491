"""Checkpoints that are complete or absent: written beside, manifest last, then renamed.

A checkpoint holds everything a run needs to go on: DeepSpeed's shards (weights, optimizer), the sampler, the
random state of every rank, and the step. Files are read back with PyTorch's restricted unpickler and only if
size and digest match the manifest. The digest finds damage; it does not prove who wrote the files.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import random
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
from deepspeed.runtime.checkpoint_engine.torch_checkpoint_engine import TorchCheckpointEngine
from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
from deepspeed.runtime.zero.config import ZeroStageEnum
from deepspeed.utils.tensor_fragment import fragment_address
from pydantic import Field

from sapo_vl.engine import PolicyEngine
from sapo_vl.strict import Strict

log = logging.getLogger(__name__)
MANIFEST = "manifest.json"
# The classes that DeepSpeed puts into its optimizer shards beside tensors and plain values.
SHARD_CLASSES = [LossScaler, DynamicLossScaler, ZeroStageEnum, fragment_address]


class CheckpointConfig(Strict):
    """How often the state of the run is saved, and how many saves stay."""

    every: int = Field(default=0, ge=0)  # steps between checkpoints; 0 = none
    keep: int = Field(default=2, ge=1)  # the newest that stay on disk


class CheckpointError(RuntimeError):
    """A checkpoint cannot be used. The message names the folder and the reason."""


class RestrictedCheckpointEngine(TorchCheckpointEngine):
    """DeepSpeed's file access, but loading runs no code from the file: tensors, plain values and named classes only."""

    def load(self, path: str, map_location: Any = None) -> Any:
        with torch.serialization.safe_globals(SHARD_CLASSES):
            return torch.load(path, map_location=map_location, weights_only=True)


def step_dir(root: Path, step: int) -> Path:
    return root / f"step_{step:08d}"


def save_checkpoint(root: Path, step: int, engine: PolicyEngine, state: dict[str, Any], keep: int) -> Path:
    """Saves on all ranks together. `state` is JSON-like and the same on all ranks, but for this rank's random state."""
    world = engine.world
    final, beside = step_dir(root, step), root / f".writing_step_{step:08d}"
    if world.is_main:
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir(parents=True)
    world.barrier()
    engine.ds.checkpoint_engine = RestrictedCheckpointEngine()
    engine.ds.save_checkpoint(str(beside), tag="shards", save_latest=False)
    _write(beside / f"rank_{world.rank}.json", {"random": random_state(), "per_rank": state.pop("per_rank", {})})
    # Each rank digests its share of the files, so that large checkpoints are hashed in parallel.
    world.barrier()
    files = sorted(p for p in beside.rglob("*") if p.is_file())
    digests = {str(p.relative_to(beside)): _digest(p) for p in files[world.rank :: world.size]}
    manifest = {
        "step": step,
        "world_size": world.size,
        "zero_stage": engine.zero.stage,
        "updates": engine.updates,
        "dropped_in_a_row": engine.dropped_in_a_row,
        "state": state,
        "files": {k: v for part in world.gather(digests) for k, v in part.items()},
    }
    if world.is_main:
        _write(beside / MANIFEST, manifest)
        if final.exists():
            shutil.rmtree(final)
        os.rename(beside, final)
        for old in complete_checkpoints(root)[keep:]:
            shutil.rmtree(old)
    world.barrier()
    return final


def complete_checkpoints(root: Path) -> list[Path]:
    """Checkpoint folders with a manifest, newest first. A folder under its final name is complete by construction."""
    return sorted((p.parent for p in root.glob(f"step_*/{MANIFEST}")), reverse=True)


def newest_checkpoint(root: Path) -> Path | None:
    """The newest checkpoint whose files match its manifest; damaged ones are named in a warning and passed over."""
    for folder in complete_checkpoints(root):
        damage = find_damage(folder)
        if damage is None:
            return folder
        log.warning("checkpoint %s is damaged and passed over: %s", folder, damage)
    return None


def checkpoint_for(resume: str, root: Path) -> Path | None:
    """The checkpoint that the setting `resume` ("no", "auto" or a folder) means, among those in `root`; None for none.

    Raises CheckpointError if a folder is named that is no whole checkpoint.
    """
    if resume == "no":
        return None
    if resume == "auto":
        return newest_checkpoint(root)
    damage = find_damage(Path(resume))
    if damage is not None:
        raise CheckpointError(f"resume={resume} is no whole checkpoint: {damage}; name another, or use resume=auto")
    return Path(resume)


def find_damage(folder: Path) -> str | None:
    """What is wrong with the files of a checkpoint, or None."""
    try:
        files = json.loads((folder / MANIFEST).read_text())["files"]
    except (OSError, ValueError, KeyError, TypeError) as e:
        return f"{MANIFEST}: {e}"
    for name, expected in files.items():
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if _digest(path) != expected:
            return f"{name} has another digest than when it was written"
    return None


def load_checkpoint(folder: Path, engine: PolicyEngine) -> dict[str, Any]:
    """Restores engine and random state; returns the saved `state` with "step" and this rank's "per_rank".

    Raises CheckpointError if the checkpoint was saved with another number of ranks or another ZeRO stage.
    """
    manifest = json.loads((folder / MANIFEST).read_text())
    world = engine.world
    for key, here in (("world_size", world.size), ("zero_stage", engine.zero.stage)):
        if manifest[key] != here:
            raise CheckpointError(
                f"{folder} was saved with {key}={manifest[key]}, this run has {here}; resume with the same, or start "
                "from the weights in final/"
            )
    engine.ds.checkpoint_engine = RestrictedCheckpointEngine()
    path, _ = engine.ds.load_checkpoint(str(folder), tag="shards")
    if path is None:
        raise CheckpointError(f"DeepSpeed found nothing to load in {folder}/shards")
    engine.updates, engine.dropped_in_a_row = manifest["updates"], manifest["dropped_in_a_row"]
    mine = json.loads((folder / f"rank_{world.rank}.json").read_text())
    set_random_state(mine["random"])
    return {**manifest["state"], "step": manifest["step"], "per_rank": mine["per_rank"]}


def random_state() -> dict[str, Any]:
    """The state of this process's generators, JSON-like."""
    version, internal, gauss = random.getstate()
    name, keys, pos, has_gauss, cached = np.random.get_state(legacy=True)  # type: ignore[misc]
    state: dict[str, Any] = {
        "python": [version, list(internal), gauss],
        "numpy": [name, np.asarray(keys).tolist(), pos, has_gauss, cached],
        "torch": torch.get_rng_state().tolist(),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state().tolist()
    return state


def set_random_state(state: dict[str, Any]) -> None:
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    name, keys, pos, has_gauss, cached = state["numpy"]
    np.random.set_state((name, np.asarray(keys, np.uint32), pos, has_gauss, cached))
    torch.set_rng_state(torch.tensor(state["torch"], dtype=torch.uint8))
    if "cuda" in state:
        torch.cuda.set_rng_state(torch.tensor(state["cuda"], dtype=torch.uint8))


def _digest(path: Path) -> str:
    with path.open("rb") as f:
        return hashlib.file_digest(f, "blake2b").hexdigest()[:32]


def _write(path: Path, content: Any) -> None:
    with path.open("w") as f:
        json.dump(content, f)
        f.flush()
        os.fsync(f.fileno())
