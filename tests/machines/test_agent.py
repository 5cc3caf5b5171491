"""torchrun ends soon after its ranks if it does not start them again. A real one: tests/test_several_machines.py."""

from __future__ import annotations

import itertools
import os
import queue
import time
from typing import Any

import pytest
from torch.distributed import run as torchrun

from sapo_vl.machines import agent


class Ended(Exception):
    """As a process that is no more."""


def looks_until_the_end(states: str, limit_s: float, monkeypatch: pytest.MonkeyPatch) -> int:
    """How often the agent looks until it ends, where its one rank is in these states ("": there is none), and in the
    last of them for ever."""
    seen = itertools.chain(states.split(","), itertools.repeat(states.split(",")[-1], 10_000))
    looks: list[str] = []

    def children_of(pid: int) -> list[int]:
        assert pid == os.getpid()
        looks.append(next(seen))
        return [7] if looks[-1] else []

    def end(status: int) -> None:
        assert status == 1
        raise Ended

    monkeypatch.setattr(agent, "children_of", children_of)
    monkeypatch.setattr(agent, "state_of", lambda pid: looks[-1])
    monkeypatch.setattr(time, "sleep", lambda _: None)
    monkeypatch.setattr(os, "_exit", end)
    try:
        agent._watch(limit_s)
    except Ended:
        return len(looks)
    raise AssertionError("not reached")


def test_it_ends_when_its_ranks_are_gone_for_long(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A look is half a second: 6 of them are 3 s."""
    assert looks_until_the_end("R,S,", 3.0, monkeypatch) == 2 + 6
    assert "the ranks of this machine are gone for 3 s" in caplog.text
    assert looks_until_the_end("R,Z", 3.0, monkeypatch) == 1 + 6, "one that has ended and was not waited for is gone"
    assert looks_until_the_end("S,,,,,,T,", 3.0, monkeypatch) == 7 + 6, "they were started again in time"
    with pytest.raises(StopIteration):  # machines that are still to come are waited for
        looks_until_the_end("", 3.0, monkeypatch)


def test_the_rest_is_torchruns(monkeypatch: pytest.MonkeyPatch) -> None:
    given: list[Any] = []
    limits: queue.Queue[float] = queue.Queue()
    monkeypatch.setattr(torchrun, "main", given.append)
    monkeypatch.setattr(agent, "_watch", limits.put)
    agent.main(["--gone-s", "7.5", "--nnodes", "2", "-m", "x", "--gone-s", "1"])
    assert given == [["--nnodes", "2", "-m", "x", "--gone-s", "1"]]
    assert limits.get(timeout=60) == 7.5
