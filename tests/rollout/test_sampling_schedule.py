"""What is sampled at a time, by hand."""

from __future__ import annotations

import os
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from sapo_vl.rollout import schedule
from sapo_vl.rollout.schedule import Held, Part, Room, free_share, one_pass

# A response: 10 columns of 3 bytes and 2 entries of the vocabulary of 28, so 86.
ROOM = Room(bytes=1000, token_bytes=3, vocabulary=2, max_new_tokens=8)
WAITING = [Part(prompt=i, first=0, count=4) for i in range(3)]


def test_need() -> None:
    assert ROOM.columns == 10 and ROOM.response_bytes == 86
    assert ROOM.need(Held()) == 0
    assert ROOM.need(Held().plus(20, 4)) == 20 * 3 + 4 * 86 == 404
    assert ROOM.need(Held().plus(20, 4).plus(50, 4)) == 2 * 50 * 3 + 8 * 86, "both prompts are as long as the longest"


@pytest.mark.parametrize(
    ("lengths", "held", "count"),
    [
        ([20, 20, 20], Held(), 2),  # 404 each
        ([20, 55, 20], Held(), 1),  # 2 * 165 + 688 = 1018
        ([5, 5, 5], Held(prompts=1, longest=5, responses=1), 2),  # 101, then 359 each
        ([5, 5, 5], Held(prompts=2, longest=5, responses=8), 0),  # 718
    ],
)
def test_as_many_come_in_as_fit(lengths: list[int], held: Held, count: int) -> None:
    parts, rest = ROOM.admit(WAITING, lengths, held)
    assert parts == WAITING[:count] and rest == WAITING[count:]


@pytest.mark.parametrize(("memory", "count"), [(404, 4), (403, 3), (60 + 2 * 86, 2), (60 + 2 * 86 - 1, 1), (1, 1)])
def test_a_group_that_does_not_fit_is_cut_when_it_is_alone(memory: int, count: int) -> None:
    room = Room(bytes=memory, token_bytes=3, vocabulary=2, max_new_tokens=8)
    parts, rest = room.admit(WAITING, [20, 20, 20], Held())
    assert parts == [Part(prompt=0, first=0, count=count)]
    assert rest == ([] if count == 4 else [Part(prompt=0, first=count, count=4 - count)]) + WAITING[1:]
    if count < 4:
        assert room.admit(rest, [20, 20, 20], Held().plus(20, count))[0] == []


def test_a_single_response_comes_in_whatever_it_takes() -> None:
    alone = [Part(prompt=0, first=3, count=1), Part(prompt=1, first=0, count=4)]
    assert ROOM.admit(alone, [10**6, 5], Held()) == (alone[:1], alone[1:])


def test_prompts_of_a_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schedule, "PREFILL_TOKENS", 100)
    for lengths, count in (([50, 50, 50], 2), ([101, 1, 1], 1), ([100, 1, 1], 1), ([1, 1, 1], 3)):
        assert one_pass(WAITING, lengths) == count
    assert one_pass([], []) == 0


def test_the_share_of_a_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    """A power of two on a CPU, so that a little more or less memory changes nothing."""
    monkeypatch.setitem(os.environ, "LOCAL_WORLD_SIZE", "2")
    for available, expected in ((8 << 30, 2 << 30), ((8 << 30) - 1, 1 << 30), ((12 << 30), 2 << 30), (0, 1 << 20)):
        memory = SimpleNamespace(available=available)
        monkeypatch.setattr(schedule.psutil, "virtual_memory", lambda memory=memory: memory)
        assert free_share(0.5, torch.device("cpu")) == expected


def test_any_memory_samples_all(seed: int) -> None:
    """Whatever there is, everything comes in, in order, and nothing twice."""
    rng = np.random.default_rng(seed)
    for _ in range(50):
        waiting = [Part(prompt=i, first=0, count=int(rng.integers(1, 9))) for i in range(int(rng.integers(1, 9)))]
        lengths = rng.integers(1, 60, len(waiting)).tolist()
        room = Room(bytes=int(rng.integers(1, 3000)), token_bytes=3, vocabulary=2, max_new_tokens=8)
        right = [(p.prompt, j) for p in waiting for j in range(p.count)]
        found: list[tuple[int, int]] = []
        while waiting:
            parts, waiting = room.admit(waiting, lengths, Held())
            held = Held()
            for p in parts:
                held = held.plus(lengths[p.prompt], p.count)
            assert room.need(held) <= room.bytes or (len(parts) == 1 and parts[0].count == 1)
            found += [(p.prompt, j) for p in parts for j in range(p.first, p.first + p.count)]
        assert found == right
