"""Machines that watch each other: they meet, leave in good order, and end when one is gone without a word.

A link that is cut is in tests/test_several_machines.py.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
from collections.abc import Callable
from typing import Any

import pytest

from sapo_vl.lifeline import CUT_OFF, Stopped
from sapo_vl.machines import watch
from sapo_vl.machines.watch import machines_watched


class Ranks:
    """So many machines of one rank, threads of this process: as much of a World as is asked for."""

    def __init__(self, size: int, meddle: Callable[[list[Any]], None] = lambda _: None) -> None:
        self.size, self.items = size, [None] * size
        self.together = threading.Barrier(size, action=lambda: meddle(self.items))

    def of(self, rank: int) -> Any:
        ranks = self

        class World:
            size = ranks.size

            def gather(self, item: Any) -> list[Any]:
                ranks.items[rank] = item
                ranks.together.wait(30)
                return list(ranks.items)

        World.rank = rank  # type: ignore[attr-defined]
        return World()


@pytest.fixture
def ends(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Statuses with which a rank would have ended."""
    found: list[int] = []
    monkeypatch.setattr(os, "_exit", found.append)
    monkeypatch.setattr(watch, "LAST_WORDS_S", 0.05)
    monkeypatch.setattr(watch, "MEETING_S", 20.0)
    for name, value in (("LOCAL_WORLD_SIZE", "1"), ("LOCAL_RANK", "0"), ("MASTER_ADDR", "127.0.0.1")):
        monkeypatch.setenv(name, value)
    return found


def run(ranks: Ranks, body: Callable[[int], None]) -> list[BaseException]:
    """`body` on all ranks, watched; what they raised."""
    raised: list[BaseException] = []

    def one(rank: int) -> None:
        try:
            with machines_watched(ranks.of(rank), 60):
                body(rank)
        except (Stopped, ZeroDivisionError, AssertionError) as error:
            raised.append(error)

    threads = [threading.Thread(target=one, args=(rank,)) for rank in range(ranks.size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
    return raised


def stopped(_: int) -> None:
    raise Stopped("told to stop")


def test_all_leave_in_their_own_time_and_nobody_ends(ends: list[int], caplog: pytest.LogCaptureFixture) -> None:
    left = threading.Event()

    def body(rank: int) -> None:
        if rank == 2:
            left.set()
        else:
            assert left.wait(30)

    assert run(Ranks(3), body) == []
    assert len(run(Ranks(2), stopped)) == 2, "told to stop, all leave together"
    assert ends == [] and caplog.text == ""


def test_one_that_fails_ends_the_others(ends: list[int], caplog: pytest.LogCaptureFixture) -> None:
    told = threading.Event()

    def body(rank: int) -> None:
        if rank == 1:
            raise ZeroDivisionError
        for _ in range(300):
            if len(ends) == 2 or told.wait(0.1):
                return

    assert [type(error) for error in run(Ranks(3), body)] == [ZeroDivisionError]
    assert ends == [CUT_OFF, CUT_OFF]
    assert caplog.text.count(f"machine {socket.gethostname()} (127.0.0.1, rank 1 and those beside it) has ended") == 2


def test_a_stranger_is_not_taken_for_a_machine(ends: list[int], caplog: pytest.LogCaptureFixture) -> None:
    strangers = []

    def meddle(machines: list[Any]) -> None:
        for said in (b"GET / HTTP/1.1\r\nHost: somebody\r\n\r\n", machines[0].token + b"?" * 16):
            strangers.append(socket.create_connection(("127.0.0.1", machines[0].port)))
            strangers[-1].sendall(said)

    def body(rank: int) -> None:
        for stranger in strangers if rank else ():
            with contextlib.suppress(OSError):
                assert stranger.recv(1) == b"", "it is hung up on"

    assert run(Ranks(2, meddle), body) == []
    assert ends == [] and caplog.text == ""


def test_the_kernel_asks_often_enough() -> None:
    """Given up after the limit, give or take a probe; 1 lost packet in 10 must not do it: 0.19 ** 7 < 1e-5 at 8 s."""
    with socket.socket() as link:
        for limit in (8.0, 60.0, 600.0):
            watch._probe(link, limit)
            options = (socket.TCP_KEEPIDLE, socket.TCP_KEEPINTVL, socket.TCP_KEEPCNT)
            idle, interval, count = (link.getsockopt(socket.IPPROTO_TCP, option) for option in options)
            assert link.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE) == 1
            assert limit - interval <= idle + interval * count <= limit
            assert count >= 7


def test_on_one_machine_there_is_nothing_to_watch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)

    class Alone:
        size, rank = 2, 0

    threads = threading.active_count()
    with machines_watched(Alone(), 60):  # type: ignore[arg-type]
        assert threading.active_count() == threads
