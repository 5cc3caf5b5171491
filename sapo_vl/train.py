"""Reinforcement learning, as one sentence: take problems, sample a group of responses each, score them, turn
rewards into advantages, pack groups into micro-batches, update on the loss, give the rollout engine the new
weights."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from sapo_vl.config import RunConfig
from sapo_vl.data.feed import ProblemFeed
from sapo_vl.data.problem_set import ProblemSet
from sapo_vl.data.sampler import QuotaSampler
from sapo_vl.distributed import World
from sapo_vl.evaluation.held_out import evaluate_held_out
from sapo_vl.evaluation.run import engine_rollout, evaluate_benchmarks, metric_values
from sapo_vl.learning.advantage import assign_advantages
from sapo_vl.learning.checkpoint import checkpoint_for, load_checkpoint, save_checkpoint, set_aside_from
from sapo_vl.learning.diagnostics import UpdateStats, gate_temperatures, rollout_stats
from sapo_vl.learning.engine import TokenLogprobs, UpdateResult
from sapo_vl.learning.final import ExportError, make_probe, proof_values, save_model
from sapo_vl.learning.mismatch_stats import MismatchStats
from sapo_vl.learning.negative_tokens import NegativeTokens
from sapo_vl.learning.nonfinite import watch_update
from sapo_vl.learning.objectives import Mismatch, ReferenceFn, global_denominators, policy_objective
from sapo_vl.learning.reference import load_reference
from sapo_vl.learning.replay import FlipStats
from sapo_vl.model.batching import MicroBatch, filler, make_micro_batches, split_mini_batches, trainable
from sapo_vl.record.progress import PhaseTimer, Progress
from sapo_vl.record.rollout_log import RolloutLog, write_step
from sapo_vl.record.run_log import RunLog
from sapo_vl.rollout import SamplingParams
from sapo_vl.rollout.parity import ParityGate, probe_prompts
from sapo_vl.rollout.resample import Resampled, resample
from sapo_vl.rollout.source import RolloutSource
from sapo_vl.scoring.constant_watch import ConstantWatch, extremes
from sapo_vl.scoring.scorer import Scorer, metrics_of_step
from sapo_vl.session import Session, open_session
from sapo_vl.types import Prompt, RolloutGroup

log = logging.getLogger(__name__)


def train(config: RunConfig, out: Path, world: World, scorer: Scorer) -> dict[str, Any]:
    """Runs all steps and returns {"accuracy": {"cold_start", "final"}, "wall_s", ...} for summary.json.

    Data, quotas and rewards are checked before the model is loaded.
    """
    problems = ProblemSet(config.data.path, config.data.train_split)
    rows = world.gather(problems.digest() if world.is_main else "")[0]
    sampler = QuotaSampler(problems.tasks, config.data.quotas, config.rollout.prompts_per_step, config.seed, rows)
    scorer.check(problems.rewards, dataset=config.data.path)

    started = time.monotonic()
    session = open_session(
        config.model,
        config.optim,
        config.zero,
        engine_rollout(config),
        world,
        total_updates=config.steps * config.batch.mini_batches,
        seed=config.seed,
        out=out,
        replay=config.replay,
    )
    probe = make_probe(session.chat)
    reference = None
    if config.loss.kl_coef > 0:
        reference = load_reference(config.model, session.chat.banned_ids, config.rollout.temperature, world.device)
    feed = ProblemFeed(problems, sampler, session.chat, config.data.max_bad_share, world)
    run_log = RunLog(out, config.log, config.model_dump(mode="json"), world)
    rollout_log = RolloutLog(out / "rollouts", config.log.save_images)

    first, accuracy_before, ahead = _resume(config, out, session, feed, run_log)
    step = first
    progress = Progress(config.steps, enabled=world.is_main, start_step=step)
    timer = PhaseTimer(on_phase=progress.phase)
    gate = _parity_gate(config, session, problems)
    source = RolloutSource(
        feed.next,
        feed.state_dict,
        session.rollouts,
        lambda step: _sampling(config, step),
        staleness=config.rollout.staleness,
        steps=range(step, config.steps),
        beside=config.rollout.engine == "vllm_server",
        world=world,
        ahead=ahead,
    )
    session.rollouts.sync(step)
    gate.after_sync(step)
    if accuracy_before is None and config.eval.before:
        with timer("eval"):
            accuracy_before = _evaluate(config, session, scorer, run_log, out, step)

    constant = ConstantWatch()
    while step < config.steps:
        with timer("rollout"):
            drawn = source.next()
        drawn, found = _scored_and_resampled(config, drawn, feed, source, scorer, timer, world)
        for told in constant.add(extremes(drawn, world)):
            if world.is_main:
                log.warning("step %d: %s", step + 1, told)
        _, advantages = assign_advantages(drawn, config.advantage, world)
        groups, _ = assign_advantages(found.groups, config.advantage, world)
        gap = MismatchStats()
        moved = NegativeTokens(config.rollout.temperature) if _due(config.log.negative_tokens_every, step + 1) else None
        with timer("train"):
            batches = pack_mini_batches(config, session, groups)
            updates = [
                _update(config, session, batch, reference, _mismatch(config, gap, i), moved, out, step + 1)
                for i, batch in enumerate(batches)
            ]
        step += 1
        with timer("sync"), source.exclusive():
            session.rollouts.sync(step)
            parity = gate.after_sync(step)

        # Of the batch as it was drawn: of resampled groups, rewards would say which groups were chosen.
        values = rollout_stats(drawn, advantages, world) | found.values
        values |= _update_values(updates) | gap.reduce(world) | parity
        values |= moved.reduce(world) if moved else {}
        seconds = timer.take()
        values |= _throughput([*drawn, *found.further], world, seconds) | seconds
        run_log.metrics(step, "train", values)
        progress.step(step, values)
        if _due(config.log.save_rollouts_every, step):
            rollout_log.write(step, groups, world.rank)
        if _due(config.log.save_sequences_every, step):
            write_step(out / "sequences", step, world.rank, _sequence_lines(step, batches, updates))
        if _due(config.eval.every, step) and step < config.steps:
            with timer("eval"), source.exclusive():
                _evaluate(config, session, scorer, run_log, out, step)
        if _due(config.checkpoint.every, step) and step < config.steps:
            with timer("checkpoint"):
                _save(config, out, session, source, step, accuracy_before)

    source.close()
    with timer("export"):
        try:
            proof = save_model(session.engine, session.folder, config.model.dtype, out / "final", probe)
        except ExportError:  # on all ranks; what was learned is kept all the same
            _save(config, out, session, source, step, accuracy_before)
            raise
    if step > first:
        with timer("checkpoint"):  # behind the model, which takes a fraction of the room
            _save(config, out, session, source, step, accuracy_before)
    with timer("eval"):
        accuracy_after = _evaluate(config, session, scorer, run_log, out, step)
    session.rollouts.close()
    timer.take()
    progress.close()
    run_log.close()
    return {
        "accuracy": {"cold_start": accuracy_before, "final": accuracy_after},
        "steps": step,
        "model": proof_values(proof),
        "bad_rows": feed.bad_rows.bad,
        "scoring": dict(zip(map(str, scorer.counts), map(int, world.sum([*scorer.counts.values()])), strict=True)),
        "wall_s": {**timer.totals, "train_stage": time.monotonic() - started},
    }


def _due(every: int, step: int) -> bool:
    """Whether something that is done every so many steps, 0 = never, is done after `step` steps."""
    return every > 0 and step % every == 0


def _scored_and_resampled(
    config: RunConfig,
    drawn: Sequence[RolloutGroup],
    feed: ProblemFeed,
    source: RolloutSource,
    scorer: Scorer,
    timer: PhaseTimer,
    world: World,
) -> tuple[list[RolloutGroup], Resampled]:
    """(the groups that were drawn, with their rewards; what is trained on, with what scoring and resampling log)."""
    told: list[dict[str, float]] = []

    def score(groups: Sequence[RolloutGroup]) -> list[RolloutGroup]:
        with timer("reward"):
            scored = scorer.score(groups, config.rollout.max_new_tokens)
        told.append(scorer.metrics)
        return scored

    def sample(prompts: Sequence[Prompt], turn: int) -> list[RolloutGroup]:
        with timer("rollout"):
            return source.more(prompts, turn)

    drawn, rounds = score(drawn), config.rollout.resample
    found = resample(drawn, rounds, config.advantage, world, draw=feed.further, sample=sample, score=score)
    return drawn, dataclasses.replace(found, values=metrics_of_step(told) | found.values)


def _parity_gate(config: RunConfig, session: Session, problems: ProblemSet) -> ParityGate:
    """The transformers engine samples from the trainer's own weights: nothing to compare."""
    compare = config.rollout.engine != "transformers"
    parity = config.rollout.parity
    prompts = probe_prompts(problems, session.chat, parity.prompts) if compare else []
    return ParityGate(
        parity, session.engine, session.chat, session.rollouts, prompts, session.world, config.model.dtype
    )


# What an update did, its metrics, and what they are of. (None, {}, ...) if no rank has a group to learn from.
Update = tuple[UpdateResult | None, dict[str, Any], UpdateStats]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class MiniBatch:
    """One update's worth of this rank's groups."""

    micro_batches: list[MicroBatch]  # empty where every group of this rank is dead
    filler: MicroBatch  # run without the objective, zero gradient, where another rank has more micro-batches


def pack_mini_batches(config: RunConfig, session: Session, groups: Sequence[RolloutGroup]) -> list[MiniBatch]:
    """Deals the groups into mini-batches, drops what has no advantage, packs the rest.

    With old_logprobs=trainer, pi_old is taken here, for all mini-batches, before the first update; and with replay=r2
    the experts that it goes through. With replay=r3 that pass and the updates go through those of the rollouts.
    """
    chat, batch = session.chat, config.batch
    # Not a response of the batch: an engine that failed may have given none.
    spare = filler(groups[0].prompt, chat.eos_ids[0])
    spare_batch = make_micro_batches([spare], chat, batch.tokens_per_micro_batch, batch.shared_prefix)[0]
    out = []
    for dealt in split_mini_batches(groups, batch.mini_batches):
        kept = [g for g in map(trainable, dealt) if g is not None]
        micro = make_micro_batches(kept, chat, batch.tokens_per_micro_batch, batch.shared_prefix) if kept else []
        if config.replay == "r3":
            micro = [dataclasses.replace(mb, replay=True) for mb in micro]
        if config.rollout.old_logprobs == "trainer" or config.replay == "r2":
            taken = session.engine.logprobs(micro, spare_batch, config.rollout.temperature, record_routes=True)
            micro = [_with_old_policy(config, mb, old) for mb, old in zip(micro, taken, strict=True)]
        out.append(MiniBatch(micro_batches=micro, filler=spare_batch))
    return out


def _with_old_policy(config: RunConfig, mb: MicroBatch, old: TokenLogprobs) -> MicroBatch:
    """The micro-batch with what the pass of the old policy gave for it."""
    if config.rollout.old_logprobs == "trainer":
        mb = dataclasses.replace(mb, old_logprobs=old.logprobs.float().cpu())
    if old.routes is not None:
        mb = dataclasses.replace(mb, old_routes=old.routes.cpu(), replay=config.replay != "none")
    return mb


def _mismatch(config: RunConfig, stats: MismatchStats, update: int) -> Mismatch:
    """For update number `update` of a step. Where pi_old is the engine's, only the first one can measure the gap."""
    current = "current" if update == 0 else None
    measured = "old" if config.rollout.old_logprobs == "trainer" else current
    return Mismatch(config=config.mismatch, stats=stats, measured=measured)


def _update(
    config: RunConfig,
    session: Session,
    batch: MiniBatch,
    reference: ReferenceFn | None,
    mismatch: Mismatch,
    moved: NegativeTokens | None,
    out: Path,
    step: int,
) -> Update:
    """One update on all ranks and its diagnostics."""
    world, engine = session.world, session.engine
    denominators = global_denominators(batch.micro_batches, world, config.loss.token_sum_constant)
    stats = UpdateStats(gate_temperatures(config.loss))
    if denominators.num_sequences == 0:
        return None, {}, stats
    flips = FlipStats(engine.module.routes)
    objective = policy_objective(config.loss, denominators, stats, reference, mismatch)
    before = moved.look(engine, batch.micro_batches, batch.filler) if moved else None
    result = engine.update(batch.micro_batches, batch.filler, objective, config.rollout.temperature, flips.add)
    if moved and before and result.applied:
        moved.add(engine, before)
    watch_update(engine, result, batch.micro_batches, out, step)
    return result, stats.reduce(world) | flips.reduce(world), stats


def _sequence_lines(step: int, batches: Sequence[MiniBatch], updates: Sequence[Update]) -> Iterator[dict[str, Any]]:
    """This rank's responses in every update of a step, numbered from 1."""
    for number, (batch, (_, _, stats)) in enumerate(zip(batches, updates, strict=True), start=1):
        groups = [g for mb in batch.micro_batches for g in mb.groups]
        yield from stats.lines(groups, step=step, update=number)


def _sampling(config: RunConfig, step: int) -> SamplingParams:
    r = config.rollout
    return SamplingParams(
        n=r.group_size,
        max_new_tokens=r.max_new_tokens,
        temperature=r.temperature,
        top_p=r.top_p,
        top_k=r.top_k,
        seed=config.seed * 1_000_003 + step,
        # To replay, or to count flips where no pass of the trainer records them. Only a MoE model has any.
        routes=config.replay == "r3" or (config.replay == "none" and config.rollout.old_logprobs == "rollout"),
    )


def _evaluate(
    config: RunConfig, session: Session, scorer: Scorer, run_log: RunLog, out: Path, step: int
) -> dict[str, Any]:
    result = evaluate_held_out(config, session, scorer)
    values: dict[str, Any] = {}
    for name in (*config.eval.modes, "blank_image"):
        for task, r in [
            ("all", result.get(name) or {}),
            *(result.get(name) or {}).get("by_task", {}).items(),
        ]:
            if r.get("mean") is not None:
                values[f"eval/{name}/{task}"] = r["mean"]
                values[f"eval/{name}/{task}/ci95"] = r["ci95"]
    if config.eval.benchmarks:
        folder = out / "benchmarks" / f"step_{step:08d}"
        result["benchmarks"] = evaluate_benchmarks(config, session, folder, step=step)
        values |= metric_values(result["benchmarks"])
    run_log.metrics(step, "eval", values)
    return result


def _resume(
    config: RunConfig, out: Path, session: Session, feed: ProblemFeed, run_log: RunLog
) -> tuple[int, dict[str, Any] | None, dict[str, Any] | None]:
    """(first step to run, accuracy measured before it if known, the rollouts sampled ahead for it if there are any)."""
    root = out / "checkpoints"
    folder = checkpoint_for(config.resume, root, session.world)
    if folder is None:
        set_aside_from(root, 0, session.world)
        run_log.truncate_from(0)
        return 0, None, None
    state = load_checkpoint(folder, session.engine)
    feed.load_state_dict(state["per_rank"])
    set_aside_from(root, state["step"], session.world, but=folder)
    run_log.truncate_from(state["step"] + 1)
    log.info("resuming from %s", folder)
    if state["step"] >= config.steps:
        # The last checkpoint is older than the last evaluation, which is done again.
        run_log.truncate_from(state["step"], phases=("eval",))
        log.warning("it is of step %d and steps=%d: only the last evaluation is left", state["step"], config.steps)
    return state["step"], state["accuracy_before"], state["per_rank"].get("ahead")


def _save(
    config: RunConfig,
    out: Path,
    session: Session,
    source: RolloutSource,
    step: int,
    accuracy_before: dict[str, Any] | None,
) -> None:
    """A checkpoint after `step` steps."""
    state = {"accuracy_before": accuracy_before, "per_rank": source.state_dict()}
    save_checkpoint(out / "checkpoints", step, session.engine, state, config.checkpoint.keep)


def _update_values(updates: Sequence[Update]) -> dict[str, Any]:
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


def _throughput(groups: Sequence[RolloutGroup], world: World, seconds: dict[str, float]) -> dict[str, float]:
    sampled = sum(len(r.response_ids) for g in groups for r in g.rollouts)
    total = world.sum([sampled, sum(g.num_tokens for g in groups)])
    step_seconds = max(seconds.get("seconds/step", 0.0), 1e-9)
    return {
        "tokens_per_s/sampled": float(total[0]) / step_seconds,
        "tokens_per_s/all": float(total[1]) / step_seconds,
    }
