"""A long run of a tiny model in this process, and what it holds of the machine on the way: memory, files, threads.

    soak.py FOLDER STEPS EVERY SEED [worker]

Prints a line "HELD {json}" every EVERY steps. The run evaluates and saves as any other, so that what leaks a little at
each of them is seen; with `worker` it scores in a process of its own.
"""

from __future__ import annotations

import gc
import json
import sys
import time
from pathlib import Path
from typing import Any

import chaos
import psutil
import torch
from helpers_runs import write_inputs

from sapo_vl.config import load_config
from sapo_vl.record.run_log import Phase, RunLog
from sapo_vl.stages import run_stage


def held(step: int, began: float) -> dict[str, Any]:
    """Of this process, but for `children_mb`. `tensors` are those that Python can reach."""
    me = psutil.Process()
    gc.collect()
    children = me.children(recursive=True)
    return {
        "step": step,
        "seconds": round(time.monotonic() - began, 1),
        "rss_mb": round(me.memory_info().rss / 2**20, 1),
        "children_mb": round(sum(p.memory_info().rss for p in children) / 2**20, 1),
        "files": me.num_fds(),
        "threads": me.num_threads(),
        "children": len(children),
        "tensors": sum(issubclass(type(thing), torch.Tensor) for thing in gc.get_objects()),
    }


def main(folder: Path, steps: int, every: int, seed: int, worker: bool) -> None:
    settings = write_inputs(folder, seed, n_cold_start=4, n_test=3, tasks="count,text_compare")
    if not worker:
        chaos.load_libraries()
        settings |= {"rewards.path": "", "rewards.by_task": '{"*": by_tokens}', "rewards.combine": "{accuracy: 1.0}"}
    settings |= {
        "steps": steps,
        "processes": 1,
        "rollout.prompts_per_step": 2,
        "rollout.group_size": 2,
        "rollout.max_new_tokens": 3,
        "batch.mini_batches": 1,
        "optim.lr": 1e-4,
        "eval.max_per_task": 1,
        "eval.modes": "[greedy]",
        "eval.every": min(250, steps // 6),
        "checkpoint.every": min(250, steps // 6),
    }
    original, began = RunLog.metrics, time.monotonic()

    def metrics(self: RunLog, step: int, phase: Phase, values: Any) -> None:
        original(self, step, phase, values)
        if phase == "train" and step % every == 0:
            print("HELD", json.dumps(held(step, began)), flush=True)

    RunLog.metrics = metrics  # type: ignore[method-assign]
    run_stage("train", load_config(None, [f"{k}={v}" for k, v in settings.items()]), folder / "run")


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]), int(sys.argv[4]), "worker" in sys.argv)
