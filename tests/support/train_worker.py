"""Runs training after training in one process a rank, which spares most of a short run's time: loading libraries.

    train_worker.py RUNS.json

RUNS.json is a list of {"out": folder, "settings": {key: value}, "cut_from": folder or none, "fails": text or none,
"told": [method, number] or none}.
With "cut_from" the run folder is first made a copy of that one, as it lay on disk when the run died after its next to
last checkpoint. With "fails" the run must end with an error that says so. With "told" the run finds that it
is to stop when it asks StopRequest with that method as often as that; it is started again.

Processes that score read this file as well, so it loads nothing large before it is run.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
from collections import Counter
from pathlib import Path
from typing import Any


def run(out: Path, settings: dict[str, Any], cut_from: str, fails: str, told: Any, world: Any) -> None:
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
    if told:
        with Scorer(config.rewards, world) as scorer, contextlib.suppress(Stopped):
            train(config, out, world, scorer, told_at(*told))
            raise AssertionError("it was to stop")
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


def told_at(method: str, number: int) -> Any:
    from sapo_vl.lifeline import StopRequest

    class Told(StopRequest):
        def __init__(self) -> None:
            super().__init__(1)
            self.asked: Counter[str] = Counter()

        def answer(self, asked: str) -> str:
            self.asked[asked] += 1
            return "SIGTERM" if self.asked[method] == number else ""

        def agreed(self, world: Any) -> str:
            return self.answer("agreed")

        def too_late(self, world: Any, rest_s: float) -> str:
            told = self.answer("too_late")
            assert (rest_s > 0) == (self.asked["too_late"] > 1), "known from the second step on"
            return told

    return Told()


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
            job.get("told"),
            world,
        )
    shutdown_world()


if __name__ == "__main__":
    main()
