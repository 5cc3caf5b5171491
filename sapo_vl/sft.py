"""The cold start: supervised fine-tuning on a recipe's solutions, with the model, engine and data code of RL.

A group of one response (the solution) per problem goes through the same packing and the same log-prob head;
only the objective differs. It can stop at a measured pass rate, since RL needs room to improve.
"""

from __future__ import annotations

import logging
import time
from pathlib import Path
from typing import Any

import numpy as np

from sapo_vl.config import RunConfig
from sapo_vl.data.feed import ProblemFeed
from sapo_vl.data.problem_set import ProblemSet
from sapo_vl.data.sampler import QuotaSampler
from sapo_vl.evaluation.accuracy import evaluate
from sapo_vl.evaluation.config import EvalConfig
from sapo_vl.learning.final import make_probe, proof_values, save_model
from sapo_vl.learning.nonfinite import watch_update
from sapo_vl.learning.objectives import global_denominators, imitation_objective
from sapo_vl.model.batching import make_micro_batches
from sapo_vl.model.chat import Chat
from sapo_vl.record.run_log import RunLog
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


def cold_start(config: RunConfig, session: Session, scorer: Scorer, run_log: RunLog, out: Path) -> dict[str, Any]:
    """Trains until `steps` or the target pass rate; writes the model to a folder inside `out`, the run's.

    Returns {"steps", "dropped", "bad_rows", "pass_rate", "seconds", "loss", "model"}; dropped counts the updates
    that were not applied, bad_rows the rows that could not be read or imitated, each time one was drawn.

    Raises NonFiniteUpdate if too many of them come in a row.
    """
    sft = config.cold_start
    if sft is None:
        raise ValueError("this config has no cold_start section")
    world, chat, engine = session.world, session.chat, session.engine
    probe = make_probe(chat)
    problems = ProblemSet(config.data.path, sft.split)
    sampler = QuotaSampler(problems.tasks, config.data.quotas, sft.batch_size, config.seed)
    feed = ProblemFeed(problems, sampler, chat, config.data.max_bad_share, world, solutions=True)
    measure = ProblemSet(config.data.path, config.data.train_split) if sft.target_pass_rate else None
    measure_config = EvalConfig(max_per_task=sft.measure_per_task)
    run_log.truncate_from(0, phases=("sft",))  # what a cold start that was cut off has left: this one begins anew
    started, pass_rate, loss, step, dropped = time.monotonic(), None, float("nan"), 0, 0
    for step in range(1, sft.steps + 1):
        batch = make_micro_batches(
            [demonstration(p, chat) for p in feed.next()], chat, config.batch.tokens_per_micro_batch
        )
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
            pass_rate = values["pass_rate"] = measured["mean"]
        run_log.metrics(step, "sft", values)
        if step % sft.measure_every == 0:
            log.info("cold start step %d: loss %.3f, pass rate %s", step, loss, pass_rate)
        if pass_rate is not None and pass_rate >= sft.target_pass_rate:
            break
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
