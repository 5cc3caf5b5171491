"""An engine that shares GPUs with the trainer: when it sleeps and wakes. What only a GPU can do is recorded here."""

from __future__ import annotations

import inspect
from collections import deque
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from sapo_vl.rollout.vllm import v0_32


class Recorder:
    """As much of vllm.LLM as sleeping takes."""

    def __init__(self, may_sleep: bool, events: list[str]) -> None:
        self.events, self.asleep = events, False
        model = SimpleNamespace(enable_sleep_mode=may_sleep)
        config = SimpleNamespace(model_config=model)
        self.llm_engine = SimpleNamespace(vllm_config=config, is_sleeping=lambda: self.asleep)

    def sleep(self, level: int) -> None:
        self.asleep = True
        self.events.append(f"sleep {level}")

    def wake_up(self) -> None:
        self.asleep = False
        self.events.append("wake")


@pytest.fixture
def events(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    seen: list[str] = []
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: seen.append("empty torch's cache"))
    return seen


def test_it_wakes_once_and_after_torch_gave_its_cache_back(events):
    """Without that, a wake-up beside a trainer that has just run its largest batch is out of memory."""
    llm: Any = Recorder(True, events)
    v0_32.wake(llm)
    assert events == [], "an engine starts awake"
    v0_32.sleep(llm)
    v0_32.sleep(llm)
    v0_32.wake(llm)
    v0_32.wake(llm)
    assert events == ["sleep 1", "empty torch's cache", "wake"]


def test_one_that_may_not_sleep_is_left_alone(events):
    llm: Any = Recorder(False, events)
    v0_32.sleep(llm)
    v0_32.wake(llm)
    assert events == []


class Queued:
    """As much of vllm.LLM as sampling takes beside a GPU, where at the end a batch is on its way."""

    def __init__(self, batches: int) -> None:
        self.core = SimpleNamespace(batch_queue=None)
        self.left = batches
        self.stepped = 0
        client = SimpleNamespace(engine_core=self.core)
        self.llm_engine = SimpleNamespace(
            engine_core=client, step=self.step, has_unfinished_requests=lambda: self.left > 0
        )

    def step(self) -> list[Any]:
        self.stepped += 1
        self.left -= 1
        if self.core.batch_queue is not None:
            if self.left >= 0:
                self.core.batch_queue.append(self.left)
            if len(self.core.batch_queue) > 1 or self.left < 0:
                self.core.batch_queue.popleft()
        return []


@pytest.mark.parametrize("batches", [1, 4])
def test_no_batch_is_left_on_its_way(batches):
    """vLLM refuses to go on with routes that were on their way when its caches were reset."""
    for queue, steps in ((None, batches), (deque(), batches + 1)):
        llm: Any = Queued(batches)
        llm.core.batch_queue = queue
        assert v0_32._answers(llm, 0, 0, None) == []
        assert not llm.core.batch_queue and llm.stepped == steps


@pytest.mark.slow
def test_vllm_has_what_is_recorded_here():
    from vllm import LLM
    from vllm.v1.engine.core import EngineCore
    from vllm.v1.engine.core_client import InprocClient
    from vllm.v1.engine.llm_engine import LLMEngine

    assert "self.batch_queue:" in inspect.getsource(EngineCore.__init__)
    assert "self.engine_core = EngineCore(" in inspect.getsource(InprocClient.__init__)
    assert inspect.signature(LLM.sleep).parameters["level"].default == 1
    assert all(p.default is not p.empty for n, p in inspect.signature(LLM.wake_up).parameters.items() if n != "self")
    assert [*inspect.signature(LLMEngine.is_sleeping).parameters] == ["self"]
