"""Memory that ranks of one machine share: what one of them wrote, the others read where it lies."""

from __future__ import annotations

import mmap
import os
import secrets
from collections.abc import Sequence
from contextlib import suppress
from typing import TypeAlias

from sapo_vl.distributed import World

Bytes: TypeAlias = bytes | bytearray | memoryview
KEY_BYTES = 16  # at the head of a file: that a number of a process and one of a file led to the file that was meant
ALIGN = 64


def can_share(world: World) -> bool:
    """Whether the ranks can open each other's memory: not on two machines, nor with process numbers of their own.

    All ranks call it together and are told the same.
    """
    return share(world, []) is not None


def share(world: World, buffers: Sequence[Bytes]) -> list[list[memoryview]] | None:
    """The buffers of every rank, in rank order; None on all ranks if one cannot write, or read what another wrote.

    All ranks call it together, with any number of buffers of any sizes. Views can be written to, and nobody else sees
    that. The memory is freed when the last view is gone, or all its processes; it is on no file system.
    """
    file = _written(buffers)
    try:
        places = world.gather(file and (os.getpid(), *file, [memoryview(b).nbytes for b in buffers]))
        read: list[list[memoryview]] = []
        with suppress(OSError):  # told by the number of those that were read
            read = [_read(f"/proc/{p[0]}/fd/{p[1]}", p[2], p[3]) for p in places if p is not None]
        return read if all(world.gather(len(read) == world.size)) else None  # behind it, nobody needs the number
    finally:
        if file:
            os.close(file[0])


def _written(buffers: Sequence[Bytes]) -> tuple[int, bytes] | None:
    """(number of the open file, its key); None where the system allows no such file, or has no room: the other ranks
    are told, who would wait for this one if it raised."""
    key = secrets.token_bytes(KEY_BYTES)
    try:
        fd = os.memfd_create("sapo_vl_shared")
    except OSError:
        return None
    try:
        _write(fd, [key, *buffers])
    except OSError:
        os.close(fd)
        return None
    return fd, key


def _write(fd: int, buffers: Sequence[Bytes]) -> None:
    for buffer, start in zip(buffers, _starts([memoryview(b).nbytes for b in buffers]), strict=True):
        os.lseek(fd, start, os.SEEK_SET)
        left = memoryview(buffer).cast("B")
        while left:  # a call writes 2 GiB at most
            left = left[os.write(fd, left) :]


def _read(path: str, key: bytes, sizes: Sequence[int]) -> list[memoryview]:
    """Raises OSError if the file is not there, cannot be opened, or is another one."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        if os.pread(fd, KEY_BYTES, 0) != key:
            raise OSError(f"{path} is not the file that was meant")
        whole = memoryview(mmap.mmap(fd, 0, access=mmap.ACCESS_COPY))
    finally:
        os.close(fd)
    starts = _starts([KEY_BYTES, *sizes])[1:]
    return [whole[start : start + size] for start, size in zip(starts, sizes, strict=True)]


def _starts(sizes: Sequence[int]) -> list[int]:
    """Where buffers of these sizes begin in a file: one behind the other, each aligned."""
    starts, at = [], 0
    for size in sizes:
        starts.append(at)
        at += -(-size // ALIGN) * ALIGN
    return starts
