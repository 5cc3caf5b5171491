"""What makes a run of `sapo-vl train` go on step by step, and its first step be written down, so that the other side of
bench/vs_trl.py can make the same two updates.

In that step alone the law of the updates is over the whole vocabulary, as TRL's is, and pi_old is taken by the trainer:
ours leaves out the ids that are never sampled.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from stepwise import Stepper
from vs_trl_cases import Case

import sapo_vl.train as training
from sapo_vl.config import RunConfig
from sapo_vl.learning.engine import UpdateResult
from sapo_vl.learning.moving import Dealt
from sapo_vl.model.batching import groups_in
from sapo_vl.session import Session
from sapo_vl.types import Prompt, RolloutGroup
from sapo_vl.updates import MiniBatch, pack_mini_batches, run_update

REWARD = Path(__file__).parent / "vs_trl_reward.py"
# Of both sides. No scale: TRL divides by the sample's standard deviation and we by the population's.
LR, BETAS, EPS, CLIP = 1e-5, (0.9, 0.95), 1e-8, 1.0


def overrides(case: Case, model: Path, data: Path) -> list[str]:
    """The settings of our side: its defaults, but for what is not asked of the other one."""
    return [
        f"model.path={model}",
        f"data.path={data}",
        "model.min_pixels=1024",
        f"model.max_pixels={1024 * 1024}",
        "processes=1",
        "zero.stage=0",
        "steps=100000",
        f"rollout.prompts_per_step={case.prompts}",
        f"rollout.group_size={case.group}",
        f"rollout.max_new_tokens={case.tokens}",
        "batch.mini_batches=2",
        "advantage.scale=none",
        "loss.name=sapo",
        f"optim.lr={LR}",
        f"optim.betas=[{BETAS[0]}, {BETAS[1]}]",
        f"optim.eps={EPS}",
        f"optim.clip={CLIP}",
        f"rewards.path={REWARD}:chance",
        'rewards.by_task={"*": custom}',
        "rewards.combine={accuracy: 1.0}",
        "checkpoint.every=0",
        "eval.before=false",
        "eval.blank_split=",
        "log.trackers=[]",
        "log.save_rollouts_every=0",
    ]


class FirstStep:
    """What the first step did, and the law that it does it by."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.seen: list[dict[str, Any]] = []
        self.banned: torch.Tensor | None = None

    def pack(self, config: RunConfig, session: Session, dealt: Dealt, spare: Prompt) -> list[MiniBatch]:
        """In place of pack_mini_batches, in the first step."""
        head = session.engine.module.head
        self.banned, head.banned_ids = head.banned_ids, head.banned_ids[:0]
        own = config.rollout.model_copy(update={"old_logprobs": "trainer"})
        return pack_mini_batches(config.model_copy(update={"rollout": own}), session, dealt, spare)

    def update(self, session: Session, batch: MiniBatch, result: UpdateResult) -> None:
        groups = [g for mb in batch.micro_batches for g in mb.groups]
        self.seen.append({"loss": result.loss, "grad_norm": result.grad_norm, "groups": [_group(g) for g in groups]})

    def end(self, session: Session) -> None:
        assert self.banned is not None
        session.engine.module.head.banned_ids = self.banned
        beside = self.path.with_suffix(".part")
        beside.write_text(json.dumps(self.seen))
        beside.rename(self.path)


def _group(group: RolloutGroup) -> dict[str, Any]:
    return {
        "id": group.prompt.problem.id,
        "prompt_ids": group.prompt.ids.tolist(),
        "responses": [r.response_ids.tolist() for r in group.rollouts],
        "rewards": [r.reward for r in group.rollouts],
    }


def watch(stepper: Stepper, first: FirstStep | None) -> None:
    """Puts our hooks into the training loop. `first`: None = the first step is one like the others."""
    counted: dict[str, Any] = {"step": 0, "tokens": 0, "live": 0, "updates": 0, "session": None}

    def pack(config: RunConfig, session: Session, dealt: Dealt, spare: Prompt) -> list[MiniBatch]:
        counted["session"] = session
        pack_own = pack_mini_batches if first is None or counted["step"] else first.pack
        batches = pack_own(config, session, dealt, spare)
        groups = [group for batch in batches for group in groups_in(batch.micro_batches)]
        counted["tokens"] = sum(len(r.response_ids) for group in groups for r in group.rollouts)
        counted["live"] = len(groups)
        return batches

    def update(config: RunConfig, session: Session, batch: MiniBatch, *rest: Any) -> Any:
        done = run_update(config, session, batch, *rest)
        counted["updates"] += done[0] is not None and done[0].applied
        if first is not None and counted["step"] == 0 and done[0] is not None:
            first.update(session, batch, done[0])
        return done

    class Log(training.RunLog):
        def metrics(self, step: int, phase: Any, values: Any) -> None:
            super().metrics(step, phase, values)
            if phase != "train":
                return
            if first is not None and counted["step"] == 0:
                first.end(counted["session"])
            counted["step"] += 1
            phases = {k.removeprefix("seconds/"): v for k, v in values.items() if k.startswith("seconds/")}
            told = {k: counted[k] for k in ("tokens", "live", "updates")} | {"phases": phases}
            told["reward"] = values.get("reward/mean")
            counted["updates"] = 0
            stepper.done(**told)

    training.pack_mini_batches, training.run_update = pack, update  # type: ignore[assignment]
    training.RunLog = Log  # type: ignore[misc]
