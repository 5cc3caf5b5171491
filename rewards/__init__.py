"""Rewards: what a response is worth. Each is a function `fn(x: RewardInput, **params) -> RewardOutput`.

To add one: write a file beside this one, add a line to REWARDS. docs/rewards.md walks through it, also for a
reward that lives outside this repository.
"""

from rewards.base import RewardFn, RewardInput, RewardOutput, Unscorable
from rewards.box_iou import box_iou
from rewards.chart import chart
from rewards.choice import choice
from rewards.count import count
from rewards.format import format_tags
from rewards.length import length
from rewards.mathematics import math_equal
from rewards.number import number
from rewards.repetition import repetition
from rewards.word import word

REWARDS: dict[str, RewardFn] = {
    "box_iou": box_iou,
    "chart": chart,
    "choice": choice,
    "count": count,
    "format": format_tags,
    "length": length,
    "math": math_equal,
    "number": number,
    "repetition": repetition,
    "word": word,
}

# Rewards that run in the trainer's own process. To be listed here a reward must end in time proportional to
# the length of the response whatever the response is: string search, expressions without nested repetition,
# arithmetic on bounded numbers. Everything else runs in worker processes that can be killed.
IN_PROCESS = frozenset(
    {
        "box_iou",
        "chart",
        "choice",
        "count",
        "format",
        "length",
        "number",
        "repetition",
        "word",
    }
)

# Reward -> the module it imports when it first scores, where that takes long. Workers import it when they start.
PRELOAD = {
    "math": "rewards.symbolic",
}

__all__ = ["IN_PROCESS", "PRELOAD", "REWARDS", "RewardFn", "RewardInput", "RewardOutput", "Unscorable"]
