"""Runs training after training in one process a rank, which spares most of a short run's time: loading libraries.

    train_worker.py RUNS.json

RUNS.json is a list of {"out": folder, "settings": {key: value}, "cut_from": folder or none, "fails": text or none,
"gives_up": step or none}.
With "cut_from" the run folder is first made a copy of that one, as it lay on disk when the run died after its next to
last checkpoint. With "fails" the run must end with an error that says so. With "gives_up" the run is told, with the
rollouts of that step in hand, that it has no time for the rest of it; it is started again.

Processes that score read this file as well, so it loads nothing large before it is run.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
from pathlib import Path
from typing import Any


def run(out: Path, settings: dict[str, Any], cut_from: str, fails: str, gives_up: int, world: Any) -> None:
    from sapo_vl.config import load_config
    from sapo_vl.learning.checkpoint import complete_checkpoints
    from sapo_vl.lifeline import Stopped, StopRequest
    from sapo_vl.record.run_log import write_json
    from sapo_vl.scoring.scorer import Scorer
    from sapo_vl.train import train

    if cut_from and world.is_main:
        shutil.copytree(cut_from, out)
        shutil.rmtree(out / "final")
        shutil.rmtree(complete_checkpoints(out / "checkpoints")[0])
        (out / "summary.json").unlink()
    world.barrier()
    config = load_config(None, [f"{key}={value}" for key, value in settings.items()])
    if gives_up:
        with Scorer(config.rewards, world) as scorer, contextlib.suppress(Stopped):
            train(config, out, world, scorer, late(gives_up))
            raise AssertionError("it was to give a step up")
    with Scorer(config.rewards, world) as scorer:
        try:
            result = train(config, out, world, scorer, StopRequest(1))
        except ValueError as error:
            if not fails or fails not in str(error):
                raise
            return
    assert not fails, f"{out} was to fail with {fails!r}"
    if world.is_main:
        write_json(out / "summary.json", result)


def late(step: int) -> Any:
    from sapo_vl.lifeline import StopRequest

    class Late(StopRequest):
        asked = 0

        def too_late(self, world: Any, rest_s: float) -> str:
            self.asked += 1
            assert (rest_s > 0) == (self.asked > 1), "known from the second step on"
            return "SIGTERM" if self.asked == step else ""

    return Late(1)


def main() -> None:
    import torch

    from sapo_vl.distributed import init_world, shutdown_world
    from sapo_vl.session import setup_logging

    torch.set_num_threads(1)
    world = init_world()
    setup_logging(world)
    for job in json.loads(Path(sys.argv[1]).read_text()):
        run(
            Path(job["out"]),
            job["settings"],
            job.get("cut_from", ""),
            job.get("fails", ""),
            job.get("gives_up", 0),
            world,
        )
    shutdown_world()


if __name__ == "__main__":
    main()
