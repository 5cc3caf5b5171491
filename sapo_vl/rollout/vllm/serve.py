"""The command line of a vLLM server that a trainer with the same config can use (`sapo-vl serve`)."""

from __future__ import annotations

import json
import sys
from typing import Any

from sapo_vl.model.loading import ModelConfig
from sapo_vl.rollout.base import RolloutConfig
from sapo_vl.rollout.vllm.config import is_loopback
from sapo_vl.rollout.vllm.contract import check_route_source, check_transfer
from sapo_vl.rollout.vllm.v0_32 import engine_settings, precision_environment


class ServeError(ValueError):
    """A server that must not be started like this. Says why."""


def serve_command(
    model: ModelConfig, rollout: RolloutConfig, host: str, port: int, *, on_cpu: bool, routes: bool = False
) -> tuple[list[str], dict[str, str]]:
    """(command, environment variables to add).

    The server runs in vLLM's development mode, without which it has no routes for weights and caches. These routes ask
    for no key, and one of them calls any method of the workers. So it listens on loopback; another host needs
    `rollout.server.allow_remote`, which raises ServeError otherwise. It fetches no images: they come with the request.
    With `routes` (replay=r3) it returns the experts of every token; RoutesMissing where it cannot.
    """
    if not is_loopback(host) and not rollout.server.allow_remote:
        raise ServeError(
            f"--host {host}: whoever reaches this port can run code in the server without a key. Use 127.0.0.1, or set "
            "rollout.server.allow_remote=true inside a network that nobody else can reach"
        )
    vllm = rollout.vllm
    if routes:
        check_route_source("vllm_server", on_cpu=on_cpu)
    check_transfer(rollout.server.transfer, on_cpu=on_cpu)
    longest = model.max_prompt_tokens + rollout.max_new_tokens
    settings = engine_settings(model.path, model, vllm, longest, on_cpu=on_cpu, routes=routes)
    settings |= {
        "host": host,
        "port": port,
        "allowed_media_domains": "none.invalid",
        "generation_config": "vllm",  # nothing of the folder's sampling settings: requests carry all of theirs
        "enable_scale_out": True,
        "disable_uvicorn_access_log": True,
    }
    if rollout.server.transfer == "nccl":
        settings["weight_transfer_config"] = {"backend": "nccl"}
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server"]
    for name, value in settings.items():
        command += _option(name.replace("_", "-"), value)
    environment = {"VLLM_SERVER_DEV_MODE": "1", "VLLM_NO_USAGE_STATS": "1", **precision_environment(model.dtype)}
    if routes:
        environment["VLLM_USE_V2_MODEL_RUNNER"] = "1"
    if on_cpu:
        environment |= {
            "VLLM_CPU_KVCACHE_SPACE": str(vllm.kv_cache_gib),
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            # Its sampler is compiled at the first call, which takes a C++ compiler and up to a minute for nothing here.
            "TORCHDYNAMO_DISABLE": "1",
        }
    return command, environment


def _option(name: str, value: Any) -> list[str]:
    if value is None:
        return []
    if isinstance(value, bool):
        return [f"--{name}" if value else f"--no-{name}"]
    return [f"--{name}", json.dumps(value) if isinstance(value, dict) else str(value)]
