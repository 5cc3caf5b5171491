"""Ranks and the few collectives the loop needs. One process without a launcher is a world of one."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch.distributed.rendezvous import rendezvous

T = TypeVar("T")
COLLECTIVE_TIMEOUT = timedelta(minutes=60)  # a rank may wait this long for the slowest rollout of another


@dataclass(frozen=True, slots=True, kw_only=True)
class World:
    """This process among the others."""

    rank: int
    size: int
    device: torch.device
    group: Any = None  # the process group of its collectives; None = the default one

    @classmethod
    def alone(cls) -> World:
        """A world of one on the CPU. Joins nothing."""
        return cls(rank=0, size=1, device=torch.device("cpu"))

    def apart(self) -> World:
        """The same ranks, on the CPU, with collectives that cannot meet those of this world: for another thread.

        All ranks call it together.
        """
        if self.size == 1:
            return self
        group = dist.new_group(backend="gloo", timeout=COLLECTIVE_TIMEOUT)
        return dataclasses.replace(self, device=torch.device("cpu"), group=group)

    def neighbours(self, size: int) -> World:
        """The world of `size` ranks in a row that this rank is in: 0 to size - 1, size to 2 * size - 1, ...

        All ranks call it together, with a divisor of their number.
        """
        if size == self.size:
            return self
        group = dist.new_subgroups(size, timeout=COLLECTIVE_TIMEOUT)[0] if size > 1 else None
        return dataclasses.replace(self, rank=self.rank % size, size=size, group=group)

    @property
    def is_main(self) -> bool:
        return self.rank == 0

    def _reduce(self, values: np.ndarray, op: Any) -> np.ndarray:
        if self.size == 1:
            return values
        tensor = torch.from_numpy(values.copy()).to(self.device)
        dist.all_reduce(tensor, op=op, group=self.group)
        return tensor.cpu().numpy()

    def sum(self, values: Sequence[float] | np.ndarray) -> np.ndarray:
        """Elementwise sum over ranks, float64, the same on every rank."""
        return self._reduce(np.asarray(values, np.float64), dist.ReduceOp.SUM)

    def maxima(self, values: Sequence[float] | np.ndarray) -> np.ndarray:
        """Elementwise maximum over ranks, float64, the same on every rank."""
        return self._reduce(np.asarray(values, np.float64), dist.ReduceOp.MAX)

    def max(self, value: float) -> float:
        return float(self.maxima([value])[0])

    def any(self, flag: bool) -> bool:
        return self.max(float(flag)) > 0

    def gather(self, item: T) -> list[T]:
        """The items of all ranks, in rank order, on every rank."""
        if self.size == 1:
            return [item]
        out: list[Any] = [None] * self.size
        dist.all_gather_object(out, item, group=self.group)
        return out

    def exchange(self, parcels: Sequence[bytes]) -> list[bytes]:
        """Hands parcels[r] to rank r; returns what each rank had for this one. Nobody else gets to see a parcel."""
        if self.size == 1:
            return list(parcels)
        sizes = self.gather([len(parcel) for parcel in parcels])
        mine = [row[self.rank] for row in sizes]
        got = [torch.empty(n, dtype=torch.uint8, device=self.device) for n in mine]
        todo: list[Any] = []
        for peer, parcel in enumerate(parcels):
            if peer == self.rank:
                continue
            global_rank = peer if self.group is None else dist.get_global_rank(self.group, peer)
            if parcel:
                sent = torch.frombuffer(bytearray(parcel), dtype=torch.uint8).to(self.device)
                todo.append(dist.P2POp(dist.isend, sent, global_rank, self.group))
            if mine[peer]:
                todo.append(dist.P2POp(dist.irecv, got[peer], global_rank, self.group))
        for request in dist.batch_isend_irecv(todo) if todo else ():
            request.wait()
        return [
            parcels[peer] if peer == self.rank else tensor.cpu().numpy().tobytes() for peer, tensor in enumerate(got)
        ]

    def of_main(self, work: Callable[[], T], meet_every_s: float = 60.0) -> T:
        """What `work` gives on the main rank, on every rank; it runs in a thread there, and nowhere else.

        The ranks meet meanwhile, so that `work` may take longer than COLLECTIVE_TIMEOUT: to read hundreds of gigabytes
        back from a slow disk, for example. All ranks call it together. What `work` raises is raised on the main rank.
        """
        if self.size == 1:
            return work()
        with ThreadPoolExecutor(1) as pool:
            going = pool.submit(work) if self.is_main else None
            while not self.gather(going is not None and bool(wait([going], meet_every_s).done))[0]:
                pass
            given: Any = going.result() if going is not None else None
        return self.gather(given)[0]

    def barrier(self) -> None:
        if self.size > 1:
            dist.barrier(group=self.group)


def init_world() -> World:
    """Joins the process group that torchrun or the deepspeed launcher describes; nccl on GPUs, gloo on CPUs.

    Without a launcher the five variables are set for a world of one: DeepSpeed would try MPI otherwise.
    """
    import deepspeed

    if "RANK" not in os.environ:
        os.environ.update(RANK="0", LOCAL_RANK="0", WORLD_SIZE="1", MASTER_ADDR="127.0.0.1")
        os.environ["MASTER_PORT"] = "0"  # whichever is free when it listens; one that was free before may be taken
    local_rank = int(os.environ.get("LOCAL_RANK", "0"))
    gpu = torch.cuda.is_available()
    if gpu:
        torch.cuda.set_device(local_rank)
    else:
        # DeepSpeed would compile a C++ all-reduce on first use: minutes, and a compiler that may not be there.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
    backend = "nccl" if gpu else "gloo"
    _join_this_start(backend)
    deepspeed.init_distributed(dist_backend=backend, timeout=COLLECTIVE_TIMEOUT, verbose=False)
    device = torch.device("cuda", local_rank) if gpu else torch.device("cpu")
    return World(rank=dist.get_rank(), size=dist.get_world_size(), device=device)


def _join_this_start(backend: str) -> None:
    """Under a torchrun that has started its ranks again, they meet under names of this start.

    torchrun 2.14 keeps one store for all of them, and a rank that is too early would find there the addresses that
    those of the start before have left: it waits for ever, or is refused.
    """
    if (start := os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) == "0" or dist.is_initialized():
        return
    store, rank, size = next(iter(rendezvous("env://", timeout=COLLECTIVE_TIMEOUT)))
    store = dist.PrefixStore(f"start_{start}", store)
    dist.init_process_group(backend, store=store, rank=rank, world_size=size, timeout=COLLECTIVE_TIMEOUT)


def shutdown_world() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()
