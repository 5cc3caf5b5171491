"""Checkpoints that are complete or absent: written beside, manifest last, then renamed.

A checkpoint holds everything a run needs to go on: DeepSpeed's shards (weights, optimizer), the sampler, the
random state of every rank, and the step. Files are read back with PyTorch's restricted unpickler and only if
their digests match the manifest, which has a digest of its own. Digests find damage; they do not prove who wrote
the files.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import random
import re
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

from sapo_vl.distributed import World
from sapo_vl.learning.engine import PolicyEngine
from sapo_vl.record.files import set_aside
from sapo_vl.strict import Strict

log = logging.getLogger(__name__)
MANIFEST = "manifest.json"
# The classes that DeepSpeed puts into its optimizer shards beside tensors and plain values.
SHARD_CLASSES = [LossScaler, DynamicLossScaler, ZeroStageEnum, fragment_address]


def _member(kind: Any, name: str) -> Any:
    """Stands in for `getattr` in shards, by which Python before 3.11.4 pickles a member of an enumeration."""
    if kind is not ZeroStageEnum:
        raise CheckpointError(f"a shard asks for the attribute {name!r} of {kind!r}; only ZeRO stages are read so")
    return ZeroStageEnum[name]


MEMBERS: list[Any] = [(_member, "builtins.getattr"), (_member, "__builtin__.getattr")]


class CheckpointConfig(Strict):
    """How often the state of the run is saved, and how many saves stay."""

    every: int = Field(default=50, ge=0)
    """Steps between checkpoints; 0 = none between. The last step is always saved, before the last evaluation.

    50 steps of a real model are an hour or a few, which is what a crash may cost."""
    keep: int = Field(default=2, ge=1)
    """The newest that stay on disk: one more than is needed, should the newest turn out damaged."""


class CheckpointError(RuntimeError):
    """A checkpoint cannot be used. The message names the folder and the reason."""


class RestrictedCheckpointEngine(TorchCheckpointEngine):
    """DeepSpeed's file access, but loading runs no code from the file: tensors, plain values and named classes only."""

    def load(self, path: str, map_location: Any = None) -> Any:
        """Raises CheckpointError naming the file if it cannot be read, or holds anything else."""
        try:
            with torch.serialization.safe_globals([*SHARD_CLASSES, *MEMBERS]):
                return torch.load(path, map_location=map_location, weights_only=True)
        except Exception as error:  # which ones torch raises for a file that it cannot read is written down nowhere
            raise CheckpointError(
                f"{path} cannot be read as tensors and plain values ({type(error).__name__}: {error}); resume from "
                "another checkpoint (resume=FOLDER), and do not trust one that you have not written yourself"
            ) from error


def step_dir(root: Path, step: int) -> Path:
    return root / f"step_{step:08d}"


def save_checkpoint(root: Path, step: int, engine: PolicyEngine, state: dict[str, Any], keep: int) -> Path:
    """Saves on all ranks together; of the older checkpoints in `root`, the newest keep - 1 stay.

    `state` is JSON-like and the same on all ranks, but for its entry "per_rank". One of the same step is replaced.
    """
    world = engine.world
    final, beside = step_dir(root, step), root / f".writing_step_{step:08d}"
    if world.is_main:
        shutil.rmtree(beside, ignore_errors=True)
        beside.mkdir(parents=True)
    world.barrier()
    engine.ds.checkpoint_engine = RestrictedCheckpointEngine()
    engine.ds.save_checkpoint(str(beside), tag="shards", save_latest=False)
    mine = {"random": random_state(), "per_rank": state.get("per_rank", {})}
    _write(beside / f"rank_{world.rank}.json", json.dumps(mine))
    # Each rank digests its share of the files, so that large checkpoints are hashed in parallel.
    world.barrier()
    files = sorted(p for p in beside.rglob("*") if p.is_file())
    digests = {str(p.relative_to(beside)): _digest(p) for p in files[world.rank :: world.size]}
    manifest = {
        "step": step,
        "world_size": world.size,
        "zero_stage": engine.zero.stage,
        "learning": learning_digest(engine),
        "updates": engine.updates,
        "dropped_in_a_row": engine.dropped_in_a_row,
        "state": {name: value for name, value in state.items() if name != "per_rank"},
        "files": {k: v for part in world.gather(digests) for k, v in part.items()},
    }
    if world.is_main:
        _write(beside / MANIFEST, seal(manifest))
        publish(beside, final)
        prune(root, step, keep)
    world.barrier()
    return final


def publish(beside: Path, final: Path) -> None:
    """Gives a written checkpoint its final name. What has that name is deleted only when the new one is in place."""
    replaced = set_aside(final) if final.exists() else None
    os.rename(beside, final)
    if replaced is not None:
        shutil.rmtree(replaced)


def prune(root: Path, step: int, keep: int) -> None:
    """Deletes all but the newest keep - 1 of the checkpoints before `step`."""
    earlier = [f for s, f in _by_step(root).items() if s < step and (f / MANIFEST).exists()]
    for folder in earlier[keep - 1 :]:
        shutil.rmtree(folder)


def set_aside_from(root: Path, step: int, world: World, but: Path | None = None) -> None:
    """Renames the checkpoints of `step` and later, but for the folder `but`, to superseded_...; on all ranks together.

    For a run that starts at `step`: they belong to another course of it, and a later resume=auto would take the
    newest of them for its own. Nothing is deleted.
    """
    world.barrier()  # another rank may still be looking for the one to start from
    if world.is_main:
        kept = None if but is None else but.resolve()
        for folder in [f for s, f in _by_step(root).items() if s >= step and f.resolve() != kept]:
            log.warning(
                "checkpoint %s is not of this run, which starts at step %d; it is kept as %s, to be deleted if nobody "
                "needs it",
                folder,
                step,
                set_aside(folder).name,
            )
    world.barrier()


def _by_step(root: Path) -> dict[int, Path]:
    """Step -> folder, newest first, of everything in `root` that has the name of a checkpoint."""
    named = {int(m[1]): p for p in root.glob("step_*") if (m := re.fullmatch(r"step_(\d{8,})", p.name))}
    return dict(sorted(named.items(), reverse=True))


def complete_checkpoints(root: Path) -> list[Path]:
    """Checkpoint folders with a manifest, newest first. A folder under its final name is complete by construction."""
    return [folder for folder in _by_step(root).values() if (folder / MANIFEST).exists()]


def newest_checkpoint(root: Path, world: World) -> Path | None:
    """The newest checkpoint whose files match its manifest; damaged ones are named in a warning and passed over.

    On all ranks together, with one answer: the main rank's list is looked through.
    """
    for folder in world.gather(complete_checkpoints(root))[0]:
        damage = find_damage(folder, world)
        if damage is None:
            return folder
        if world.is_main:
            log.warning("checkpoint %s is damaged and passed over: %s", folder, damage)
    return None


def checkpoint_for(resume: str, root: Path, world: World) -> Path | None:
    """The checkpoint that the setting `resume` ("no", "auto" or a folder) means, among those in `root`; None for none.

    On all ranks together. Raises CheckpointError if a folder is named that is no whole checkpoint.
    """
    if resume == "no":
        return None
    if resume == "auto":
        return newest_checkpoint(root, world)
    damage = find_damage(Path(resume), world)
    if damage is not None:
        raise CheckpointError(f"resume={resume} is no whole checkpoint: {damage}; name another, or use resume=auto")
    return Path(resume)


def find_damage(folder: Path, world: World) -> str | None:
    """What is wrong with the files of a checkpoint, or None. On all ranks together, each of which reads a share."""
    return next((found for found in world.gather(_damage_in_share(folder, world)) if found is not None), None)


def _damage_in_share(folder: Path, world: World) -> str | None:
    try:
        files = read_manifest(folder)["files"]
    except CheckpointError as error:
        return str(error)
    for name, expected in list(files.items())[world.rank :: world.size]:
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        try:
            if _digest(path) != expected:
                return f"{name} has another digest than when it was written"
        except OSError as error:  # of one rank's disk; raised, it would leave the others waiting
            return f"{name} cannot be read: {error}"
    return None


def seal(manifest: dict[str, Any]) -> str:
    """The text of a manifest with a digest over its content: one that was cut off or edited does not match it."""
    content = json.dumps(manifest)
    return json.dumps({"digest": hashlib.blake2b(content.encode()).hexdigest()[:32], "content": manifest})


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a checkpoint. Raises CheckpointError naming the file if it is not there or not as written."""
    path = folder / MANIFEST
    try:
        text = path.read_text()
        manifest = json.loads(text)["content"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path} is damaged or of another version: {error!r}") from error
    if text != seal(manifest):
        raise CheckpointError(f"{path} has another digest than when it was written")
    return manifest


def load_checkpoint(folder: Path, engine: PolicyEngine) -> dict[str, Any]:
    """Restores engine and random state; returns the saved `state` with "step" and this rank's "per_rank".

    Raises CheckpointError if the checkpoint was saved with another number of ranks, another ZeRO stage or other
    parameters that learn, or if a file of it cannot be read.
    """
    manifest = read_manifest(folder)
    world = engine.world
    for key, here in (("world_size", world.size), ("zero_stage", engine.zero.stage)):
        if manifest[key] != here:
            raise CheckpointError(
                f"{folder} was saved with {key}={manifest[key]}, this run has {here}; resume with the same, or start "
                "from the weights in final/"
            )
    learning = learning_digest(engine)
    if manifest.get("learning", learning) != learning:  # those from before it was written down have none
        raise CheckpointError(
            f"{folder} was saved with other parameters that learn than this run has, by name or shape: model.path, "
            "model.freeze or model.lora has changed; resume with the same, or start from the weights in final/"
        )
    engine.ds.checkpoint_engine = RestrictedCheckpointEngine()
    path, _ = engine.ds.load_checkpoint(str(folder), tag="shards")
    if path is None:
        raise CheckpointError(f"DeepSpeed found nothing to load in {folder}/shards")
    engine.updates, engine.dropped_in_a_row = manifest["updates"], manifest["dropped_in_a_row"]
    mine = json.loads((folder / f"rank_{world.rank}.json").read_text())
    set_random_state(mine["random"])
    return {**manifest["state"], "step": manifest["step"], "per_rank": mine["per_rank"]}


def learning_digest(engine: PolicyEngine) -> str:
    """Of names and shapes of the parameters that learn: the optimizer's shards belong to them."""
    # Under ZeRO-3 a parameter has its shape in an attribute of DeepSpeed's, and no elements here.
    shapes = [
        (name, list(getattr(p, "ds_shape", p.shape))) for name, p in engine.module.named_parameters() if p.requires_grad
    ]
    return hashlib.blake2b(json.dumps(shapes).encode(), digest_size=16).hexdigest()


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


def _write(path: Path, text: str) -> None:
    with path.open("w") as f:
        f.write(text)
        f.flush()
        os.fsync(f.fileno())
