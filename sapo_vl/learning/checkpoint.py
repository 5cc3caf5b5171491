"""Checkpoints that are complete or absent: written beside, manifest last, then renamed.

A checkpoint holds everything a run needs to go on: DeepSpeed's shards (weights, optimizer), the sampler, the
random state of every rank, and the step. Files are read back with PyTorch's restricted unpickler and only if
their digests match the manifest, which has a digest of its own. Digests find damage; they do not prove who wrote
the files.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import re
import shutil
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from deepspeed.runtime.checkpoint_engine.torch_checkpoint_engine import TorchCheckpointEngine
from deepspeed.runtime.fp16.loss_scaler import DynamicLossScaler, LossScaler
from deepspeed.runtime.zero.config import ZeroStageEnum
from deepspeed.utils.tensor_fragment import fragment_address
from pydantic import Field

from sapo_vl.distributed import World
from sapo_vl.learning.engine import PolicyEngine
from sapo_vl.learning.random_state import random_state
from sapo_vl.record.files import delete, replace, set_aside
from sapo_vl.strict import Strict, parse_json

log = logging.getLogger(__name__)
MANIFEST = "manifest.json"
CHECKPOINTS = {"train": "checkpoints", "sft": "cold_start_checkpoints"}  # stage -> folder inside the run's
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
    max_failures: int = Field(default=3, ge=1)
    """Saves in a row that may fail, of a full disk for one, before the run ends."""
    grace_s: float = Field(default=300.0, gt=0)
    """Seconds that a run which is told to stop (SIGTERM and others) has for the step under way and its save."""
    restarts: int = Field(default=3, ge=0)
    """How often a stage is started again, from its newest checkpoint, after a rank of it died; 0 = never.

    One that dies twice without a checkpoint in between is not: it would do so again. What dies more often than this
    has a fault that somebody should see, such as memory that grows."""
    stopped_s: float = Field(default=60.0, gt=0)
    """Seconds after which a rank that was stopped (SIGSTOP) is killed, while the others wait for it."""
    silent_s: float = Field(default=60.0, ge=3)
    """Seconds after which a run on several machines ends when one of them cannot be reached."""


class CheckpointError(RuntimeError):
    """A checkpoint cannot be used. The message names the folder and the reason."""


class _DiskFailed(Exception):
    """All ranks know. An OSError that one alone has met ends the run: the others wait where it should be."""


class SaveFailed(RuntimeError):
    """A checkpoint could not be written. The message has the step, the reason, and the room there is."""


class RestrictedCheckpointEngine(TorchCheckpointEngine):
    """DeepSpeed's file access, but loading runs no code from the file: tensors, plain values and named classes only.

    A file that cannot be written is noted in `fault` ("": none), so that DeepSpeed goes on to where all ranks meet.
    """

    fault = ""

    def save(self, state_dict: Any, path: str) -> None:
        """In torch's archive format, which can be mapped; DeepSpeed's own choice is the older one."""
        try:
            with open(path, "wb") as file:  # of ours: torch's own would not say why it cannot be written
                torch.save(state_dict, file)
        except (OSError, RuntimeError) as error:
            reason = _of_the_disk(error)
            if reason is None:
                raise
            self.fault = self.fault or f"{path}: {reason}"

    def load(self, path: str, map_location: Any = None, *, mapped: bool = False) -> Any:
        """`mapped`: tensors are views of the file where its format allows that.

        Raises CheckpointError naming the file if it cannot be read, or holds anything else.
        """
        try:
            mapped = mapped and zipfile.is_zipfile(path)
            with torch.serialization.safe_globals([*SHARD_CLASSES, *MEMBERS]):
                return torch.load(path, map_location=map_location, weights_only=True, mmap=mapped)
        except Exception as error:  # which ones torch raises for a file that it cannot read is written down nowhere
            raise CheckpointError(
                f"{path} cannot be read as tensors and plain values ({type(error).__name__}: {error}); resume from "
                "another checkpoint (resume=FOLDER), and do not trust one that you have not written yourself"
            ) from error


def _of_the_disk(error: BaseException | None) -> OSError | None:
    """What the disk said: torch's writer goes on to its own end, where it raises something else, without a class."""
    while error is not None and not isinstance(error, OSError):
        error = error.__cause__ or error.__context__
    return error


def step_dir(root: Path, step: int) -> Path:
    return root / f"step_{step:08d}"


def save_checkpoint(root: Path, step: int, engine: PolicyEngine, state: dict[str, Any], keep: int) -> Path:
    """Saves on all ranks together; of the older checkpoints in `root`, the newest keep - 1 stay.

    `state` is JSON-like and the same on all ranks, but for its entry "per_rank". One of the same step is replaced.
    Raises SaveFailed, on all ranks, if the disk of any of them fails; what was written is deleted then.
    """
    world = engine.world
    final, beside = step_dir(root, step), root / f".writing_step_{step:08d}"
    try:
        _agreed(world, _attempt(lambda: _make_anew(beside)) if world.is_main else "")
        files = RestrictedCheckpointEngine()
        engine.ds.checkpoint_engine = files
        # The main rank would copy a script here that unpickles what it is given, and fail alone where it cannot.
        engine.ds._copy_recovery_script = lambda save_path: None
        engine.ds.save_checkpoint(str(beside), tag="shards", save_latest=False)
        mine = json.dumps({"random": random_state(), "per_rank": state.get("per_rank", {})})
        _agreed(world, files.fault or _attempt(lambda: _write(beside / f"rank_{world.rank}.json", mine)))
        manifest = {
            "step": step,
            "world_size": world.size,
            "zero_stage": engine.zero.stage,
            "learning": learning_digest(engine),
            "updates": engine.updates,
            "dropped_in_a_row": engine.dropped_in_a_row,
            "state": {name: value for name, value in state.items() if name != "per_rank"},
            "files": _digests(beside, world),
        }
        _agreed(world, _attempt(lambda: _finish(beside, final, manifest)) if world.is_main else "")
    except _DiskFailed as error:
        if world.is_main:
            shutil.rmtree(beside, ignore_errors=True)
        world.barrier()
        raise SaveFailed(f"the checkpoint of step {step} was not saved: {error}{_room(root)}") from None
    if world.is_main and (fault := _attempt(lambda: prune(root, step, keep))):
        log.warning("an older checkpoint could not be deleted: %s", fault)
    world.barrier()
    return final


def _make_anew(beside: Path) -> None:
    shutil.rmtree(beside, ignore_errors=True)
    (beside / "shards").mkdir(parents=True)


def _finish(beside: Path, final: Path, manifest: dict[str, Any]) -> None:
    _write(beside / MANIFEST, seal(manifest))
    publish(beside, final)


def _attempt(work: Callable[[], None]) -> str:
    """Why the disk did not let `work` be done; "" if it did."""
    try:
        work()
    except OSError as error:
        return str(error)
    return ""


def _agreed(world: World, fault: str) -> None:
    """Raises _DiskFailed on all ranks if there is a fault on any of them: the first."""
    if found := next(filter(None, world.gather(fault)), ""):
        raise _DiskFailed(found)


def _digests(beside: Path, world: World) -> dict[str, str]:
    """Name -> digest of all files. Each rank reads a share, so that large checkpoints are hashed in parallel."""
    files = sorted(p for p in beside.rglob("*") if p.is_file())
    share, mine = files[world.rank :: world.size], dict[str, str]()
    _agreed(world, _attempt(lambda: mine.update({str(p.relative_to(beside)): _digest(p) for p in share})))
    return {name: digest for part in world.gather(mine) for name, digest in part.items()}


def _room(root: Path) -> str:
    with contextlib.suppress(OSError):  # the disk is away
        return f" ({shutil.disk_usage(root).free / 2**30:.2f} GiB are free in {root})"
    return ""


def publish(beside: Path, final: Path) -> None:
    """Gives a written checkpoint its final name. What has that name is deleted only when the new one is in place."""
    replace(beside, final)


def prune(root: Path, step: int, keep: int) -> None:
    """Deletes all but the newest keep - 1 of the checkpoints before `step`."""
    earlier = [f for s, f in _by_step(root).items() if s < step and (f / MANIFEST).exists()]
    for folder in earlier[keep - 1 :]:
        delete(folder)


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
        text = path.read_text(encoding="utf-8")
        manifest = parse_json(text)["content"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{path} is damaged or of another version: {' '.join(repr(error).split())[:300]}"
        ) from error
    if text != seal(manifest):
        raise CheckpointError(f"{path} has another digest than when it was written")
    # Whoever can write a manifest can seal it: its files lie in its folder whatever it says.
    files = manifest.get("files") if isinstance(manifest, dict) else None
    if not isinstance(files, dict) or not all(
        isinstance(digest, str) and not Path(name).is_absolute() and ".." not in Path(name).parts
        for name, digest in files.items()
    ):
        raise CheckpointError(f"{path} does not name the files of its folder")
    return manifest


def learning_digest(engine: PolicyEngine) -> str:
    """Of names and shapes of the parameters that learn: the optimizer's shards belong to them."""
    # Under ZeRO-3 a parameter has its shape in an attribute of DeepSpeed's, and no elements here.
    shapes = [
        (name, list(getattr(p, "ds_shape", p.shape))) for name, p in engine.module.named_parameters() if p.requires_grad
    ]
    return hashlib.blake2b(json.dumps(shapes).encode(), digest_size=16).hexdigest()


def _digest(path: Path) -> str:
    with path.open("rb") as f:
        return hashlib.file_digest(f, "blake2b").hexdigest()[:32]


def _write(path: Path, text: str) -> None:
    with path.open("w") as f:
        f.write(text)
        f.flush()
        os.fsync(f.fileno())
