"""Runs on every rank for test_checkpoint.py: save, load, go on, and what must be refused, under every ZeRO stage.

    checkpoint_worker.py FOLDER SEED

As distributed_worker.py, it records and the test judges.
"""

from __future__ import annotations

import copy
import errno
import os
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from distributed_worker import LR_ONE, SPLITS, TEMPERATURE, Updates, Variant, local_hash, open_variant, run
from helpers_models import make_case, with_old_logprobs

from sapo_vl.distributed import World
from sapo_vl.learning.checkpoint import (
    MANIFEST,
    CheckpointError,
    SaveFailed,
    _digest,
    find_damage,
    newest_checkpoint,
    read_manifest,
    save_checkpoint,
    seal,
    step_dir,
)
from sapo_vl.learning.engine import PolicyEngine
from sapo_vl.learning.resuming import load_checkpoint
from sapo_vl.session import Session

CHECKPOINTED = ("dense-0", "dense-1", "dense-2", "dense-3", "moe-3", "moe-3-lora")
FAULTY_DISK = ("dense-1", "moe-3")
ERRORS = (errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EROFS)
MARKER = "executed"


def check_checkpoints(variant: Variant, name: str, folder: Path, seed: int, world: World) -> dict[str, Any]:
    """Three updates, each saved, and one more; then a fresh session, load, the same one more."""
    case = make_case(variant.kind, seed)
    groups = with_old_logprobs(case, noise=0.3, temperature=TEMPERATURE)
    root = folder / f"checkpoints-{name}"
    split = SPLITS[world.size]["uneven, text only on rank 1" if world.size > 1 else "each"]
    out: dict[str, Any] = {}

    def one_more(session: Session) -> dict[str, Any]:
        updates = Updates(session, groups)
        session.engine.updates = LR_ONE
        result = updates.update(updates.batches(split))
        return {"result": result, "hash": local_hash(session.engine), "dice": torch.rand(3).tolist()}

    session = open_variant(variant, folder, world)
    fresh = local_hash(session.engine)
    for step in (1, 2, 3):
        one_more(session)
        session.engine.updates = 10 * step
        torch.rand(world.rank + step)  # each rank its own random state
        state = {"accuracy_before": {"all": 0.25}, "per_rank": {"rank": world.rank, "step": step}}
        given = copy.deepcopy(state)
        save_checkpoint(root, step, session.engine, state, keep=2)
        assert state == given, "what is saved stays the caller's"
    out["saved"] = local_hash(session.engine)
    out["uninterrupted"] = one_more(session)
    session.engine.ds.destroy()

    session = open_variant(variant, folder, world)
    assert local_hash(session.engine) == fresh
    state = load_checkpoint(root / "step_00000003", session.engine, no_deal)
    out["loaded"] = local_hash(session.engine)
    out["state"] = state
    out["updates"] = session.engine.updates
    out["resumed"] = one_more(session)

    engine = session.engine
    part = next(p for p in engine.module.parameters() if p.requires_grad)
    part.requires_grad_(False)
    out["wrong parts"] = refusal(root / "step_00000003", engine)
    part.requires_grad_(True)
    for kind in ("model", "optim"):
        out[f"malicious {kind}"] = refusal(folder / f"malicious-{name}" / kind, engine, plant=root / "step_00000003")
    out["executed"] = (folder / MARKER).exists()
    out["damage"] = damages(root / "step_00000003", folder / f"damaged-{name}", world)
    out["disk"] = disk_faults(root / "step_00000003", folder / f"disk-{name}", engine) if name in FAULTY_DISK else []
    engine.ds.destroy()
    return out


def no_deal(states: Sequence[dict[str, Any]]) -> dict[str, Any]:
    raise AssertionError("the same ranks take their own states up")


class Malicious:
    """Pickled, it asks whoever unpickles it to write a file."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.marker,)


def refusal(checkpoint: Path, engine: PolicyEngine, plant: Path | None = None) -> str:
    """Loads and returns the error with its cause. With `plant`: from a copy of that one, with code in some files."""
    world = engine.world
    if plant is not None and world.is_main:
        shutil.copytree(plant, checkpoint)
        for file in (checkpoint / "shards").glob(f"*{checkpoint.name}_states.pt"):
            torch.save({"module": Malicious(checkpoint.parents[1] / MARKER)}, file)
        manifest = read_manifest(checkpoint)  # digests do not protect from an attacker
        manifest["files"] = {f: _digest(checkpoint / f) for f in manifest["files"]}
        (checkpoint / MANIFEST).write_text(seal(manifest))
    if plant is not None:
        world.barrier()
        assert find_damage(checkpoint, world) is None
    try:
        load_checkpoint(checkpoint, engine, no_deal)
    except CheckpointError as error:
        return f"{error} <- {type(error.__cause__).__name__}"
    return "loaded"


def damages(whole: Path, root: Path, world: World) -> dict[str, Any]:
    """What this rank finds in a copy of a checkpoint as step 3, and what it would resume from, step 2 being whole.

    Without damage (""), and with each file cut off in turn.
    """
    copy = step_dir(root, 3)
    if world.is_main:
        for to in (copy, step_dir(root, 2)):
            shutil.copytree(whole, to)
    out = {}
    for name in ("", *read_manifest(whole)["files"]):
        if world.is_main and name:
            (copy / name).write_bytes((whole / name).read_bytes()[:-1])
        world.barrier()
        out[name] = (find_damage(copy, world), str(newest_checkpoint(root, world)))
        world.barrier()
        if world.is_main and name:
            shutil.copy(whole / name, copy / name)
    return out


class Disk:
    """Fails one of the operations that change a folder, the `number`th that Python asks the system for."""

    def __init__(self, root: Path) -> None:
        self._root, self._number, self._errno, self._count = str(root), -1, 0, 0
        sys.addaudithook(self._look)

    def arm(self, number: int, error: int) -> None:
        self._number, self._errno, self._count = number, error, 0

    @property
    def fired(self) -> bool:
        return 0 <= self._number < self._count

    def _look(self, event: str, args: tuple[Any, ...]) -> None:
        changes = event in ("os.rename", "os.mkdir") or (event == "open" and isinstance(args[2], int) and args[2] & 3)
        if self._number < 0 or not changes or not str(args[0]).startswith(self._root):
            return
        self._count += 1
        if self._count == self._number + 1:
            raise OSError(self._errno, os.strerror(self._errno), args[0])


def disk_faults(whole: Path, root: Path, engine: PolicyEngine) -> list[dict[str, Any]]:
    """Saves step 4 beside a copy of `whole`, again and again; each time another operation fails on one of the ranks."""
    world, disk, found = engine.world, Disk(root), []
    if world.is_main:
        shutil.copytree(whole, step_dir(root, 3))
    world.barrier()
    for turn in range(200):
        number, victim = divmod(turn, world.size)
        disk.arm(number if world.rank == victim else -1, ERRORS[turn % len(ERRORS)])
        try:
            save_checkpoint(root, 4, engine, {"per_rank": {}}, keep=2)
            fault = ""
        except SaveFailed as error:
            fault = str(error)
        fired = world.any(disk.fired)
        disk.arm(-1, 0)
        names = sorted(p.name for p in root.iterdir())
        there = [step for step in (3, 4) if step_dir(root, step).name in names]
        sound = [step for step in there if not find_damage(step_dir(root, step), world)]
        found.append({"fired": fired, "fault": fault, "names": names, "whole": sound, "errno": ERRORS[turn % 4]})
        world.barrier()
        if world.is_main:
            shutil.rmtree(step_dir(root, 4), ignore_errors=True)
        world.barrier()
        if victim == world.size - 1 and not any(last["fired"] for last in found[-world.size :]):
            return found
    raise AssertionError("there is always another operation")


if __name__ == "__main__":
    run(check_checkpoints, CHECKPOINTED)
