"""Where a run is planned for, and the rates that its seconds are reckoned with."""

from __future__ import annotations

from dataclasses import dataclass

import psutil
import torch

GB = 10**9


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """Hosts that are alike. Without GPUs ranks are processes, and everything lies in the memory of the host."""

    ranks: int
    ranks_per_host: int
    gpu_bytes: int  # of one; 0 = no GPU
    host_bytes: int  # of one

    @property
    def hosts(self) -> int:
        return -(-self.ranks // self.ranks_per_host)

    @property
    def usable_gpu_bytes(self) -> int:
        """Without what CUDA and NCCL take of their own, and a share that no allocator can fill."""
        return int(0.95 * self.gpu_bytes - 1.5 * GB)

    def text(self) -> str:
        host = f"{self.host_bytes / GB:,.0f} GB of memory"
        if not self.gpu_bytes:
            return f"{self.ranks} processes on a CPU, {host}"
        where = f"{self.hosts} hosts of {self.ranks_per_host}" if self.hosts > 1 else "one host"
        return f"{self.ranks} GPUs of {self.gpu_bytes / GB:.0f} GB on {where}, {host} each"


@dataclass(frozen=True, slots=True, kw_only=True)
class Rates:
    """Taken, not measured, but for the two that say so: an H100 or H200 in bfloat16 at about a third of its best."""

    flops_per_s: float = 280e12  # of matrix products, a GPU
    memory_bytes_per_s: float = 3e12  # of a GPU's memory
    gather_bytes_per_s: float = 150e9  # ZeRO-3 collects weights, into each GPU
    sync_bytes_per_s: float = 9e9  # weights into the engines beside the trainer
    disk_bytes_per_s: float = 2e9  # one host
    convert_bytes_per_s: float = 0.7e9  # expert weights turned on a CPU while they are read, one thread; measured
    cpu_adam_elements_per_s: float = 0.23e9  # one thread; measured: 4.4 ns an element
    cpu_adam_threads: int = 8  # of a rank beside a GPU
    decode_step_s: float = 0.008  # of a sampling step beside its reads: launches, sampling, scheduling


STATED = Rates()


@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """What problems and responses are like, as shares of the limits: a lognormal of mean 600 under a cap of 2048."""

    prompt_share: float = 0.42
    response_share: float = 0.3


def this_machine(ranks: int) -> Machine:
    """The GPUs that are here, or processes on the CPU. `ranks` 0 = one per GPU, or 2 on a CPU."""
    gpus = torch.cuda.device_count()
    count = ranks or gpus or 2
    return Machine(
        ranks=count,
        ranks_per_host=count,
        gpu_bytes=torch.cuda.get_device_properties(0).total_memory if gpus else 0,
        host_bytes=psutil.virtual_memory().total,
    )
