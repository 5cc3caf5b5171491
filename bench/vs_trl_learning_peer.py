"""TRL's side of bench/vs_trl_learning.py: a whole training by GRPOTrainer, in TRL's own environment.

Rewards are those of the project's own scorer, called in this process on the ids that were sampled. The model is saved
with its processor, as a folder that `sapo-vl eval` reads.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from stepwise import Over, Stepper
from vs_trl_peer import Turn, WatchedTrainer, parts

from sapo_vl.data.problem_set import ProblemSet
from sapo_vl.model.thinking import opened_text
from sapo_vl.scoring.scorer import Scorer, ScoringConfig
from sapo_vl.types import Finish, Problem, Prompt, Rollout, RolloutGroup


def as_group(problem: Problem, ids: Sequence[int], text: str, eos: Sequence[int]) -> RolloutGroup:
    """A response, ids [R], as the scorer takes it: of the prompt it looks at the problem alone."""
    nothing = np.zeros(0, np.int64)
    prompt = Prompt(
        problem=problem, ids=nothing, compact_ids=nothing, positions=nothing, pixel_values=None, image_grid_thw=None
    )
    stopped = len(ids) > 0 and ids[-1] in eos
    rollout = Rollout(
        response_ids=np.asarray(ids, np.int64), logprobs=np.zeros(len(ids), np.float32), weight_version=0, text=text,
        finish=Finish.STOP if stopped else Finish.LENGTH,
    )  # fmt: skip
    return RolloutGroup(prompt=prompt, rollouts=(rollout,))


def reward_of(spec: Mapping[str, Any], scorer: Scorer, processor: Any) -> Callable[..., list[float | None]]:
    """The reward function: of each response, by the number of its row. None = not scored, which TRL leaves out."""
    problems = ProblemSet(spec["data"]["path"], spec["data"]["split"])
    opened, decode = opened_text(processor), processor.tokenizer.decode

    def project(completion_ids: Sequence[Sequence[int]], row: Sequence[int], **_: Any) -> list[float | None]:
        seen = {number: problems.get(number) for number in set(row)}
        groups = [
            as_group(seen[number], ids, opened + decode(list(ids), skip_special_tokens=True), spec["eos"])
            for number, ids in zip(row, completion_ids, strict=True)
        ]
        return [group.rollouts[0].reward for group in scorer.score(groups, spec["max_new_tokens"])]

    return project


class LearningTrainer(WatchedTrainer):
    """Tells the mean reward of a rollout batch, and of the first one whether its prompts are those of our side."""

    def __init__(self, *args: Any, first: Sequence[Sequence[int]], **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.first: Sequence[Sequence[int]] | None = first

    def _calculate_rewards(self, *args: Any, **kwargs: Any) -> Any:
        rewards = super()._calculate_rewards(*args, **kwargs)  # [responses, 1], NaN = not scored
        self.told["reward"] = float(rewards.nanmean())
        return rewards

    def _generate_single_turn(self, prompt_ids: Any, *args: Any, **kwargs: Any) -> Any:
        if self.first is not None:
            expected = [list(ids) for ids in self.first for _ in range(self.num_generations)]
            self.told["same_prompts"] = [list(map(int, ids)) for ids in prompt_ids] == expected
            self.first = None
        return super()._generate_single_turn(prompt_ids, *args, **kwargs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("spec", type=Path, help="JSON: what vs_trl_learning.peer_spec makes")
    parser.add_argument("told", type=int, help="the pipe to the other process")
    args = parser.parse_args()
    stepper = Stepper(args.told)
    spec = json.loads(args.spec.read_text())
    taken = parts(spec)
    with Scorer(ScoringConfig(**spec["rewards"])) as scorer:
        reward = reward_of(spec, scorer, taken["processing_class"])
        trainer = LearningTrainer(**taken, reward_funcs=[reward], first=spec["first"])
        trainer.add_callback(Turn(trainer, stepper))
        try:
            stepper.wait()
            trainer.train()
        except Over:
            return
    trainer.save_model(spec["save"])


if __name__ == "__main__":
    main()
