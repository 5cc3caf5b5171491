"""The cold start: supervised fine-tuning on a recipe's solutions, with the model, engine and data code of RL.

A group of one response (the solution) per problem goes through the same packing and the same log-prob head;
only the objective differs. It can stop at a measured pass rate, since RL needs room to improve.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from sapo_vl.config import ColdStartConfig, RunConfig
from sapo_vl.data.feed import ProblemFeed
from sapo_vl.data.problem_set import ProblemSet
from sapo_vl.data.sampler import QuotaError, QuotaSampler
from sapo_vl.evaluation.accuracy import evaluate
from sapo_vl.evaluation.config import EvalConfig
from sapo_vl.learning.checkpoint import (
    CHECKPOINTS,
    checkpoint_for,
    set_aside_from,
)
from sapo_vl.learning.final import proof_values, save_model, tried_probe
from sapo_vl.learning.nonfinite import watch_update
from sapo_vl.learning.objectives import global_denominators, imitation_objective
from sapo_vl.learning.resuming import load_checkpoint
from sapo_vl.learning.saving import Saver
from sapo_vl.lifeline import StopRequest, stopped
from sapo_vl.model.batching import make_micro_batches, split_by_budget
from sapo_vl.model.chat import Chat
from sapo_vl.record.run_log import RunLog
from sapo_vl.restarts import mark_begun
from sapo_vl.scoring.scorer import Scorer
from sapo_vl.session import Session
from sapo_vl.types import Finish, Prompt, Rollout, RolloutGroup

log = logging.getLogger(__name__)
COLD_START_MODEL = "cold_start"  # folder of the model inside a run folder


def demonstration(prompt: Prompt, chat: Chat) -> RolloutGroup:
    """A group whose one response is the problem's solution (which a feed with `solutions` has looked at)."""
    problem = prompt.problem
    ids = chat.response_ids(problem.solution)
    response = Rollout(
        response_ids=ids,
        logprobs=np.zeros(len(ids), np.float32),
        finish=Finish.STOP,
        weight_version=0,
        text=chat.decode(ids),
        advantage=1.0,
    )
    return RolloutGroup(prompt=prompt, rollouts=(response,))


def cold_start(
    config: RunConfig, session: Session, scorer: Scorer, run_log: RunLog, out: Path, stop: StopRequest
) -> dict[str, Any]:
    """Trains until `steps` or the target pass rate; writes the model to a folder inside `out`, the run's.

    Returns {"steps", "dropped", "bad_rows", "pass_rate", "seconds", "loss", "model"}; dropped counts the updates
    that were not applied, bad_rows the rows that could not be read or imitated, each time one was drawn.

    Every checkpoint.every steps its state is saved, and it goes on from there as a training does; the checkpoints are
    to be deleted once the result is written.

    Raises NonFiniteUpdate if too many of them come in a row, Stopped once what is done is saved.
    """
    sft = config.cold_start
    if sft is None:
        raise ValueError("this config has no cold_start section")
    world, chat, engine = session.world, session.chat, session.engine
    probe = tried_probe(engine, chat)
    problems = ProblemSet(config.data.path, sft.split)
    sampler = cold_start_sampler(config, sft, problems.tasks)
    room = config.batch.tokens_per_micro_batch
    feed = ProblemFeed(problems, sampler, chat, config.data.max_bad_share, world, row_tokens=room)
    measure = ProblemSet(config.data.path, config.data.train_split) if sft.target_pass_rate else None
    measure_config = EvalConfig(max_per_task=sft.measure_per_task, temperature=config.rollout.temperature)
    started = time.monotonic()
    root = out / CHECKPOINTS["sft"]
    step, so_far = _resume(config.resume, root, session, feed)
    pass_rate, loss, dropped = so_far["pass_rate"], so_far["loss"], so_far["dropped"]
    run_log.truncate_from(step + 1, phases=("sft",))
    mark_begun(out, "sft", world)
    saver = Saver(root, engine, config.checkpoint, step)
    while step < sft.steps and not _good_enough(sft, pass_rate):
        if told := stop.agreed(world):
            if step > saver.last:
                saver.save(step, _state(feed, so_far), at_the_end=True)
            run_log.close()
            raise stopped(told, step, "of the cold start", saver.last, out)
        step += 1
        shown = [demonstration(p, chat) for p in feed.next()]
        batch = make_micro_batches(split_by_budget(shown, config.batch.tokens_per_micro_batch), chat)
        objective = imitation_objective(sft.reduction, global_denominators(batch, world))
        result = engine.update(batch, batch[0], objective)
        watch_update(engine, result, batch, out, step, "cold_start.optim")
        loss = result.loss
        dropped += not result.applied
        values: dict[str, Any] = {
            "loss": loss,
            "grad_norm": result.grad_norm,
            "lr": result.lr,
            "updates/dropped": int(not result.applied),
        }
        if measure is not None and step % sft.measure_every == 0:
            session.rollouts.sync(step)
            measured = evaluate(
                session,
                measure,
                scorer,
                measure_config,
                mode="sampled",
                max_new_tokens=config.rollout.max_new_tokens,
                seed=config.seed + step,
            )
            pass_rate = values["pass_rate"] = pass_rate_of(measured, config.data.quotas)
        run_log.metrics(step, "sft", values)
        if step % sft.measure_every == 0:
            rate = "not measured" if pass_rate is None else f"{pass_rate:.3f}"
            log.info("cold start step %d: loss %.3f, pass rate %s", step, loss, rate)
        so_far = {"pass_rate": pass_rate, "loss": loss, "dropped": dropped}
        if saver.due(step):
            saver.save(step, _state(feed, so_far))
    if (missed := missed_target(sft, pass_rate)) and world.is_main:
        log.warning(missed)
    seconds = time.monotonic() - started
    model = config.model
    proof = save_model(engine, session.folder, model.dtype, out / COLD_START_MODEL, probe)
    return {
        "steps": step,
        "dropped": dropped,
        "bad_rows": feed.bad_rows.bad,
        "pass_rate": pass_rate,
        "seconds": seconds,
        "loss": loss,
        "model": proof_values(proof),
    }


def cold_start_sampler(config: RunConfig, sft: ColdStartConfig, tasks: Sequence[str]) -> QuotaSampler:
    """Of the rows with these tasks. Raises QuotaError as QuotaSampler does.

    data.quotas are of the training split, whose tasks need not all have solutions.
    """
    own, given = set(tasks), config.data.quotas
    quotas = sft.quotas or {task: quota for task, quota in given.items() if task in own}
    if given and not quotas:
        raise QuotaError(
            f"data.quotas name {sorted(given)}, and the split {sft.split!r} has only the tasks {sorted(own)}; give "
            "cold_start.quotas"
        )
    return QuotaSampler(tasks, quotas, sft.batch_size, config.seed)


def pass_rate_of(measured: Mapping[str, Any], quotas: Mapping[str, float]) -> float | None:
    """The mean of a measurement, tasks weighed as in a batch of the training; None where nothing could be scored."""
    quotas = quotas or dict.fromkeys(measured["by_task"], 1.0)
    means = {task: found["mean"] for task, found in measured["by_task"].items() if quotas.get(task)}
    known = {task: mean for task, mean in means.items() if mean is not None}
    if not known:
        return None
    return sum(quotas[task] * mean for task, mean in known.items()) / sum(quotas[task] for task in known)


def _good_enough(sft: ColdStartConfig, pass_rate: float | None) -> bool:
    return pass_rate is not None and pass_rate >= sft.target_pass_rate


def missed_target(sft: ColdStartConfig, pass_rate: float | None) -> str:
    """What to tell if the cold start ended, at its last step, without the pass rate it was to reach; "" if it has."""
    if not sft.target_pass_rate or _good_enough(sft, pass_rate):
        return ""
    reached = (
        f"before its pass rate was measured (cold_start.measure_every={sft.measure_every})"
        if pass_rate is None
        else f"with a pass rate of {pass_rate:.3f}"
    )
    return (
        f"the cold start ended after cold_start.steps={sft.steps} {reached}, not at "
        f"cold_start.target_pass_rate={sft.target_pass_rate:g}: training may start from a weaker model than asked for"
    )


def _resume(resume: str, root: Path, session: Session, feed: ProblemFeed) -> tuple[int, dict[str, Any]]:
    """(steps done, what was measured of them). A checkpoint that `resume` names is one of the training."""
    folder = checkpoint_for("no" if resume == "no" else "auto", root, session.world)
    if folder is None:
        set_aside_from(root, 0, session.world)
        return 0, {"pass_rate": None, "loss": float("nan"), "dropped": 0}
    state = load_checkpoint(folder, session.engine, lambda states: states[0])  # a feed is at one place on all ranks
    feed.load_state_dict(state["per_rank"])
    set_aside_from(root, state["step"], session.world, but=folder)
    log.info("the cold start goes on from %s", folder)
    return state["step"], state["so_far"]


def _state(feed: ProblemFeed, so_far: dict[str, Any]) -> dict[str, Any]:
    return {"so_far": so_far, "per_rank": feed.state_dict()}
