"""Groups are told as soon as they are finished, and are those that come back: vLLM in process, and the source."""

from __future__ import annotations

import dataclasses
import threading
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from sapo_vl.distributed import World
from sapo_vl.rollout import SamplingParams
from sapo_vl.rollout.source import RolloutSource
from sapo_vl.rollout.vllm import engine as vllm_engine
from sapo_vl.rollout.vllm import v0_32
from sapo_vl.rollout.vllm.engine import VllmEngine
from sapo_vl.scoring.early import EarlyResults
from sapo_vl.types import Finish, Problem, Prompt, Rollout, RolloutGroup


class FakeLLM:
    """Finishes the requests that it was given from the last to the first, one a step, numbered on from 40."""

    def __init__(self) -> None:
        self.request_counter = SimpleNamespace(counter=40)
        self.llm_engine = self
        self.engine_core = SimpleNamespace(engine_core=SimpleNamespace(batch_queue=None))
        self.waiting: list[int] = []

    def enqueue(self, prompts: list[Any], params: list[Any], use_tqdm: bool) -> None:
        self.waiting = [self.request_counter.counter + i for i in range(len(prompts))]
        self.request_counter.counter += len(prompts)

    def has_unfinished_requests(self) -> bool:
        return bool(self.waiting)

    def step(self) -> list[Any]:
        unfinished = SimpleNamespace(finished=False)
        if not self.waiting:
            return [unfinished]
        number = self.waiting.pop()
        sample = SimpleNamespace(token_ids=[number], logprobs=[{number: SimpleNamespace(logprob=-1.0)}],
                                 finish_reason="stop", routed_experts=None)  # fmt: skip
        done = SimpleNamespace(finished=True, request_id=str(number), outputs=[sample], prompt_token_ids=[1])
        return [unfinished, done]


def test_vllm_tells_of_an_answer_when_it_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(v0_32, "request", lambda prompt: prompt)
    told: list[tuple[int, int]] = []
    llm: Any = FakeLLM()
    prompts: Any = ["a", "b", "c"]

    def tell(i: int, answer: Any) -> None:
        told.append((i, len(llm.waiting)))

    for start in (40, 43):
        told.clear()
        answers = v0_32.generate(llm, prompts, [None] * 3, tell)
        assert told == [(2, 2), (1, 1), (0, 0)], "(prompt, others that are still sampled)"
        assert [int(a.samples[0].ids[0]) for a in answers] == [start, start + 1, start + 2]


def group(name: str, version: int = 0) -> RolloutGroup:
    ids = np.arange(3)
    prompt = Prompt(
        problem=Problem(id=name, task="t", messages=()), ids=ids, compact_ids=ids, positions=np.zeros((3, 3), int),
        pixel_values=None, image_grid_thw=None,
    )  # fmt: skip
    rollout = Rollout(response_ids=ids, logprobs=np.zeros(3), finish=Finish.STOP, weight_version=version, text=name)
    return RolloutGroup(prompt=prompt, rollouts=(rollout,))


class Sampling:
    """The second group is finished only once the first has been scored."""

    weight_version = 0

    def __init__(self, scored: threading.Event) -> None:
        self.scored = scored

    def generate(self, prompts: list[Prompt], params: SamplingParams, on_group: Any = None) -> list[RolloutGroup]:
        self.scored.clear()
        groups = [group(p.problem.id, params.seed) for p in prompts]
        on_group(0, groups[0])
        assert self.scored.wait(30), "the first reward waits for the last response"
        on_group(1, groups[1])
        return groups

    def rest(self) -> None: ...


@pytest.mark.parametrize("staleness", [0, 1])
def test_rewards_begin_while_others_are_sampled(staleness: int) -> None:
    scored = threading.Event()

    def run(jobs: Any) -> list[Any]:
        scored.set()
        return [f"result of {job}" for job in jobs]

    early = EarlyResults(run)
    engine: Any = Sampling(scored)
    source = RolloutSource(
        lambda: [group("a").prompt, group("b").prompt],
        dict,
        engine,
        lambda step: SamplingParams(n=1, max_new_tokens=3, temperature=1.0, seed=step),
        staleness=staleness,
        steps=range(3),
        beside=True,
        world=World.alone(),
        on_group=lambda i, g: early.add([(g.rollouts[0], g.prompt.problem.id)]),  # type: ignore[list-item]
    )
    for _ in range(2):
        groups = source.next()
        assert [early.take(g.rollouts[0]) for g in groups] == ["result of a", "result of b"]
        assert early.take(groups[0].rollouts[0]) is None, "taken once"
    source.close()
    early.close()


def test_what_a_worker_raises_is_raised_where_the_result_is_taken() -> None:
    def run(jobs: Any) -> list[Any]:
        raise RuntimeError("the workers hang")

    early, answered = EarlyResults(run), group("a").rollouts[0]
    early.add([(answered, "job")])  # type: ignore[list-item]
    with pytest.raises(RuntimeError, match="the workers hang"):
        early.take(answered)
    early.close()


class Sharing:
    """Rank 1 of an engine of two ranks, each with three prompts."""

    rank, size = 1, 2

    def gather(self, mine: list[Any]) -> list[list[Any]]:
        others = [group(f"other{i}").prompt if isinstance(mine[0], Prompt) else 0 for i in range(3)]
        return [others, mine]


@pytest.mark.parametrize("sharing", [World.alone(), Sharing()], ids=["alone", "two ranks"])
def test_an_engine_over_several_ranks_tells_each_of_its_own(sharing: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(v0_32, "request", lambda prompt: prompt)
    nothing = lambda *_: None  # noqa: E731
    engine: Any = VllmEngine.__new__(VllmEngine)
    engine.contract = SimpleNamespace(wake=nothing, sleep=nothing, sampling=nothing, generate=v0_32.generate)
    engine.llm, engine._sharing, engine._routes, engine._vocab_size = FakeLLM(), sharing, None, 1000
    engine._shares_memory = False
    engine.chat = SimpleNamespace(eos_ids=(40, 41, 42, 43, 44, 45), banned_ids=(), decode=str)
    engine._watch, engine.weight_version = SimpleNamespace(record=nothing), 5
    prompts = [group(name).prompt for name in "abc"]
    prompts = [dataclasses.replace(p, ids=np.array([1])) for p in prompts]
    told: list[tuple[int, RolloutGroup]] = []
    params = SamplingParams(n=1, max_new_tokens=3, temperature=1.0)
    groups = engine.generate(prompts, params, lambda i, group: told.append((i, group)))
    assert [i for i, _ in told] == [2, 1, 0] and all(group is groups[i] for i, group in told)
    assert [g.prompt.problem.id for g in groups] == ["a", "b", "c"]
    first = 43 if sharing.size > 1 else 40
    assert [int(g.rollouts[0].response_ids[0]) for g in groups] == [first, first + 1, first + 2]


@pytest.mark.parametrize("broken", ["here", "there"])
def test_a_prompt_that_one_rank_cannot_prepare_is_told_to_all(broken: str) -> None:
    def prepare(llm: Any, prompts: list[Prompt]) -> list[bytes]:
        if broken == "here":
            raise ValueError("no such image")
        return [b"fine"]

    told = {"here": ["", "ValueError: no such image"], "there": ["OSError: disk", ""]}[broken]
    engine: Any = VllmEngine.__new__(VllmEngine)
    engine.llm, engine.contract = None, SimpleNamespace(prepare=prepare)
    engine._sharing = SimpleNamespace(size=2, rank=1, gather=lambda mine: told if mine == told[1] else None)
    with pytest.raises(RuntimeError, match="no such image" if broken == "here" else "disk"):
        engine._prepared([group("a").prompt])


def test_without_room_for_what_is_prepared_each_rank_prepares_all(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vllm_engine, "share", lambda world, buffers: None)
    monkeypatch.setattr(v0_32, "request", lambda prompt: prompt)
    nothing = lambda *_: None  # noqa: E731
    engine: Any = VllmEngine.__new__(VllmEngine)
    engine.llm, engine._shares_memory, engine._sharing = FakeLLM(), True, SharingAll()
    engine.chat = SimpleNamespace(eos_ids=(), banned_ids=())
    engine.contract = SimpleNamespace(sampling=nothing, generate=v0_32.generate, prepare=lambda *_: [b"x"])
    answered: list[int] = []
    params = SamplingParams(n=1, max_new_tokens=3, temperature=1.0)
    engine._sample([group(name).prompt for name in "abc"], params, lambda i, _: answered.append(i))
    assert sorted(answered) == [0, 1, 2]


class SharingAll(Sharing):
    """As Sharing, and the other rank has no fault to tell."""

    def gather(self, mine: Any) -> list[Any]:
        return ["", mine] if isinstance(mine, str) else super().gather(mine)
