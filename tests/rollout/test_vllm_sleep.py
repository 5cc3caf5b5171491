"""An engine that shares GPUs with the trainer: when it sleeps and wakes. What only a GPU can do is recorded here."""

from __future__ import annotations

import inspect
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
    v0_32.wake(llm)
    v0_32.wake(llm)
    assert events == ["sleep 1", "empty torch's cache", "wake"]


def test_one_that_may_not_sleep_is_left_alone(events):
    llm: Any = Recorder(False, events)
    v0_32.sleep(llm)
    v0_32.wake(llm)
    assert events == []


@pytest.mark.slow
def test_vllm_has_what_is_recorded_here():
    from vllm import LLM
    from vllm.v1.engine.llm_engine import LLMEngine

    assert inspect.signature(LLM.sleep).parameters["level"].default == 1
    assert all(p.default is not p.empty for n, p in inspect.signature(LLM.wake_up).parameters.items() if n != "self")
    assert [*inspect.signature(LLMEngine.is_sleeping).parameters] == ["self"]
