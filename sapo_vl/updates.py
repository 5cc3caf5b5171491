"""From groups with advantages to the updates of one step: mini-batches, the pass of the old policy, their numbers."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from sapo_vl.config import RunConfig
from sapo_vl.distributed import World
from sapo_vl.learning.diagnostics import UpdateStats, gate_temperatures
from sapo_vl.learning.engine import TokenLogprobs, UpdateResult
from sapo_vl.learning.mismatch_stats import MismatchStats
from sapo_vl.learning.moving import Dealt, deal_out
from sapo_vl.learning.negative_tokens import NegativeTokens
from sapo_vl.learning.nonfinite import watch_update
from sapo_vl.learning.objectives import (
    Mismatch,
    UpdateTokens,
    global_denominators,
    noted_reference,
    policy_objective,
)
from sapo_vl.learning.reference import Reference
from sapo_vl.learning.replay import FlipStats
from sapo_vl.learning.token_record import TokenRecord
from sapo_vl.losses import Denominators
from sapo_vl.model.batching import MicroBatch, MicroBatches, filler, groups_in, make_micro_batches
from sapo_vl.model.work import work_of
from sapo_vl.record.tokens import BYTES_PER_TOKEN, bytes_of_rank
from sapo_vl.session import Session
from sapo_vl.types import Prompt, RolloutGroup

# What an update did, its metrics, and what they are of. (None, {}, ...) if no rank has a group to learn from.
Update = tuple[UpdateResult | None, dict[str, Any], UpdateStats]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class StepRecord:
    """What the updates of one step add to, on one rank. None = not measured in this step."""

    gap: MismatchStats
    moved: NegativeTokens | None
    tokens: TokenRecord | None

    def reduce(self, world: World) -> dict[str, float]:
        """Its metrics, over all ranks. Every rank must call it."""
        return self.gap.reduce(world) | (self.moved.reduce(world) if self.moved else {})


def new_record(config: RunConfig, step: int) -> StepRecord:
    """For step `step`, from 1."""
    shown = config.log.save_tokens and is_due(config.log.save_rollouts_every, step)
    return StepRecord(
        gap=MismatchStats(),
        moved=NegativeTokens(config.rollout.temperature) if is_due(config.log.negative_tokens_every, step) else None,
        tokens=TokenRecord() if shown else None,
    )


def tokens_limit(config: RunConfig, world: World, step: int) -> int:
    """Bytes that this rank may write of the tokens of a step."""
    group = BYTES_PER_TOKEN * config.rollout.group_size * config.rollout.max_new_tokens
    return bytes_of_rank(int(config.log.save_tokens_mb * 1e6), world.rank, world.size, step, group)


def is_due(every: int, step: int) -> bool:
    """Whether something that is done every so many steps, 0 = never, is done after `step` steps."""
    return every > 0 and step % every == 0


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class MiniBatch:
    """One update's worth of this rank's groups."""

    micro_batches: MicroBatches  # empty where every group of this rank is dead
    filler: MicroBatch  # run without the objective, zero gradient, where another rank has more micro-batches
    still: Denominators  # of all ranks: responses that count in the means and have no gradient


def deal_groups(config: RunConfig, session: Session, groups: Sequence[RolloutGroup]) -> Dealt:
    """The groups of all ranks that have a gradient, dealt to updates, ranks and micro-batches."""
    batch, work, penalised = config.batch, work_of(session.engine.module.hf), config.loss.kl_coef > 0
    limit = batch.tokens_per_micro_batch
    return deal_out(groups, batch.mini_batches, limit, work, session.chat, session.world, penalised=penalised)


def pack_mini_batches(config: RunConfig, session: Session, dealt: Dealt, spare: Prompt) -> list[MiniBatch]:
    """The micro-batches of this rank in each update of the step. `spare`: any prompt, for what is run to no effect.

    With old_logprobs=trainer, pi_old is taken here, before the first update; and with replay=r2 the experts that it
    goes through. With replay=r3 that pass and the updates go through those of the rollouts. The first mini-batch needs
    no such pass where its own update gives the same: see RunConfig.old_passes.
    """
    chat, shared = session.chat, config.batch.shared_prefix
    # Not a response of the batch: an engine that failed may have given none.
    spare_batch = make_micro_batches([[filler(spare, chat.eos_ids[0])]], chat, shared)[0]
    out = []
    for left, rows, still in zip(range(config.batch.mini_batches, 0, -1), dealt.updates, dealt.still, strict=True):
        micro = make_micro_batches(rows, chat, shared)
        if config.replay == "r3":
            micro = micro.changed([{"replay": True}] * len(micro))
        if left <= config.old_passes:
            taken = session.engine.logprobs(micro, spare_batch, config.rollout.temperature, record_routes=True)
            micro = micro.changed([_of_old_policy(config, old) for old in taken])
        elif config.rollout.old_logprobs == "trainer":
            micro = micro.changed([{"old_logprobs": None}] * len(micro))
        out.append(MiniBatch(micro_batches=micro, filler=spare_batch, still=still))
    return out


def _of_old_policy(config: RunConfig, old: TokenLogprobs) -> dict[str, Any]:
    """The fields of a micro-batch that the pass of the old policy gives."""
    fields: dict[str, Any] = {}
    if config.rollout.old_logprobs == "trainer":
        fields["old_logprobs"] = old.logprobs.float().cpu()
    if old.routes is not None:
        fields |= {"old_routes": old.routes.cpu(), "replay": config.replay != "none"}
    return fields


def mismatch_of(config: RunConfig, stats: MismatchStats, update: int) -> Mismatch:
    """For update number `update` of a step. Where pi_old is the engine's, only the first one can measure the gap."""
    current = "current" if update == 0 else None
    measured = "old" if config.rollout.old_logprobs == "trainer" else current
    return Mismatch(config=config.mismatch, stats=stats, measured=measured)


def run_update(
    config: RunConfig,
    session: Session,
    batch: MiniBatch,
    reference: Reference | None,
    record: StepRecord,
    number: int,
    out: Path,
    step: int,
) -> Update:
    """Update `number` of the step, from 0, on all ranks, and its diagnostics."""
    world, engine = session.world, session.engine
    denominators = global_denominators(batch.micro_batches, world, config.loss.token_sum_constant)
    stats = UpdateStats(gate_temperatures(config.loss))
    if denominators.num_sequences == 0:
        engine.skip()
        return None, {}, stats
    denominators += dataclasses.replace(batch.still, constant=denominators.constant)
    flips = FlipStats(engine.module.routes)
    mismatch = mismatch_of(config, record.gap, number)
    tokens = UpdateTokens(record.tokens, number + 1) if record.tokens else None
    # Before the update: its own passes must not wait in the middle for a reference that is sharded.
    if reference:
        batch = dataclasses.replace(batch, micro_batches=reference.noted(batch.micro_batches, batch.filler))
    objective = policy_objective(
        config.loss, denominators, stats, noted_reference if reference else None, mismatch, tokens
    )
    moved = record.moved
    before = moved.look(engine, batch.micro_batches, batch.filler) if moved else None
    result = engine.update(batch.micro_batches, batch.filler, objective, config.rollout.temperature, flips.add)
    if moved and before and result.applied:
        moved.add(engine, before)
    watch_update(engine, result, batch.micro_batches, out, step)
    return result, stats.reduce(world) | flips.reduce(world), stats


def sequence_lines(step: int, batches: Sequence[MiniBatch], updates: Sequence[Update]) -> Iterator[dict[str, Any]]:
    """This rank's responses in every update of a step, numbered from 1."""
    for number, (batch, (_, _, stats)) in enumerate(zip(batches, updates, strict=True), start=1):
        yield from stats.lines(list(groups_in(batch.micro_batches)), step=step, update=number)


def update_values(updates: Sequence[Update]) -> dict[str, Any]:
    """Numbers of a step from those of its updates: ratios and gates of the last one (the furthest from pi_old)."""
    done = [(r, s) for r, s, _ in updates if r is not None]
    values: dict[str, Any] = {"updates/skipped": len(updates) - len(done)}
    if not done:
        return values
    last, stats = done[-1]
    values |= stats
    # Of all updates: it is to be 0, and must not hide in one of them.
    values["sequence/bound_violations"] = sum(s["sequence/bound_violations"] for _, s in done)
    values["updates/dropped"] = sum(not r.applied for r, _ in done)
    values["loss"] = sum(r.loss for r, _ in done) / len(done)
    values["grad_norm"] = sum(r.grad_norm for r, _ in done) / len(done)
    values["grad_norm/max"] = max(r.grad_norm for r, _ in done)
    values["lr"] = last.lr
    return values
