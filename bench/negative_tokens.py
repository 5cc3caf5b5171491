"""SAPO's Eq. 9 on a model: what one plain gradient step on the tokens of one sign does to those of both.

    python bench/negative_tokens.py RUN            # the run's model before RL, responses of its rollouts/

RUN is a run folder whose rollouts/ hold the step that is asked for. Every micro-batch is a measurement of its own;
the table has their mean and its standard error. docs/metrics.md says what the columns are.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

import numpy as np
import torch

from sapo_vl.config import load_config
from sapo_vl.data.problem_set import ProblemSet
from sapo_vl.learning.negative_tokens import SIGNS, isolated_step
from sapo_vl.model.batching import MicroBatch, is_still, pack, trainable
from sapo_vl.model.chat import Chat
from sapo_vl.model.loading import load_model
from sapo_vl.model.policy import PolicyModule
from sapo_vl.record.rollout_log import read_rollouts
from sapo_vl.types import Finish, Problem, Rollout, RolloutGroup

COLUMNS = ("logprob", "mass", "mass_formula", "logits_rose", "probs_rose", "entropy", "formula_share")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=Path)
    parser.add_argument("--step", type=int, default=1, help="the rollouts to use (default 1: those of this very model)")
    parser.add_argument("--model", help="a model folder (default: model.path of the run)")
    parser.add_argument("--groups", type=int, default=4, help="groups in a micro-batch")
    parser.add_argument("--size", type=float, default=0.01, help="nats that a step moves its own tokens by")
    args = parser.parse_args()
    torch.set_num_threads(1)

    config = load_config(args.run / "config.yaml")
    model_config = config.model.model_copy(update={"dtype": "float32", **({"path": args.model} if args.model else {})})
    model = load_model(model_config)
    chat = Chat.load(model, model_config)
    policy = PolicyModule(model, chat.banned_ids)
    groups = saved_groups(args.run, args.step, chat, ProblemSet(config.data.path, config.data.train_split))
    batches = [b for b in packed(groups, args.groups, chat) if {*b.advantages.sign().tolist()} >= {-1.0, 1.0}]
    if len(batches) < 2:
        raise SystemExit(f"{len(groups)} groups with an advantage make {len(batches)} micro-batches; 2 are needed")

    print(f"{model_config.path}, {len(batches)} micro-batches, steps of {args.size} nats")
    print("  ".join(["step on", "tokens", *(f"{name:>21}" for name in COLUMNS)]))
    for sign in SIGNS:
        found = [
            isolated_step(policy, b, sign, size=args.size, temperature=config.rollout.temperature) for b in batches
        ]
        for of in SIGNS:
            cells = [f"{m:+.5f} +- {s:.5f}".rjust(21) for m, s in (summary(found, f"{of}/{name}") for name in COLUMNS)]
            print("  ".join([f"{sign:<7}", f"{of:<6}", *cells]))


def summary(found: list[dict[str, float]], name: str) -> tuple[float, float]:
    """(mean, standard error)."""
    values = [f[name] for f in found]
    return statistics.mean(values), statistics.stdev(values) / len(values) ** 0.5


def saved_groups(run: Path, step: int, chat: Chat, problems: ProblemSet) -> list[RolloutGroup]:
    """The groups of a step that have an advantage, as they were trained on, but for their log-probs."""
    files = sorted((run / "rollouts").glob(f"step_{step:06d}.rank*.jsonl"))
    lines = [line for path in files for line in read_rollouts(path)]
    if not lines:
        raise SystemExit(f"{run / 'rollouts'} has no step {step}; see log.save_rollouts_every")
    wanted = dict.fromkeys(line["id"] for line in lines)
    found: dict[str, Problem] = {}
    for row in range(len(problems)):
        if len(found) == len(wanted):
            break
        problem = problems.get(row)
        if problem.id in wanted:
            found[problem.id] = problem
    groups = [trainable(group(chat, found[id], [r for r in lines if r["id"] == id])) for id in wanted]
    return [g for g in groups if g is not None and not is_still(g)]


def group(chat: Chat, problem: Problem, lines: list[dict]) -> RolloutGroup:
    rollouts = tuple(
        Rollout(
            response_ids=np.array(line["response_ids"], np.int64),
            logprobs=np.zeros(len(line["response_ids"]), np.float32),
            finish=Finish(line["finish"]),
            weight_version=line["weight_version"],
            advantage=line["advantage"],
        )
        for line in lines
    )
    return RolloutGroup(prompt=chat.prompt(problem), rollouts=rollouts)


def packed(groups: list[RolloutGroup], count: int, chat: Chat) -> list[MicroBatch]:
    return [pack(groups[i : i + count], chat.blank_pixels()) for i in range(0, len(groups), count)]


if __name__ == "__main__":
    main()
