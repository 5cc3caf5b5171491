"""Bytes of the engines that sample."""

from __future__ import annotations

from sapo_vl.config import RunConfig
from sapo_vl.planning.activations import FLOAT_BYTES, Row, forward_peak_bytes
from sapo_vl.planning.machine import GB, Machine
from sapo_vl.planning.rows import patches_of_prompt
from sapo_vl.planning.sizes import ModelSizes
from sapo_vl.rollout.schedule import PREFILL_TOKENS, Held, Room

ASLEEP_BYTES = int(1.5 * GB)  # of an engine whose weights lie in main memory: context, graphs
WORKSPACE_BYTES = 3 * GB  # activations and graphs of an engine that is awake
MOST_AT_A_TIME, MOST_ON_CPU = 1024, 256  # of responses, where rollout.vllm.max_num_seqs is 0


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
    """Of one engine of vLLM: what its cache holds, at most max_num_seqs (or what it is where that is not set)."""
    taken = weights_in_vllm(m, config) + (WORKSPACE_BYTES if machine.gpu_bytes else 0)
    cache = share_bytes(m, config, machine) - taken
    most = config.rollout.vllm.max_num_seqs or (MOST_AT_A_TIME if machine.gpu_bytes else MOST_ON_CPU)
    return max(1, min(most, cache // (mean_tokens * cache_per_token(m, config))))


def own_room(m: ModelSizes, config: RunConfig, free_bytes: int) -> Room:
    """For what the trainer's own model samples, where so much memory is free when it begins."""
    return Room(
        bytes=int(config.rollout.cache_share * free_bytes),
        token_bytes=m.key_bytes_per_token,
        vocabulary=m.vocabulary,
        max_new_tokens=config.rollout.max_new_tokens,
    )


def own_at_a_time(m: ModelSizes, config: RunConfig, machine: Machine, free_bytes: int) -> tuple[int, int]:
    """(prompts, responses) that a rank samples at a time, prompts at their limit; at least one response."""
    room, limit, size = own_room(m, config, free_bytes), config.model.max_prompt_tokens, config.rollout.group_size
    prompts = -(-config.rollout.prompts_per_step // machine.ranks)
    group = Held().plus(limit, size)
    fit = min(prompts, room.bytes // room.need(group))
    if fit:
        return fit, fit * size
    one = room.need(Held().plus(limit, 1))
    return 1, max(1, min(size, 1 + (room.bytes - one) // room.response_bytes))


def own_sampling(m: ModelSizes, config: RunConfig, machine: Machine, free_bytes: int) -> list[tuple[str, int]]:
    """The trainer's own model: keys and what tokens are drawn from, and a pass over prompts or a step beside them."""
    room, limit = own_room(m, config, free_bytes), config.model.max_prompt_tokens
    prompts, responses = own_at_a_time(m, config, machine, free_bytes)
    held = Held(prompts=prompts, longest=limit, responses=responses)
    together = min(prompts, max(1, PREFILL_TOKENS // limit))
    row = Row(
        tokens=together * limit,
        prompts=together,
        prompt=limit,
        responses=0,
        response=0,
        targets=together,
        patches=together * patches_of_prompt(m, config),
    )
    heads = m.query_width * m.key_heads // m.key_width
    scores = 3 * responses * heads * longest(config) * FLOAT_BYTES  # of one layer: apart, side by side, as weights
    return [
        ("cache of keys and values, and drawing", room.need(held)),
        ("a step of sampling", max(scores, forward_peak_bytes(m, row))),
    ]
