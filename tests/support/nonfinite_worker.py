"""Runs on every rank for test_nonfinite.py: a cold start and a training with log-probs that turn into NaN.

    nonfinite_worker.py FOLDER

FOLDER holds config.yaml; each case leaves a run folder NAME and what the ranks saw in NAME.json. The test judges.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import sapo_vl.train
from sapo_vl.config import RunConfig, load_config
from sapo_vl.distributed import World, init_world, shutdown_world
from sapo_vl.learning.nonfinite import NonFiniteUpdate
from sapo_vl.lifeline import StopRequest
from sapo_vl.model.batching import MicroBatch
from sapo_vl.record.run_log import RunLog
from sapo_vl.scoring.scorer import Scorer
from sapo_vl.session import Session, open_session, setup_logging
from sapo_vl.sft import cold_start

Place = tuple[int, int]  # (update of the stage, rank)


class Poison:
    """Makes the first log-prob of the last response of a micro-batch NaN, in the named updates on the named ranks."""

    def __init__(self, places: set[Place], world: World) -> None:
        self.places, self.world = places, world
        self.ids: list[str] = []  # of the problems whose response it was

    def plant(self, session: Session) -> Session:
        def spoil(_module: Any, args: tuple[MicroBatch], output: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor] | None:
            if (session.engine.updates, self.world.rank) not in self.places or not torch.is_grad_enabled():
                return None
            logprobs, entropy = output
            self.ids.append(args[0].groups[-1].prompt.problem.id)
            nan = torch.zeros_like(logprobs)
            nan[-int(args[0].lengths[-1])] = float("nan")
            return logprobs + nan, entropy

        session.engine.module.register_forward_hook(spoil)
        return session


def sft(config: RunConfig, out: Path, world: World, poison: Poison) -> dict[str, Any]:
    assert config.cold_start is not None
    s = config.cold_start
    session = open_session(config.model, s.optim, s.zero, config.rollout, world, total_updates=s.steps, seed=0)
    with Scorer(config.rewards, world) as scorer, RunLog(out, config.log, {}, world) as run_log:
        return cold_start(config, poison.plant(session), scorer, run_log, out, StopRequest(1))


def train(config: RunConfig, out: Path, world: World, poison: Poison) -> dict[str, Any]:
    sapo_vl.train.open_session = lambda *args, **kwargs: poison.plant(open_session(*args, **kwargs))
    with Scorer(config.rewards, world) as scorer:
        return sapo_vl.train.train(config, out, world, scorer, StopRequest(1))


CASES: dict[str, tuple[Callable[..., dict[str, Any]], set[Place]]] = {
    "sft-one": (sft, {(1, 1)}),
    "sft-all": (sft, {(n, rank) for n in range(9) for rank in range(2)}),
    "train-step": (train, {(2, 0), (3, 1)}),
}


def main(folder: Path) -> None:
    world = init_world()
    setup_logging(world)
    config = load_config(folder / "config.yaml")
    for name, (stage, places) in CASES.items():
        poison = Poison(places, world)
        error, result = "", None
        try:
            result = stage(config, folder / name, world, poison)
        except NonFiniteUpdate as stopped:
            error = str(stopped)
        seen = world.gather({"result": result, "error": error, "poisoned": poison.ids})
        if world.is_main:
            (folder / f"{name}.json").write_text(json.dumps(seen))
    shutdown_world()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
