"""Reinforcement learning, as one sentence: take problems, sample a group of responses each, score them, turn
rewards into advantages, pack groups into micro-batches, update on the loss, give the rollout engine the new
weights."""

from __future__ import annotations

import dataclasses
import logging
import time
from collections.abc import Sequence
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
from sapo_vl.learning.checkpoint import CHECKPOINTS, checkpoint_for, set_aside_from
from sapo_vl.learning.diagnostics import advantage_shares, rollout_stats
from sapo_vl.learning.final import ExportError, proof_values, save_model, tried_probe
from sapo_vl.learning.moving import bring_home
from sapo_vl.learning.reference import load_reference
from sapo_vl.learning.resuming import load_checkpoint
from sapo_vl.learning.saving import Saver
from sapo_vl.lifeline import Stopped, StopRequest, stopped
from sapo_vl.record.files import Unwritten
from sapo_vl.record.progress import PhaseTimer, Progress
from sapo_vl.record.rollout_log import RolloutLog, drop_ranks, write_step
from sapo_vl.record.run_log import RunLog
from sapo_vl.restarts import mark_begun
from sapo_vl.rollout import SamplingParams
from sapo_vl.rollout.parity import ParityGate, probe_prompts
from sapo_vl.rollout.resample import Resampled, resample
from sapo_vl.rollout.source import RolloutSource, dealt_anew
from sapo_vl.scoring.constant_watch import ConstantWatch, extremes
from sapo_vl.scoring.scorer import Scorer, metrics_of_step
from sapo_vl.session import Session, open_session
from sapo_vl.types import Prompt, RolloutGroup
from sapo_vl.updates import (
    deal_groups,
    is_due,
    new_record,
    pack_mini_batches,
    run_update,
    sequence_lines,
    tokens_limit,
    update_values,
)

log = logging.getLogger(__name__)


def train(config: RunConfig, out: Path, world: World, scorer: Scorer, stop: StopRequest) -> dict[str, Any]:
    """Runs all steps and returns {"accuracy": {"cold_start", "final"}, "wall_s", ...} for summary.json.

    Data, quotas and rewards are checked before the model is loaded. Raises Stopped once what is done is saved.
    """
    problems = ProblemSet(config.data.path, config.data.train_split)
    rows = world.gather(problems.digest() if world.is_main else "")[0]
    per_step, updates = config.rollout.prompts_per_step, config.batch.mini_batches
    sampler = QuotaSampler(problems.tasks, config.data.quotas, per_step, config.seed, rows, parts=updates)
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
    probe = tried_probe(session.engine, session.chat)
    reference = None
    if config.loss.kl_coef > 0:
        reference = load_reference(
            config.model, config.zero, session.tuning, session.chat.banned_ids, config.rollout.temperature, world
        )
    feed = ProblemFeed(problems, sampler, session.chat, config.data.max_bad_share, world, ahead=True)
    run_log = RunLog(out, config.log, config.model_dump(mode="json"), world)
    unwritten = Unwritten()
    rollout_log = RolloutLog(out / "rollouts", config.log.save_images)

    first, accuracy_before, ahead = _resume(config, out, session, feed, scorer, run_log)
    step = first
    saver = Saver(out / CHECKPOINTS["train"], session.engine, config.checkpoint, first)
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
        on_group=lambda _, group: scorer.begin(group, config.rollout.max_new_tokens),
    )
    session.rollouts.sync(step)
    gate.after_sync(step)

    def say(told: str) -> Stopped:
        return stopped(told, step, f"of {config.steps}", saver.last, out)

    def say_in_evaluation(told: str) -> Stopped | None:
        return say(told) if step > first else None  # began with it: a scheduler would begin it again, for ever

    if accuracy_before is None and config.eval.before:
        with timer("eval"), stop.between_steps(say_in_evaluation):
            accuracy_before = _evaluate(config, session, scorer, run_log, out, step)

    def ended(told: str, state: dict[str, Any]) -> Stopped:
        if step > saver.last:
            saver.save(step, state, at_the_end=True)
        source.close()
        feed.close()
        session.rollouts.close()
        run_log.close()
        return say(told)

    constant = ConstantWatch()
    rest_s = 0.0  # what a step takes from its first update to its save, by the latest one
    while step < config.steps:
        told = stop.agreed(world)
        evaluates = step > 0 and is_due(config.eval.every, step)
        # Before the evaluation: a run that goes on here does it again. Of rollouts on their way, this waits for them.
        held = None
        if told or evaluates or config.rollout.staleness == 0:
            held = _state(source, scorer, accuracy_before)
        # Behind the save, before which it could cost what was done.
        if evaluates and not told:
            with timer("eval"), source.exclusive(), stop.between_steps(say_in_evaluation):
                _evaluate(config, session, scorer, run_log, out, step)
            told = stop.agreed(world)  # it may be longer than a step
        if told and held is not None:
            raise ended(told, held)
        with timer("rollout"):
            drawn = source.next()
        drawn, found = _scored_and_resampled(config, drawn, feed, source, scorer, timer, world)
        # With rollouts on their way, what is held would be of before them, and closing would wait for them.
        if config.rollout.staleness == 0 and held is not None and (told := stop.too_late(world, rest_s)):
            raise ended(told, held)
        if step + 1 + config.rollout.staleness < config.steps:
            feed.prepare()  # beside the updates
        for told in constant.add(extremes(drawn, world)):
            if world.is_main:
                log.warning("step %d: %s", step + 1, told)
        groups, advantages = assign_advantages(found.groups, config.advantage, world)
        if config.rollout.resample:  # what is logged is of the batch as it was drawn
            _, advantages = assign_advantages(drawn, config.advantage, world)
        record = new_record(config, step + 1)
        with timer("train"):
            dealt = deal_groups(config, session, groups)
            batches = pack_mini_batches(config, session, dealt, groups[0].prompt)
            updates = [
                run_update(config, session, batch, reference, record, i, out, step + 1)
                for i, batch in enumerate(batches)
            ]
        step += 1
        with timer("sync"), source.exclusive():
            session.rollouts.sync(step)
            parity = gate.after_sync(step)

        # Of the batch as it was drawn: of resampled groups, rewards would say which groups were chosen.
        values = rollout_stats(drawn, advantages, world) | found.values | advantage_shares(groups, world)
        values |= dealt.values | update_values(updates) | record.reduce(world) | parity
        seconds = timer.take()
        values |= _throughput([*drawn, *found.further], world, seconds) | seconds
        run_log.metrics(step, "train", values)
        progress.step(step, values)
        if is_due(config.log.save_rollouts_every, step):
            old_is_recorded = config.rollout.old_logprobs == "rollout"
            if record.tokens:
                bring_home(record.tokens, dealt, groups, world)
            limit = tokens_limit(config, world, step)
            tokens = record.tokens.tokens(groups, old_is_recorded, limit) if record.tokens else None
            unwritten.attempt("rollouts", rollout_log.write, step, groups, world.rank, tokens)
        if is_due(config.log.save_sequences_every, step):
            lines = sequence_lines(step, batches, updates)
            unwritten.attempt("sequences", write_step, out / "sequences", step, world.rank, lines)
        if saver.due(step) and step < config.steps:
            with timer("checkpoint"):
                saver.save(step, _state(source, scorer, accuracy_before))
        rest_s = seconds["seconds/train"] + seconds["seconds/sync"] + saver.seconds

    source.close()
    feed.close()
    with timer("export"):
        try:
            proof = save_model(session.engine, session.folder, config.model.dtype, out / "final", probe)
        except ExportError:  # on all ranks; what was learned is kept all the same
            saver.save(step, _state(source, scorer, accuracy_before), at_the_end=True)
            raise
    if step > first:
        with timer("checkpoint"):  # behind the model, which takes a fraction of the room
            saver.save(step, _state(source, scorer, accuracy_before), at_the_end=True)
    with timer("eval"), stop.between_steps(say_in_evaluation):
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
        "notices": run_log.notices.summary(),
        "unwritten": {"checkpoints": saver.failed, **unwritten.counts},
        "scoring": dict(zip(map(str, scorer.counts), map(int, world.sum([*scorer.counts.values()])), strict=True)),
        "wall_s": {**timer.totals, "train_stage": time.monotonic() - started},
    }


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
    config: RunConfig, out: Path, session: Session, feed: ProblemFeed, scorer: Scorer, run_log: RunLog
) -> tuple[int, dict[str, Any] | None, dict[str, Any] | None]:
    """(first step to run, accuracy measured before it if known, the rollouts sampled ahead for it if there are any)."""
    root = out / CHECKPOINTS["train"]
    folder = checkpoint_for(config.resume, root, session.world)
    if folder is None:
        set_aside_from(root, 0, session.world)
        run_log.truncate_from(0)
        mark_begun(out, "train", session.world)
        return 0, None, None
    state = load_checkpoint(folder, session.engine, lambda states: dealt_anew(states, session.world))
    feed.load_state_dict(state["per_rank"])
    scorer.load_state_dict(state["per_rank"].get("scoring", {}))
    set_aside_from(root, state["step"], session.world, but=folder)
    run_log.truncate_from(state["step"] + 1)
    if state["step"] >= config.steps or is_due(config.eval.every, state["step"]):
        # The evaluation after this step came behind the checkpoint, and is done again.
        run_log.truncate_from(state["step"], phases=("eval",))
    if session.world.is_main:
        for name in ("rollouts", "sequences"):
            drop_ranks(out / name, state["step"], session.world.size)
    mark_begun(out, "train", session.world)
    log.info("resuming from %s", folder)
    if state["step"] >= config.steps:
        log.warning("it is of step %d and steps=%d: only the last evaluation is left", state["step"], config.steps)
    return state["step"], state["accuracy_before"], state["per_rank"].get("ahead")


def _state(source: RolloutSource, scorer: Scorer, accuracy_before: dict[str, Any] | None) -> dict[str, Any]:
    """What a checkpoint has beside the engine."""
    return {"accuracy_before": accuracy_before, "per_rank": source.state_dict() | {"scoring": scorer.state_dict()}}


def _throughput(groups: Sequence[RolloutGroup], world: World, seconds: dict[str, float]) -> dict[str, float]:
    sampled = sum(len(r.response_ids) for g in groups for r in g.rollouts)
    total = world.sum([sampled, sum(g.num_tokens for g in groups)])
    step_seconds = max(seconds.get("seconds/step", 0.0), 1e-9)
    return {
        "tokens_per_s/sampled": float(total[0]) / step_seconds,
        "tokens_per_s/all": float(total[1]) / step_seconds,
    }
