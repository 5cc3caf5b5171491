"""Bytes of the engines that sample."""

from __future__ import annotations

from sapo_vl.config import RunConfig
from sapo_vl.planning.activations import Row, forward_peak_bytes
from sapo_vl.planning.machine import GB, Machine
from sapo_vl.planning.rows import patches_of_prompt
from sapo_vl.planning.sizes import ModelSizes

ASLEEP_BYTES = int(1.5 * GB)  # of an engine whose weights lie in main memory: context, graphs
WORKSPACE_BYTES = 3 * GB  # activations and graphs of an engine that is awake
LOGITS_BYTES = 28  # per entry of the vocabulary while a token is drawn: logits, log-probs, the sum in float64


def share_bytes(m: ModelSizes, config: RunConfig, machine: Machine) -> int:
    """What vLLM takes for itself."""
    vllm = config.rollout.vllm
    if machine.gpu_bytes:
        return int(vllm.gpu_memory_utilization * machine.gpu_bytes)
    return vllm.kv_cache_gib * 2**30 + m.dtype_bytes * m.parameters // vllm.tensor_parallel


def weights_in_vllm(m: ModelSizes, config: RunConfig) -> int:
    return m.dtype_bytes * m.parameters // config.rollout.vllm.tensor_parallel


def cache_per_token(m: ModelSizes, config: RunConfig) -> int:
    """On one GPU of an engine. A head of keys is there more than once where there are more GPUs than heads."""
    ways = min(config.rollout.vllm.tensor_parallel, m.key_heads)
    return m.key_bytes_per_token // ways


def longest(config: RunConfig) -> int:
    return config.model.max_prompt_tokens + config.rollout.max_new_tokens


def inside_vllm(m: ModelSizes, config: RunConfig, machine: Machine) -> list[tuple[str, int]]:
    """What must fit into vLLM's share: below this it does not start."""
    return [
        ("vLLM's weights", weights_in_vllm(m, config)),
        ("vLLM's workspace", WORKSPACE_BYTES if machine.gpu_bytes else 0),
        ("the cache of one response", longest(config) * cache_per_token(m, config)),
    ]


def responses_at_a_time(m: ModelSizes, config: RunConfig, machine: Machine, mean_tokens: int) -> int:
    """Of one engine of vLLM: what its cache holds, at most max_num_seqs."""
    taken = weights_in_vllm(m, config) + (WORKSPACE_BYTES if machine.gpu_bytes else 0)
    cache = share_bytes(m, config, machine) - taken
    return max(1, min(config.rollout.vllm.max_num_seqs, cache // (mean_tokens * cache_per_token(m, config))))


def own_batch(config: RunConfig, machine: Machine) -> int:
    """Prompts that the trainer's own model samples from at a time, on a rank."""
    return min(config.rollout.prompts_per_batch, -(-config.rollout.prompts_per_step // machine.ranks))


def own_sampling(m: ModelSizes, config: RunConfig, machine: Machine) -> list[tuple[str, int]]:
    """The trainer's own model: a cache for all responses at full length, and what a step makes of it."""
    prompts, size = own_batch(config, machine), config.rollout.group_size
    responses, limit = prompts * size, config.model.max_prompt_tokens
    row = Row(
        tokens=prompts * limit,
        prompts=prompts,
        prompt=limit,
        responses=0,
        response=0,
        targets=prompts,
        patches=prompts * patches_of_prompt(m, config),
    )
    repeated = 2 * responses * longest(config) * m.query_width * m.dtype_bytes  # heads repeated, of one layer
    drawing = responses * m.vocabulary * LOGITS_BYTES
    return [
        ("cache of keys and values", responses * longest(config) * m.key_bytes_per_token),
        ("a step of sampling", max(repeated + drawing, forward_peak_bytes(m, row))),
    ]
