"""The command line of a vLLM server that a trainer with the same config can use (`sapo-vl serve`)."""

from __future__ import annotations

import json
import sys

from sapo_vl.models import ModelConfig
from sapo_vl.rollout.base import RolloutConfig
from sapo_vl.rollout.vllm.config import is_loopback
from sapo_vl.rollout.vllm.v0_32 import WORKER


class ServeError(ValueError):
    """A server that must not be started like this. Says why."""


def serve_command(
    model: ModelConfig, rollout: RolloutConfig, host: str, port: int, *, on_cpu: bool
) -> tuple[list[str], dict[str, str]]:
    """(command, environment variables to add).

    The server runs in vLLM's development mode, without which it has no routes for weights and caches. These routes ask
    for no key, and one of them calls any method of the workers. So it listens on loopback; another host needs
    `rollout.server.allow_remote`, which raises ServeError otherwise. It fetches no images: they come with the request.
    """
    if not is_loopback(host) and not rollout.server.allow_remote:
        raise ServeError(
            f"--host {host}: whoever reaches this port can run code in the server without a key. Use 127.0.0.1, or set "
            "rollout.server.allow_remote=true inside a network that nobody else can reach"
        )
    vllm = rollout.vllm
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", model.path]
    command += ["--revision", model.revision] if model.revision else []
    options = {
        "host": host,
        "port": port,
        "dtype": model.dtype,
        "tensor-parallel-size": vllm.tensor_parallel,
        "gpu-memory-utilization": vllm.gpu_memory_utilization,
        "max-num-seqs": vllm.max_num_seqs,
        "max-model-len": model.max_prompt_tokens + rollout.max_new_tokens,
        "worker-extension-cls": WORKER,
        # Log-probs of the law that is sampled from: after bans, temperature, top-k and top-p.
        "logprobs-mode": "processed_logprobs",
        "limit-mm-per-prompt": json.dumps({"image": vllm.max_images_per_prompt, "video": 0}),
        # Images arrive resized; with the same bounds a second resize changes nothing.
        "mm-processor-kwargs": json.dumps(
            {"size": {"shortest_edge": model.min_pixels, "longest_edge": model.max_pixels}}
        ),
        "allowed-media-domains": "none.invalid",
        "generation-config": "vllm",  # nothing of the folder's sampling settings: requests carry all of theirs
        "seed": 0,  # of what no request names; all requests carry their own
    }
    for name, value in options.items():
        command += [f"--{name}", str(value)]
    command += ["--enable-scale-out", "--disable-uvicorn-access-log"]
    command += ["--enforce-eager"] if vllm.enforce_eager or on_cpu else []
    environment = {"VLLM_SERVER_DEV_MODE": "1", "VLLM_NO_USAGE_STATS": "1"}
    if on_cpu:
        environment |= {
            "VLLM_CPU_KVCACHE_SPACE": str(vllm.kv_cache_gib),
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            # Its sampler is compiled at the first call, which takes a C++ compiler and up to a minute for nothing here.
            "TORCHDYNAMO_DISABLE": "1",
        }
    return command, environment
