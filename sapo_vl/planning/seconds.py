"""Seconds of every phase of a step, at stated rates: arithmetic, not a measurement."""

from __future__ import annotations

from sapo_vl.planning import rollouts, trainer
from sapo_vl.planning.activations import Row
from sapo_vl.planning.machine import STATED, Rates
from sapo_vl.planning.phases import Case, free_for_sampling
from sapo_vl.planning.rows import mean_lengths, mixed_row, rows_of_step
from sapo_vl.planning.sizes import ModelSizes

CPU_FLOPS_PER_S = 40e9  # of one process on a CPU, in float32


def phase_seconds(case: Case, rates: Rates = STATED) -> dict[str, float]:
    """By the name of the phase: "load" and "final" once a run, "checkpoint" each time one is saved, others a step."""
    m, c = case.sizes, case.config
    file_bytes = m.dtype_bytes * m.parameters
    states = (trainer.MASTER + trainer.MOMENTS) * m.learning
    found = {
        "load": load_seconds(case, rates),
        "rollout": rollout_seconds(case, rates),
        "update": update_seconds(case, rates),
        "sync": 0.0 if c.rollout.engine == "transformers" else file_bytes / rates.sync_bytes_per_s,
        "checkpoint": (file_bytes + states) / (rates.disk_bytes_per_s * case.machine.hosts),
        "final": 2 * file_bytes / rates.disk_bytes_per_s,
    }
    if c.old_passes:
        found["old log-probs"] = c.old_passes / c.batch.mini_batches * pass_seconds(case, rates, passes=1)
    return found


def load_seconds(case: Case, rates: Rates) -> float:
    """Under ZeRO-3 a host reads, and a rank turns, a share; else all of it. On a GPU turning takes no time."""
    m, machine, sharded = case.sizes, case.machine, case.config.zero.stage == 3
    turned = m.dtype_bytes * m.experts_parameters / (machine.ranks if sharded else 1)
    if machine.gpu_bytes and not case.config.zero.offload_params:
        turned = 0
    read = m.dtype_bytes * m.parameters / (machine.hosts if sharded else 1)
    return read / rates.disk_bytes_per_s + turned / rates.convert_bytes_per_s


def step_seconds(seconds: dict[str, float]) -> float:
    """A step, without evaluations and checkpoints."""
    return sum(seconds.get(name, 0.0) for name in ("rollout", "old log-probs", "update", "sync"))


def forward_flops(m: ModelSizes, row: Row) -> float:
    """Products with weights, and of attention."""
    head = m.vocabulary * m.hidden_width
    layers = m.active - (1 if m.tied else 2) * head  # the embedding is looked up
    linear = 2.0 * (row.tokens * layers + row.targets * head)
    return linear + 4.0 * m.layers * m.query_width * row.scores


def pass_seconds(case: Case, rates: Rates, passes: int) -> float:
    """Of all micro-batches of a step on one rank; a backward counts as two passes."""
    m, c, machine = case.sizes, case.config, case.machine
    row = mixed_row(m, c, case.load)
    batches = rows_of_step(c, row, machine.ranks)
    flops_per_s = rates.flops_per_s if machine.gpu_bytes else CPU_FLOPS_PER_S
    gathers = 0.0
    if c.zero.stage == 3 and machine.ranks > 1:
        gathers = min(passes, 3) * m.dtype_bytes * m.parameters / rates.gather_bytes_per_s
    return batches * (passes * forward_flops(m, row) / flops_per_s + gathers)


def update_seconds(case: Case, rates: Rates) -> float:
    """All updates of a step: forward, backward, forward again where it is recomputed, and the optimizer."""
    c, machine = case.config, case.machine
    passes = 4 if c.model.gradient_checkpointing else 3
    share = case.sizes.learning / (machine.ranks if c.zero.stage else 1)
    if c.zero.offload_optimizer or not machine.gpu_bytes:
        optimizer = share / (rates.cpu_adam_elements_per_s * (rates.cpu_adam_threads if machine.gpu_bytes else 1))
    else:
        optimizer = share * 2 * (trainer.MASTER + trainer.MOMENTS) / rates.memory_bytes_per_s
    return pass_seconds(case, rates, passes) + c.batch.mini_batches * optimizer


def rollout_seconds(case: Case, rates: Rates) -> float:
    """Prompts are run once, then tokens are drawn a step at a time; the longest response ends alone."""
    m, c, machine = case.sizes, case.config, case.machine
    prompt, response = mean_lengths(c, case.load)
    own = c.rollout.engine == "transformers"
    ways = 1 if own or not machine.gpu_bytes else c.rollout.vllm.tensor_parallel
    engines = max(1, machine.ranks // ways)
    responses = -(-c.rollout.prompts_per_step // engines) * c.rollout.group_size
    if own:
        _, at_a_time = rollouts.own_at_a_time(m, c, machine, free_for_sampling(case))
    else:
        at_a_time = rollouts.responses_at_a_time(m, c, machine, prompt + response)
    at_a_time = min(at_a_time, responses)
    flops_per_s = (rates.flops_per_s if machine.gpu_bytes else CPU_FLOPS_PER_S) * ways
    context = prompt + response // 2
    read = (m.dtype_bytes * m.parameters + at_a_time * context * m.key_bytes_per_token) / ways
    step = rates.decode_step_s + max(read / rates.memory_bytes_per_s, 2.0 * m.active * at_a_time / flops_per_s)
    steps = responses / at_a_time * response + (c.rollout.max_new_tokens - response)
    prefill = 2.0 * m.active * prompt * (responses / c.rollout.group_size) / flops_per_s
    return prefill + steps * step
