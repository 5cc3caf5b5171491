"""Settings of vLLM that a trainer needs; everything else keeps vLLM's default."""

from __future__ import annotations

import ipaddress
from typing import Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from sapo_vl.strict import Strict


class VllmConfig(Strict):
    """Section `rollout.vllm`: of the engine in process, and of a server that `sapo-vl serve` starts."""

    tensor_parallel: int = Field(default=1, ge=1)  # ranks in a row that share an engine; GPUs of a server
    gpu_memory_utilization: float = Field(default=0.45, gt=0, lt=1)  # share of a GPU's memory for weights and KV cache
    kv_cache_gib: int = Field(default=1, ge=1)  # size of the KV cache where there is no GPU
    max_num_seqs: int = Field(default=0, ge=0)  # responses sampled at a time; 0 = what the cache holds, 256 on a CPU
    max_images_per_prompt: int = Field(default=8, ge=1)  # vLLM must know it when it starts
    enforce_eager: bool = False  # no CUDA graphs: slower, starts sooner, needs less memory. Always so on a CPU
    sleep: bool = True  # give the GPU's memory back while the trainer works. Nothing on a CPU, nothing for a server

    def check_ranks(self, ranks: int) -> None:
        """Raises ValueError if so many ranks cannot be dealt to engines."""
        if ranks % self.tensor_parallel:
            raise ValueError(
                f"rollout.vllm.tensor_parallel={self.tensor_parallel} with {ranks} ranks; use 1 (an engine per rank) "
                "or another divisor of the number of ranks"
            )


class ServerConfig(Strict):
    """Section `rollout.server`: vLLM servers that are already running, best started by `sapo-vl serve`."""

    urls: tuple[str, ...] = ()  # http://127.0.0.1:8000; all of them serve the model of model.path
    # Servers beyond this machine, and `sapo-vl serve --host` beyond loopback. Whoever reaches such a port can run
    # any method of vLLM's workers without a key: only inside a network that nobody else can reach.
    allow_remote: bool = False
    # For the answer to one prompt (or as long as max_new_tokens take at 10 a second), and at least for reading weights.
    timeout_s: float = Field(default=600.0, gt=0)
    startup_s: float = Field(default=600.0, ge=0)  # waited for servers at the start, and when none is left
    retries: int = Field(default=2, ge=0)  # times that a prompt without an answer is sent again
    max_in_flight: int = Field(default=64, ge=1)  # prompts of one rank at one server
    # The way of new weights. "disk": through sync_dir. "nccl": from GPU to GPU, where trainer and servers have them.
    transfer: Literal["disk", "nccl"] = "disk"
    nccl_address: str = "127.0.0.1"  # with "nccl": this trainer's main machine, as servers reach it
    # With model.lora: a sync hands over adapters alone, and servers merge them into the model they were started from.
    adapters_only: bool = False
    sync_dir: str = ""  # folder for new weights that trainer and servers both see; "" = inside the run folder

    @field_validator("urls")
    @classmethod
    def _addresses(cls, urls: tuple[str, ...]) -> tuple[str, ...]:
        found = tuple(_address(url) for url in urls)
        if twice := sorted({url for url in found if found.count(url) > 1}):
            raise ValueError(f"rollout.server.urls names {twice[0]} twice")
        return found

    @model_validator(mode="after")
    def _this_machine_unless_told(self) -> ServerConfig:
        far = [url for url in self.urls if not is_loopback(urlsplit(url).hostname or "")]
        if far and not self.allow_remote:
            raise ValueError(
                f"rollout.server.urls: {far[0]} is not on this machine. Weights are handed over through routes that "
                "ask for no key; set rollout.server.allow_remote=true if nobody else can reach that network"
            )
        return self

    @model_validator(mode="after")
    def _ways_that_go_together(self) -> ServerConfig:
        if self.transfer != "nccl":
            return self
        if self.adapters_only:
            raise ValueError(
                "rollout.server.transfer=nccl with rollout.server.adapters_only=true: adapters alone go through a "
                "file; set transfer=disk, or adapters_only=false"
            )
        far = [url for url in self.urls if not is_loopback(urlsplit(url).hostname or "")]
        if far and is_loopback(self.nccl_address):
            raise ValueError(
                f"rollout.server.nccl_address={self.nccl_address} with {far[0]} in rollout.server.urls: that server "
                "would look for the trainer on its own machine; give the address of the trainer's main machine"
            )
        return self


def is_loopback(host: str) -> bool:
    """Whether a host name or address stands for this machine only."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _address(url: str) -> str:
    """`url` without a slash at its end; ValueError unless it is scheme, host and port and nothing else."""
    fault = f"rollout.server.urls: {url!r} is no address of a server; write it like http://127.0.0.1:8000"
    try:
        parts = urlsplit(url)
        port = parts.port  # raises for one beyond 65535
    except ValueError as error:
        raise ValueError(f"{fault} ({error})") from None
    plain = not (parts.path.strip("/") or parts.query or parts.fragment or parts.username)
    if parts.scheme not in ("http", "https") or not parts.hostname or port is None or not plain:
        raise ValueError(fault)
    return url.rstrip("/")
