"""What the ranks of an engine hand each other in memory. Ranks are threads here; test_vllm.py has processes."""

from __future__ import annotations

import errno
import gc
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from sapo_vl.distributed import World
from sapo_vl.rollout.vllm.shared import can_share, share

RANKS = 3


class Ranks:
    """The rank's part of a world of threads. `lie` is what its first gather says in place of (pid, fd, key, sizes)."""

    size = RANKS

    def __init__(self, rank: int, board: list[Any], barrier: threading.Barrier, lie: Any = None) -> None:
        self.rank, self._board, self._barrier, self._lie = rank, board, barrier, lie

    def gather(self, item: Any) -> list[Any]:
        if self._lie is not None and isinstance(item, tuple):
            item = self._lie(*item)
        self._board[self.rank] = item
        self._barrier.wait()
        seen = list(self._board)
        self._barrier.wait()
        return seen


def on_ranks(buffers: list[list[Any]], lies: dict[int, Any] | None = None) -> list[Any]:
    board, barrier = [None] * RANKS, threading.Barrier(RANKS, timeout=60)
    worlds: list[Any] = [Ranks(rank, board, barrier, (lies or {}).get(rank)) for rank in range(RANKS)]
    with ThreadPoolExecutor(RANKS) as pool:
        return list(pool.map(share, worlds, buffers))


def shared_mappings() -> int:
    return Path("/proc/self/maps").read_text().count("sapo_vl_shared")


def check_what_is_read(seed: int) -> None:
    rng = np.random.default_rng(seed)
    arrays = [[rng.integers(0, 256, n, dtype=np.uint8) for n in sizes] for sizes in ([0, 5, 64, 100_003], [], [7])]
    arrays[2].append(np.asarray(rng.normal(size=(50, 3)), np.float32))  # not bytes, and of two dimensions
    seen = on_ranks([[memoryview(a) for a in row] for row in arrays])
    expected = [[a.tobytes() for a in row] for row in arrays]
    assert [[[bytes(view) for view in row] for row in rank] for rank in seen] == [expected] * RANKS

    seen[0][0][2][:] = bytes(64)
    assert bytes(seen[0][0][2]) == bytes(64)
    assert bytes(seen[1][0][2]) == arrays[0][2].tobytes(), "one rank's writing is seen by another"
    assert all(np.frombuffer(rank[2][1], np.float32).ctypes.data % 64 == 0 for rank in seen)
    assert shared_mappings() > 0


def test_every_rank_reads_what_every_rank_wrote(seed: int) -> None:
    files = len(os.listdir("/proc/self/fd"))
    check_what_is_read(seed)
    gc.collect()
    assert shared_mappings() == 0, "memory is kept after the last view"
    assert len(os.listdir("/proc/self/fd")) == files


@pytest.mark.parametrize(
    "lie",
    [
        lambda pid, fd, key, sizes: (2**22 + 1, fd, key, sizes),  # beyond the kernel's greatest process number
        lambda pid, fd, key, sizes: (pid, 10**6, key, sizes),
        lambda pid, fd, key, sizes: (pid, fd, bytes(16), sizes),
    ],
    ids=["no such process", "no such file", "another file"],
)
def test_no_rank_shares_where_one_cannot_be_read(lie: Any) -> None:
    assert on_ranks([[b"a"], [b"b"], [b"c"]], {1: lie}) == [None] * RANKS
    assert shared_mappings() == 0


@pytest.mark.parametrize("call", ["memfd_create", "write"])
def test_no_rank_shares_where_one_cannot_write(call: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The others are told, and do not wait for it."""
    real, full = getattr(os, call), threading.Semaphore(1)

    def fails_once(*given: Any) -> Any:
        if full.acquire(blocking=False):
            raise OSError(errno.ENOSPC, "no room")
        return real(*given)

    files = len(os.listdir("/proc/self/fd"))
    monkeypatch.setattr(os, call, fails_once)
    assert on_ranks([[b"a"], [b"b"], [b"c"]]) == [None] * RANKS
    assert len(os.listdir("/proc/self/fd")) == files


def test_a_world_of_one_shares_with_itself() -> None:
    assert can_share(World.alone())
    assert share(World.alone(), [b"abc", b""]) == [[memoryview(b"abc"), memoryview(b"")]]
