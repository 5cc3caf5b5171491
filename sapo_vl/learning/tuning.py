"""What the machine says about how DeepSpeed should work: found out once, at the start of a stage."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Mapping
from pathlib import Path

import torch
from deepspeed.ops.op_builder import CPUAdamBuilder  # pyright: ignore[reportAttributeAccessIssue]  (made when loaded)

from sapo_vl.distributed import World
from sapo_vl.learning.optim import ON_CPU, OptimConfig, Tuning, ZeroConfig

log = logging.getLogger(__name__)
# Norms, biases and routers: gathering them one by one takes as long as a layer, and whole they are a few MB.
WHOLE_ELEMENTS = 100_000
THREADS = "OMP_NUM_THREADS"
BUILD_S = 900.0  # for DeepSpeed's Adam


def tune(optim: OptimConfig, zero: ZeroConfig, world: World) -> Tuning:
    """For this machine. All ranks call it together, and get the same. On a CPU that is what it has always been: a
    fixed seed is to give the same run."""
    if world.device.type == "cpu":
        return ON_CPU
    offloaded = zero.offload_optimizer or zero.offload_params
    return Tuning(
        overlap=True,
        whole_elements=WHOLE_ELEMENTS,
        pin_memory=offloaded,
        cpu_adam=zero.offload_optimizer and optim.name == "adamw" and cpu_adam_works(world),
    )


def cpu_adam_works(world: World) -> bool:
    """Whether DeepSpeed's Adam for the CPU can be used on every rank; compiles it, which takes a minute the first time.
    Says so where it cannot."""
    faults = world.gather(cpu_adam_fault())
    if fault := next(filter(None, faults), ""):
        if world.is_main:
            log.warning(
                "zero.offload_optimizer: DeepSpeed's Adam for the CPU cannot be compiled everywhere (%s). torch's "
                "takes its place, which is several times slower; a C++ compiler and ninja are needed",
                fault,
            )
        return False
    return True


def cpu_adam_fault(within: float = BUILD_S) -> str:
    """Why DeepSpeed's Adam for the CPU cannot be used by this process; "" if it can.

    torch compiles it for the first that asks while the others wait, for ever if that one was killed.
    """
    faults: list[str] = []

    def build() -> None:
        try:
            CPUAdamBuilder().load()
            faults.append("")
        except Exception as error:  # a compiler, a linker, ninja or CUDA's headers may be what is missing
            faults.append(f"{type(error).__name__}: {' '.join(str(error).split())[:300]}")

    thread = threading.Thread(target=build, name="cpu_adam", daemon=True)
    thread.start()
    thread.join(within)
    if faults:
        return faults[0]
    return f"not built after {within:g} s; a build that was killed leaves a file `lock` in torch's extension folder"


def use_cores(zero: ZeroConfig, world: World) -> int:
    """Gives an optimizer on the host this rank's share of the cores, if only torchrun has said otherwise. Returns the
    threads of this process.

    On a CPU nothing is changed: sums over other numbers of threads differ in their last bits.
    """
    if world.device.type != "cpu" and zero.offload_optimizer:
        share = threads_of_rank(os.environ, launched_with(os.getppid()), len(os.sched_getaffinity(0)))
        if share:
            torch.set_num_threads(share)
            os.environ[THREADS] = str(share)  # for what brings an OpenMP of its own
    return torch.get_num_threads()


def threads_of_rank(environ: Mapping[str, str], launcher: Mapping[str, str], cores: int) -> int:
    """How many threads a rank should have, 0 = as many as it has.

    torchrun sets one for each of several ranks, unless the user has named a number; the ranks cannot tell one from the
    other, so `launcher` is what torchrun itself was started with.
    """
    ranks = int(environ.get("LOCAL_WORLD_SIZE", "1"))
    if "TORCHELASTIC_RUN_ID" not in environ or environ.get(THREADS) != "1" or THREADS in launcher:
        return 0
    return max(1, cores // ranks)


def launched_with(pid: int) -> dict[str, str]:
    """The environment that a process was started with; {} where the system does not tell."""
    try:
        content = Path(f"/proc/{pid}/environ").read_bytes()
    except OSError:
        return {}
    pairs = (entry.partition(b"=") for entry in content.split(b"\0") if b"=" in entry)
    return {name.decode(errors="replace"): value.decode(errors="replace") for name, _, value in pairs}
