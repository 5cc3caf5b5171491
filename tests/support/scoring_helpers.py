"""Groups and configs for the tests of scoring."""

from pathlib import Path

import numpy as np

from sapo_vl.scoring.scorer import ScoringConfig
from sapo_vl.types import Finish, Problem, Prompt, Rollout, RolloutGroup


def group(texts: list[str], finish: Finish = Finish.STOP, **problem: object) -> RolloutGroup:
    fields = {"id": "p7", "task": "moods", "messages": (), "reward": "custom"} | problem
    ids = np.arange(3)
    prompt = Prompt(
        problem=Problem(**fields),  # type: ignore[arg-type]
        ids=ids,
        compact_ids=ids,
        positions=np.tile(ids, (3, 1)),
        pixel_values=None,
        image_grid_thw=None,
    )
    return RolloutGroup(prompt=prompt, rollouts=tuple(rollout(text, finish) for text in texts))


def rollout(text: str, finish: Finish) -> Rollout:
    return Rollout(response_ids=np.arange(20), logprobs=np.zeros(20), finish=finish, weight_version=0, text=text)


def config(path: Path, function: str = "moody", **more: object) -> ScoringConfig:
    """The time limit is such that a busy machine notices a worker's death before it: later, it counts as a time-out."""
    settings = {"path": f"{path}:{function}", "combine": {"accuracy": 1.0}, "timeout_s": 5.0} | more
    return ScoringConfig.model_validate(settings)
