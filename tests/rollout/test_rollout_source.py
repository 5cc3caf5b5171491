"""Sampling ahead: which weights a step's rollouts come from, what a resume draws again, who may use the engine when."""

from __future__ import annotations

import dataclasses
import json
import threading
from typing import Any

import numpy as np
import pytest

from sapo_vl.distributed import World
from sapo_vl.rollout import SamplingParams
from sapo_vl.rollout.saved import pack_groups, unpack_groups
from sapo_vl.rollout.source import RolloutSource, StaleRollouts, dealt_anew
from sapo_vl.types import Finish, Problem, Prompt, Rollout, RolloutGroup


class Engine:
    """Answers with its weight version; notes what happened in which order."""

    def __init__(self) -> None:
        self.weight_version = 0
        self.log: list[str] = []
        self.busy = 0
        self.overlapped = False
        self.gate: threading.Event | None = None  # a batch waits for it

    def generate(self, prompts: list[Prompt], params: SamplingParams, on_group: Any = None) -> list[RolloutGroup]:
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

    def rest(self) -> None:
        self.log.append("rest")


class Threads(Engine):
    """Notes which threads asked it."""

    def __init__(self) -> None:
        super().__init__()
        self.threads = {threading.get_ident()}

    def generate(self, prompts: list[Prompt], params: SamplingParams, on_group: Any = None) -> list[RolloutGroup]:
        self.threads.add(threading.get_ident())
        return super().generate(prompts, params)


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


def source(
    engine: Any, draws: Draws, staleness: int, steps: range = range(6), beside: bool = True, ahead: Any = None
) -> RolloutSource:
    return RolloutSource(
        draws.next,
        draws.state,
        engine,
        lambda step: SamplingParams(n=1, max_new_tokens=1, temperature=1.0, seed=100 + step),
        staleness=staleness,
        steps=steps,
        beside=beside,
        world=World.alone(),
        ahead=ahead,
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
    assert engine.log == [line for k in range(6) for line in (f"generate {100 + k} on {k}", "rest", f"sync {k + 1}")]


@pytest.mark.parametrize("beside", [True, False])
def test_one_step_ahead_uses_exactly_the_weights_before(beside: bool) -> None:
    engine, draws = Engine(), Draws()
    seen = loop(engine, source(engine, draws, 1, beside=beside))
    assert seen == [("0", 0), ("1", 0), ("2", 1), ("3", 2), ("4", 3), ("5", 4)]
    assert draws.count == 6, "prompts were drawn that no step will use"
    assert engine.log[-3:] == ["sync 5", "rest", "sync 6"], "nothing is sampled before the last updates"
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


def test_an_engine_that_cannot_work_beside_the_trainer_samples_in_turn() -> None:
    """Both batches in the caller's thread, before the first update; no thread is left that could do otherwise."""
    engine = Threads()
    rollouts = source(engine, Draws(), 1, beside=False)
    rollouts.next()
    assert engine.log == ["generate 100 on 0", "generate 101 on 0"]
    engine.sync(1)
    rollouts.next()
    assert engine.log[2:] == ["sync 1", "generate 102 on 1"]
    assert engine.threads == {threading.get_ident()}
    beside = source(elsewhere := Threads(), Draws(), 1)
    beside.next()
    beside.next()
    beside.close()
    assert len(elsewhere.threads) == 2


def cut_off(beside: bool, last: int, steps: range = range(6)) -> tuple[dict[str, Any], int]:
    """What a checkpoint after `last` steps holds, as a file gives it back, and how many batches were drawn by then."""
    engine, draws = Engine(), Draws()
    rollouts = source(engine, draws, 1, steps, beside)
    for step in range(last):
        rollouts.next()
        with rollouts.exclusive():
            engine.sync(step + 1)
    state = json.loads(json.dumps(rollouts.state_dict()))
    rollouts.close()
    return state, draws.count


@pytest.mark.parametrize("beside", [True, False])
def test_a_resumed_run_trains_on_what_was_sampled_ahead(beside: bool) -> None:
    """Its weights are gone, so it comes out of the checkpoint; the steps after it are those of a whole run."""
    state, drawn = cut_off(beside, last=2)
    assert drawn == 3 and state["count"] == 2, "the feed goes back to before the batch ahead"
    again = Engine()
    again.sync(2)
    resumed = source(again, Draws(state["count"]), 1, range(2, 6), beside, ahead=state["ahead"])
    assert loop(again, resumed, range(2, 6)) == [("2", 1), ("3", 2), ("4", 3), ("5", 4)]
    assert [line for line in again.log if line.startswith("generate")] == [
        f"generate {100 + k} on {k - 1}" for k in (3, 4, 5)
    ], "what the checkpoint holds was sampled again"


@pytest.mark.parametrize(("saved", "ranks"), [(2, 1), (1, 2), (2, 4), (4, 2), (3, 2), (6, 3)])
def test_a_batch_sampled_ahead_is_dealt_to_other_ranks(saved: int, ranks: int) -> None:
    """In the order of the ranks, which is that of the batch; where the feed is they all know."""
    names = list("abcdefghijkl")
    cut = 12 // saved
    states = [
        {"sampler": {"step": 5}, "ahead": {"params": {"n": 1}, "groups": names[cut * rank : cut * (rank + 1)]}}
        for rank in range(saved)
    ]
    worlds = [dataclasses.replace(World.alone(), rank=rank, size=ranks) for rank in range(ranks)]
    dealt = [dealt_anew(states, world) for world in worlds]
    assert all(state["sampler"] == {"step": 5} and state["ahead"]["params"] == {"n": 1} for state in dealt)
    assert {len(state["ahead"]["groups"]) for state in dealt} == {12 // ranks}
    assert [name for state in dealt for name in state["ahead"]["groups"]] == names
    del states[-1]["ahead"]  # sampling failed there
    assert [dealt_anew(states, world) for world in worlds] == [{"sampler": {"step": 5}}] * ranks
    assert states[0].keys() >= {"sampler"} and (saved == 1 or "ahead" in states[0]), "what was saved stays as it is"


@pytest.mark.parametrize("other", ["prompts", "ids", "settings", "none"])
def test_a_batch_for_something_else_is_sampled_again_and_told(other: str, caplog: pytest.LogCaptureFixture) -> None:
    state, _ = cut_off(False, last=2)
    ahead = state["ahead"]
    draws = Draws(3 if other == "prompts" else 2)
    if other == "settings":
        ahead["params"]["temperature"] = 0.9
    if other == "ids":
        renamed = prompt("2")
        ahead["groups"] = pack_groups([group(dataclasses.replace(renamed, ids=np.array([0, 1, 3])), 1)])
    engine = Engine()
    engine.sync(2)
    resumed = source(engine, draws, 1, range(2, 3), False, ahead=None if other == "none" else ahead)
    assert resumed.next()[0].rollouts[0].weight_version == 2
    assert "step 3: the checkpoint has no batch that was sampled ahead for these settings" in caplog.text


def test_the_last_step_leaves_nothing_ahead() -> None:
    assert cut_off(False, last=2, steps=range(2)) == ({"count": 2}, 2)


def test_a_batch_that_failed_on_its_way_is_not_kept() -> None:
    class Broken(Engine):
        def generate(self, prompts: list[Prompt], params: SamplingParams, on_group: Any = None) -> list[RolloutGroup]:
            if params.seed == 101:
                raise OSError("gone")
            return super().generate(prompts, params)

    rollouts = source(Broken(), Draws(), 1)
    rollouts.next()
    assert rollouts.state_dict() == {"count": 1}
    rollouts.close()
    with pytest.raises(OSError, match="gone"):
        source(Broken(), Draws(), 1, beside=False).next()


def test_saved_responses_are_the_same_to_the_bit(seed: int) -> None:
    rng = np.random.default_rng(seed)
    groups = [
        RolloutGroup(prompt=prompt(str(i)), rollouts=tuple(random_rollout(rng, length) for length in (0, 1, 7)))
        for i in range(3)
    ]
    saved = json.loads(json.dumps(pack_groups(groups)))
    back = unpack_groups(saved, [g.prompt for g in groups])
    assert back is not None
    for before, after in zip(groups, back, strict=True):
        assert after.prompt is before.prompt
        for a, b in zip(before.rollouts, after.rollouts, strict=True):
            for f in dataclasses.fields(Rollout):
                x, y = getattr(a, f.name), getattr(b, f.name)
                assert type(x) is type(y), f.name
                if isinstance(x, np.ndarray):
                    assert x.dtype == y.dtype and x.shape == y.shape and x.tobytes() == y.tobytes()
                else:
                    assert x == y
    assert unpack_groups(saved, [g.prompt for g in groups[:2]]) is None
    assert unpack_groups(saved, [g.prompt for g in groups[::-1]]) is None


def random_rollout(rng: np.random.Generator, length: int) -> Rollout:
    return Rollout(
        response_ids=rng.integers(0, 2**40, length),
        logprobs=np.log(rng.random(length)).astype(np.float32),
        finish=list(Finish)[rng.integers(3)],
        weight_version=int(rng.integers(9)),
        text="\ud83d\ude00".encode("utf-16", "surrogatepass").decode("utf-16") + " \u0000\n" * length,
        score_detail="no answer",
    )


def test_what_the_engine_raises_reaches_the_step_that_needs_it() -> None:
    class Broken(Engine):
        def generate(self, prompts: list[Prompt], params: SamplingParams, on_group: Any = None) -> list[RolloutGroup]:
            if params.seed == 101:
                raise OSError("gone")
            return super().generate(prompts, params)

    rollouts = source(Broken(), Draws(), 1)
    rollouts.next()
    with pytest.raises(OSError, match="gone"):
        rollouts.next()
    rollouts.close()


def test_further_prompts_of_a_step_get_its_weights_and_seeds_of_their_own() -> None:
    engine, draws = Engine(), Draws()
    rollouts = source(engine, draws, 0)
    for step in range(2):
        rollouts.next()
        rollouts.more(draws.next(), 1)
        (further,) = rollouts.more(draws.next(), 2)
        assert further.rollouts[0].weight_version == step
        assert rollouts.state_dict() == {"count": 3 * (step + 1)}, "a resume would draw them again"
        engine.sync(step + 1)
    seeds = [int(line.split()[1]) for line in engine.log if line.startswith("generate")]
    assert len(set(seeds)) == 6 and seeds[::3] == [100, 101]
    engine.sync(7)
    with pytest.raises(StaleRollouts, match=r"step 1 got .* version 7"):
        rollouts.more(draws.next(), 1)


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
        def generate(self, prompts: list[Prompt], params: SamplingParams, on_group: Any = None) -> list[RolloutGroup]:
            return [group(p, 0, Finish.FAILED) for p in prompts]

    assert source(Failing(), Draws(), 0, range(5, 9)).next()[0].rollouts[0].finish is Finish.FAILED
