"""Rewards: what a response is worth. Each is a function `fn(x: RewardInput, **params) -> RewardOutput`.

To add one: write a file beside this one, add a line to REWARDS. docs/rewards.md walks through it, also for a
reward that lives outside this repository.
"""

from rewards.base import RewardFn, RewardInput, RewardOutput, Unscorable
from rewards.box import box
from rewards.chart import chart
from rewards.choice import choice
from rewards.code import code
from rewards.count import count
from rewards.format import format_tags
from rewards.json_grid import json_grid
from rewards.judge import judge_by_rule
from rewards.language import language
from rewards.list import list_items
from rewards.mathematics import math_equal
from rewards.maze import maze
from rewards.number import number
from rewards.ocr import ocr
from rewards.overlong import overlong
from rewards.repetition import repetition
from rewards.weighted import weighted_by_name
from rewards.word import word

REWARDS: dict[str, RewardFn] = {
    "box": box,
    "chart": chart,
    "choice": choice,
    "code": code,
    "count": count,
    "format": format_tags,
    "json_grid": json_grid,
    "judge": judge_by_rule(lambda: REWARDS),
    "language": language,
    "list": list_items,
    "math": math_equal,
    "maze": maze,
    "number": number,
    "ocr": ocr,
    "overlong": overlong,
    "repetition": repetition,
    "weighted": weighted_by_name(lambda: REWARDS),
    "word": word,
}

# Rewards that run in the trainer's own process. To be listed here a reward must end in time proportional to
# the length of the response whatever the response is: string search, expressions without nested repetition,
# arithmetic on bounded numbers. Everything else runs in worker processes that can be killed.
IN_PROCESS = frozenset(
    {
        "box",
        "chart",
        "choice",
        "count",
        "format",
        "json_grid",
        "language",
        "list",
        "maze",
        "number",
        "overlong",
        "repetition",
        "word",
    }
)

# Reward -> the module it imports when it first scores, where that takes long. Workers import it when they start.
PRELOAD = {
    "judge": "rewards.judging.client",
    "math": "rewards.answers.symbolic",
    "official_emma": "rewards.answers.symbolic",  # of rewards.official, as the next one
    "official_mathvision": "rewards.answers.symbolic",
}

__all__ = ["IN_PROCESS", "PRELOAD", "REWARDS", "RewardFn", "RewardInput", "RewardOutput", "Unscorable"]
