"""Rows are read once, in a thread, and what went wrong is raised where they are asked for."""

from __future__ import annotations

import threading

import pytest

from sapo_vl.data.rows_ahead import RowsAhead
from sapo_vl.data.sampler import QuotaSampler


def test_rows_are_read_once_and_before_they_are_asked_for() -> None:
    read: list[tuple[int, str]] = []
    done = threading.Event()

    def look(row: int) -> int:
        read.append((row, threading.current_thread().name))
        if row == 7:
            done.set()
        return 10 * row

    ahead = RowsAhead(look)
    ahead.expect([3, 5, 3, 7])
    assert done.wait(20), "read without being asked for"
    assert (ahead.take(5), ahead.take(5), ahead.take(4)) == (50, None, None)
    ahead.expect([3, 8])  # 7 is dropped, 3 is there already
    assert (ahead.take(8), ahead.take(3), ahead.take(7)) == (80, 30, None)
    assert sorted(row for row, _ in read) == [3, 5, 7, 8]
    assert all(name.startswith("rows_ahead") for _, name in read)
    ahead.close()


def test_what_went_wrong_is_raised_where_the_row_is_asked_for() -> None:
    def look(row: int) -> int:
        raise MemoryError(f"row {row}")

    ahead = RowsAhead(look)
    ahead.expect([1, 2])
    with pytest.raises(MemoryError, match="row 2"):
        ahead.take(2)
    ahead.close()


def test_a_look_at_the_next_batch_does_not_move_the_walk(seed: int) -> None:
    tasks = ["a", "b", "b", "a", "b"] * 3
    watched, alone = (QuotaSampler(tasks, {"a": 1, "b": 2}, 5, seed) for _ in range(2))
    for _ in range(9):  # over the ends of several epochs
        seen = watched.peek()
        assert seen == watched.peek() and watched.state_dict() == alone.state_dict()
        assert next(watched) == seen == next(alone)
        assert watched.further(["b", "a"]) == alone.further(["b", "a"])
