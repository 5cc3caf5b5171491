"""Starting the ranks of a stage on this machine, and waiting for their end."""

from __future__ import annotations

import json
import math
import os
import signal
from pathlib import Path

import torch
from torch.distributed import run as torchrun
from torch.distributed.elastic.multiprocessing.api import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

from sapo_vl.config import RunConfig, save_config
from sapo_vl.lifeline import CUT_OFF, LAUNCHER, STOP_SIGNALS, STOPPED, Stopped
from sapo_vl.record.run_lock import hold_folder

STOPPED_FILE = ".stopped.json"  # what a stage that was told to stop says to its launcher
END_S = 30  # that a rank may take to end, once it has saved


def num_processes(config: RunConfig) -> int:
    """Ranks on this machine: as configured, or one per GPU, or 2 on a CPU."""
    return config.processes or torch.cuda.device_count() or min(2, os.cpu_count() or 1)


class StageFailed(RuntimeError):
    """A rank of a stage ended with an error, which it has printed itself."""


def launch(stage: str, config: RunConfig, out: Path) -> None:
    """Runs a stage under torchrun on this machine and waits for it.

    Raises StageFailed if a rank fails, Stopped if the stage was told to stop, FolderTaken if `out` is in use.

    For several machines, start the same command on each with torchrun yourself: inside a launcher a stage runs at
    once on its rank.
    """
    with hold_folder(out, f"stage {stage}"):
        ranks = num_processes(config)
        path = out / f".launch.{stage}.yaml"
        save_config(config, path)
        (out / STOPPED_FILE).unlink(missing_ok=True)
        # Threads beyond the cores slow every rank down; a number that the user has set is meant.
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // ranks)))
        os.environ[LAUNCHER] = str(os.getpid())
        passed_on = ",".join(number.name for number in (*STOP_SIGNALS, signal.SIGHUP, signal.SIGQUIT))
        patience = str(math.ceil(config.checkpoint.grace_s) + END_S)
        command = ["--standalone", "--nproc_per_node", str(ranks)]
        command += ["--signals-to-handle", passed_on, "--shutdown-timeout", patience]
        command += ["-m", "sapo_vl", stage, "--config", str(path), "--out", str(out)]
        try:
            torchrun.run(torchrun.parse_args(command))
        except SignalException as told:
            raise _stopped(out, signal.Signals(told.sigval).name) from None
        except ChildFailedError as error:
            rank, failure = error.get_first_failure()
            if failure.exitcode in (STOPPED, CUT_OFF):
                raise _stopped(out, "a signal") from None
            raise StageFailed(f"stage {stage}: rank {rank} ended with status {failure.exitcode}") from None
        finally:
            path.unlink(missing_ok=True)
            del os.environ[LAUNCHER]


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
