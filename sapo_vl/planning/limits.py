"""How far a config can be turned up before something does not fit, and which setting mends what does not."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from sapo_vl.config import RunConfig
from sapo_vl.planning.machine import GB
from sapo_vl.planning.phases import TRAINING, Case, Phase, old_logprobs, phases, update

MOST_TOKENS = 1 << 22


@dataclass(frozen=True, slots=True, kw_only=True)
class Misfit:
    """The first phase that does not fit, and what would mend it; "" if no single setting does."""

    phase: str
    stage: str
    place: str
    taken_bytes: int
    capacity_bytes: int
    largest: tuple[tuple[str, int], ...]  # the largest items, (name, bytes)
    mend: str
    also_whole: bool  # whether everything of that stage fits then


def changed(config: RunConfig, key: str, value: Any) -> RunConfig:
    """The config with "section.key" (or deeper) set; not checked for contradictions."""
    head, _, rest = key.partition(".")
    inner = changed(getattr(config, head), rest, value) if rest else value
    return config.model_copy(update={head: inner})


def with_setting(case: Case, key: str, value: Any) -> Case:
    return dataclasses.replace(case, config=changed(case.config, key, value))


def fits(case: Case, stage: str = TRAINING) -> bool:
    return all(p.fits for p in phases(case) if p.stage == stage)


def largest_token_budget(case: Case) -> int:
    """The largest batch.tokens_per_micro_batch whose passes fit; 0 if not even a single response does."""

    def holds(tokens: int) -> bool:
        other = with_setting(case, "batch.tokens_per_micro_batch", tokens)
        return update(other).fits and (not case.config.old_passes or old_logprobs(other).fits)

    return _largest(holds, MOST_TOKENS)


def largest_response(case: Case) -> int:
    """The largest rollout.max_new_tokens with which training fits; 0 if none does."""
    most = case.sizes.positions - case.config.model.max_prompt_tokens
    return _largest(lambda tokens: fits(with_setting(case, "rollout.max_new_tokens", tokens)), max(1, most))


def _largest(holds: Callable[[int], bool], most: int) -> int:
    """By halving, to within 1%; `holds` must be true up to some number and false beyond it."""
    if holds(most):
        return most
    low, high = 0, most
    while high - low > max(1, low // 100):
        middle = (low + high) // 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low


def first_misfit(case: Case, stage: str) -> Misfit | None:
    """None if all phases of the stage fit."""
    phase = next((p for p in phases(case) if p.stage == stage and not p.fits), None)
    if phase is None:
        return None
    room = max((r for r in phase.rooms if not r.fits), key=lambda r: r.taken_bytes / max(1, r.capacity_bytes))
    mend, whole = _mend(case, phase)
    largest = sorted(room.items, key=lambda i: -i.bytes)[:3]
    return Misfit(
        phase=phase.name,
        stage=stage,
        place=room.place,
        taken_bytes=room.taken_bytes,
        capacity_bytes=room.capacity_bytes,
        largest=tuple((i.name, i.bytes) for i in largest),
        mend=mend,
        also_whole=whole,
    )


def _mend(case: Case, phase: Phase) -> tuple[str, bool]:
    """The first change after which everything of the stage fits, else the first after which this phase does."""
    partial = ""
    for text, other in _candidates(case):
        found = phases(other)
        if all(p.fits for p in found if p.stage == phase.stage):
            return text, True
        if not partial and all(p.fits for p in found if p.name == phase.name):
            partial = text
    return partial, False


def _candidates(case: Case) -> Iterator[tuple[str, Case]]:
    """Single changes, the cheap ones first. What a config has already is no change."""
    c, machine = case.config, case.machine
    for key, value in _settings(c, machine.ranks):
        yield f"{key}={str(value).lower() if isinstance(value, bool) else value}", with_setting(case, key, value)
    for times in (2, 4, 8, 16):
        more = dataclasses.replace(
            machine,
            ranks=machine.ranks * times,
            ranks_per_host=min(machine.ranks * times, max(8, machine.ranks_per_host)),
        )
        if machine.gpu_bytes:
            yield f"{more.ranks} GPUs", dataclasses.replace(case, machine=more)
    for times in (1.5, 2, 3, 4, 8):
        more = dataclasses.replace(machine, host_bytes=int(machine.host_bytes * times))
        yield f"{more.host_bytes / GB:,.0f} GB of memory on each host", dataclasses.replace(case, machine=more)


def _settings(c: RunConfig, ranks: int) -> Iterator[tuple[str, Any]]:
    if not c.model.gradient_checkpointing:
        yield "model.gradient_checkpointing", True
    tokens = c.batch.tokens_per_micro_batch
    for divisor in (2, 4, 8):
        if tokens // divisor >= c.model.max_prompt_tokens + c.rollout.max_new_tokens:
            yield "batch.tokens_per_micro_batch", tokens // divisor
    if c.rollout.engine == "vllm":
        if not c.rollout.vllm.sleep:
            yield "rollout.vllm.sleep", True
        for share in (0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.2):
            if share != c.rollout.vllm.gpu_memory_utilization:
                yield "rollout.vllm.gpu_memory_utilization", share
        for ways in (2, 4, 8, 16):
            if ways > c.rollout.vllm.tensor_parallel and ranks % ways == 0:
                yield "rollout.vllm.tensor_parallel", ways
    if c.rollout.engine == "transformers":
        for share in (0.4, 0.3, 0.2, 0.1):
            if share < c.rollout.cache_share:
                yield "rollout.cache_share", share
        yield "rollout.engine", "vllm"
    for stage in (1, 2, 3):
        if stage > c.zero.stage and ranks > 1:
            yield "zero.stage", stage
    if not c.zero.offload_optimizer and c.zero.stage:
        yield "zero.offload_optimizer", True
    if c.loss.kl_coef:
        yield "loss.kl_coef", 0.0
    for divisor in (2, 4):
        if c.rollout.group_size >= 2 * divisor:
            yield "rollout.group_size", c.rollout.group_size // divisor
    for divisor in (2, 4, 8):
        if c.rollout.max_new_tokens >= 2 * divisor:
            yield "rollout.max_new_tokens", c.rollout.max_new_tokens // divisor
