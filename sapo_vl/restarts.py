"""A stage that is started again by its launcher goes on; one that somebody starts anew does as it is told.

`resume=no` and `resume=FOLDER` say where a run begins. After a restart of the same run they would throw away what it
has done since, so the run notes in its folder that it has begun.
"""

from __future__ import annotations

import os
from pathlib import Path

from sapo_vl.distributed import World
from sapo_vl.learning.checkpoint import CHECKPOINTS, complete_checkpoints, read_manifest
from sapo_vl.lifeline import start_time
from sapo_vl.record.files import write_text

LIFE = "SAPO_VL_LIFE"  # the name that `launch` gives to a run and all its restarts


def life() -> str:
    """A name of this start of the run: equal in its ranks and after each restart by its launcher, another one when
    somebody gives the command again."""
    if given := os.environ.get(LIFE):
        return given
    run = os.environ.get("TORCHELASTIC_RUN_ID")
    if run not in (None, "none"):
        return str(run)
    # torchrun says "none" where it was given an address in place of a name; nothing restarts a bare process.
    process = os.getpid() if run is None else os.getppid()
    return f"{os.uname().nodename}/{process}/{start_time(process)}"


def mark_begun(out: Path, stage: str, world: World) -> None:
    """Notes that this run has begun: whatever is in `out` beyond where it began is its own."""
    if world.is_main:
        write_text(_mark(out, stage), life())


def resume_of(resume: str, out: Path, stage: str) -> str:
    """The setting `resume` for this start of the stage: as given, or the newest checkpoint of this run after a restart.

    What is newer than the named folder is of this run: all else was set aside when it began. Raises CheckpointError if
    the folder is damaged by now.
    """
    mark = _mark(out, stage)
    if resume == "auto" or not mark.exists() or mark.read_text(encoding="utf-8") != life():
        return resume
    if resume == "no" or stage != "train":  # a folder that is named is one of the training
        return "auto"
    newest = newest_step(out, stage)
    return "auto" if newest is not None and newest > read_manifest(Path(resume))["step"] else resume


def newest_step(out: Path, stage: str) -> int | None:
    """The step of the stage's newest complete checkpoint; None if there is none."""
    found = complete_checkpoints(out / CHECKPOINTS[stage]) if stage in CHECKPOINTS else []
    return int(found[0].name.removeprefix("step_")) if found else None


def _mark(out: Path, stage: str) -> Path:
    return out / f".begun.{stage}"
