"""Starting the ranks of a stage on this machine, and waiting for their end."""

from __future__ import annotations

import json
import logging
import math
import os
import signal
import uuid
from pathlib import Path

import torch
from torch.distributed import run as torchrun
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure

from sapo_vl.config import RunConfig, save_config
from sapo_vl.learning.checkpoint import CHECKPOINTS
from sapo_vl.lifeline import CUT_OFF, LAUNCHER, STOP_SIGNALS, STOPPED, Stopped, StoppedRanks, outlive_terminal
from sapo_vl.record.run_lock import hold_folder
from sapo_vl.restarts import LIFE, newest_step

log = logging.getLogger(__name__)
BAD_INPUT = 2  # exit status of a rank that would end so again; sapo_vl.commands.cli
STOPPED_FILE = ".stopped.json"  # what a stage that was told to stop says to its launcher
END_S = 30  # that a rank may take to end, once it has saved


def num_processes(config: RunConfig) -> int:
    """Ranks on this machine: as configured, or one per GPU, or 2 on a CPU."""
    return config.processes or torch.cuda.device_count() or min(2, os.cpu_count() or 1)


class StageFailed(RuntimeError):
    """A rank of a stage ended with an error, which it has printed itself."""


def launch(stage: str, config: RunConfig, out: Path) -> None:
    """Runs a stage under torchrun on this machine and waits for it.

    If a rank dies, of a signal or of an error that is not bad input, all are started again from the newest checkpoint:
    checkpoint.restarts times at most, and not twice from the same one.

    Raises StageFailed if a rank fails, Stopped if the stage was told to stop, FolderTaken if `out` is in use.

    For several machines, start the same command on each with torchrun yourself: inside a launcher a stage runs at
    once on its rank.
    """
    outlive_terminal()
    with hold_folder(out, f"stage {stage}"), StoppedRanks(os.getpid(), config.checkpoint.stopped_s):
        ranks = num_processes(config)
        path = out / f".launch.{stage}.yaml"
        save_config(config, path)
        (out / STOPPED_FILE).unlink(missing_ok=True)
        # Threads beyond the cores slow every rank down; a number that the user has set is meant.
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // ranks)))
        os.environ[LAUNCHER] = str(os.getpid())
        os.environ[LIFE] = uuid.uuid4().hex
        # One that is ignored, as by nohup, stays so: torchrun would take it for itself.
        handled = [n for n in (*STOP_SIGNALS, signal.SIGQUIT) if signal.getsignal(n) is not signal.SIG_IGN]
        passed_on = ",".join(number.name for number in handled)
        patience = str(math.ceil(config.checkpoint.grace_s) + END_S)
        command = ["--standalone", "--nproc_per_node", str(ranks)]
        command += ["--signals-to-handle", passed_on, "--shutdown-timeout", patience]
        command += ["-m", "sapo_vl", stage, "--config", str(path), "--out", str(out)]
        try:
            _run_with_restarts(stage, command, out, config.checkpoint.restarts)
        except SignalException as told:
            raise _stopped(out, signal.Signals(told.sigval).name) from None
        finally:
            path.unlink(missing_ok=True)
            del os.environ[LAUNCHER], os.environ[LIFE]


def _run_with_restarts(stage: str, command: list[str], out: Path, restarts: int) -> None:
    began: list[int | None] = []  # what each restart went on from
    while True:
        try:
            torchrun.run(torchrun.parse_args(command))
            return
        except ChildFailedError as error:
            rank, status = _cause(error)
        if status in (STOPPED, CUT_OFF):
            raise _stopped(out, "a signal")
        reason = f"stage {stage}: rank {rank} ended with status {status}{_named(status)}"
        newest = newest_step(out, stage)
        if status == BAD_INPUT or stage not in CHECKPOINTS or not restarts:
            raise StageFailed(reason)
        if began and newest == began[-1]:
            raise StageFailed(f"{reason}, as it did before from the same checkpoint; it is not started again")
        if len(began) == restarts:
            raise StageFailed(f"{reason}, after {restarts} restarts (checkpoint.restarts)")
        began.append(newest)
        since = "the beginning" if newest is None else f"the checkpoint of step {newest}"
        log.warning("%s; it starts again from %s (restart %d of %d)", reason, since, len(began), restarts)


def _cause(error: ChildFailedError) -> tuple[int, int]:
    """(rank, its status) of what made the ranks fail. Where several have ended when torchrun looks, one that has saved
    and stopped speaks for all; then one that was killed or had bad input goes before those that have lost their
    connection to it, and those that torchrun itself has told to end come last."""

    def order(failed: tuple[int, ProcessFailure]) -> tuple[bool, bool, bool, bool, int]:
        status = failed[1].exitcode
        told = status == -signal.SIGTERM
        return status != STOPPED, told, status >= 0, status != BAD_INPUT, failed[1].timestamp

    rank, failure = min(error.failures.items(), key=order)
    return rank, failure.exitcode


def _named(status: int) -> str:
    return f" ({signal.Signals(-status).name})" if -status in list(signal.Signals) else ""


def _stopped(out: Path, by: str) -> Stopped:
    """What the ranks have left to be said about their end."""
    try:
        said = json.loads((out / STOPPED_FILE).read_text(encoding="utf-8"))
        return Stopped(said["message"], said["status"])
    except FileNotFoundError:
        return Stopped(
            f"ended by {by} before it could save; the same command goes on from the newest checkpoint in {out}",
            CUT_OFF,
        )
