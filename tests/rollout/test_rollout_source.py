"""Sampling ahead: which weights a step's rollouts come from, what a resume draws again, who may use the engine when."""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import pytest

from sapo_vl.rollout import SamplingParams
from sapo_vl.rollout.source import RolloutSource, StaleRollouts
from sapo_vl.types import Finish, Problem, Prompt, Rollout, RolloutGroup


class Engine:
    """Answers with its weight version; notes what happened in which order."""

    def __init__(self) -> None:
        self.weight_version = 0
        self.log: list[str] = []
        self.busy = 0
        self.overlapped = False
        self.gate: threading.Event | None = None  # a batch waits for it

    def generate(self, prompts: list[Prompt], params: SamplingParams) -> list[RolloutGroup]:
        self.busy += 1
        self.overlapped |= self.busy > 1
        if self.gate is not None:
            assert self.gate.wait(20)
        self.log.append(f"generate {params.seed} on {self.weight_version}")
        groups = [group(p, self.weight_version) for p in prompts]
        self.busy -= 1
        return groups

    def sync(self, version: int) -> None:
        self.overlapped |= self.busy > 0
        self.log.append(f"sync {version}")
        self.weight_version = version


class Draws:
    def __init__(self, start: int = 0) -> None:
        self.count = start

    def next(self) -> list[Prompt]:
        self.count += 1
        return [prompt(str(self.count - 1))]

    def state(self) -> dict[str, Any]:
        return {"count": self.count}


def prompt(name: str) -> Prompt:
    problem = Problem(id=name, task="t", messages=())
    ids = np.arange(3)
    return Prompt(
        problem=problem,
        ids=ids,
        compact_ids=ids,
        positions=np.zeros((3, 3), int),
        pixel_values=None,
        image_grid_thw=None,
    )


def group(p: Prompt, version: int, finish: Finish = Finish.STOP) -> RolloutGroup:
    r = Rollout(response_ids=np.array([1]), logprobs=np.zeros(1), finish=finish, weight_version=version)
    return RolloutGroup(prompt=p, rollouts=(r,))


def source(engine: Any, draws: Draws, staleness: int, steps: range = range(6)) -> RolloutSource:
    return RolloutSource(
        draws.next,
        draws.state,
        engine,
        lambda step: SamplingParams(n=1, max_new_tokens=1, temperature=1.0, seed=100 + step),
        staleness=staleness,
        steps=steps,
    )


def loop(engine: Engine, rollouts: RolloutSource, steps: range = range(6)) -> list[tuple[str, int]]:
    """(problem, version) a step was trained on."""
    seen = []
    for step in steps:
        (g,) = rollouts.next()
        seen.append((g.prompt.problem.id, g.rollouts[0].weight_version))
        with rollouts.exclusive():
            engine.sync(step + 1)
    rollouts.close()
    return seen


def test_on_policy_is_the_plain_loop() -> None:
    engine = Engine()
    assert loop(engine, source(engine, Draws(), 0)) == [(str(k), k) for k in range(6)]
    assert engine.log == [line for k in range(6) for line in (f"generate {100 + k} on {k}", f"sync {k + 1}")]


def test_one_step_ahead_uses_exactly_the_weights_before() -> None:
    engine, draws = Engine(), Draws()
    seen = loop(engine, source(engine, draws, 1))
    assert seen == [("0", 0), ("1", 0), ("2", 1), ("3", 2), ("4", 3), ("5", 4)]
    assert draws.count == 6, "prompts were drawn that no step will use"
    assert not engine.overlapped


def test_a_batch_is_sampled_while_the_step_before_it_goes_on() -> None:
    engine = Engine()
    rollouts = source(engine, Draws(), 1)
    engine.gate = threading.Event()
    engine.gate.set()
    rollouts.next()
    engine.gate.clear()
    # The next batch is on its way and cannot end; the caller is back and could train now.
    synced = threading.Event()

    def sync() -> None:
        with rollouts.exclusive():
            engine.sync(1)
            synced.set()

    thread = threading.Thread(target=sync)
    thread.start()
    assert not synced.wait(0.3) or "generate 101 on 0" in engine.log
    engine.gate.set()
    thread.join(20)
    assert synced.is_set()
    assert engine.log == ["generate 100 on 0", "generate 101 on 0", "sync 1"]
    rollouts.close()


def test_a_resume_draws_again_what_was_sampled_ahead() -> None:
    engine, draws = Engine(), Draws()
    rollouts = source(engine, draws, 1)
    rollouts.next()
    with rollouts.exclusive():
        engine.sync(1)
    rollouts.next()
    assert draws.count == 3
    state = rollouts.state_dict()
    rollouts.close()
    assert state == {"count": 2}
    again = Engine()
    again.weight_version = 2
    resumed = source(again, Draws(state["count"]), 1, range(2, 6))
    assert resumed.next()[0].prompt.problem.id == "2"
    resumed.close()


def test_what_the_engine_raises_reaches_the_step_that_needs_it() -> None:
    class Broken(Engine):
        def generate(self, prompts: list[Prompt], params: SamplingParams) -> list[RolloutGroup]:
            if params.seed == 101:
                raise OSError("gone")
            return super().generate(prompts, params)

    rollouts = source(Broken(), Draws(), 1)
    rollouts.next()
    with pytest.raises(OSError, match="gone"):
        rollouts.next()
    rollouts.close()


@pytest.mark.parametrize(("staleness", "version"), [(0, 4), (0, 6), (1, 3), (1, 6)])
def test_rollouts_of_another_version_are_never_trained_on(staleness: int, version: int) -> None:
    engine = Engine()
    engine.weight_version = version
    rollouts = source(engine, Draws(), staleness, range(5, 9))
    with pytest.raises(StaleRollouts, match=rf"step 5 .* version {version}; allowed are {5 - staleness} to 5"):
        rollouts.next()
    rollouts.close()


def test_a_failed_rollout_has_no_version() -> None:
    class Failing(Engine):
        def generate(self, prompts: list[Prompt], params: SamplingParams) -> list[RolloutGroup]:
            return [group(p, 0, Finish.FAILED) for p in prompts]

    assert source(Failing(), Draws(), 0, range(5, 9)).next()[0].rollouts[0].finish is Finish.FAILED
