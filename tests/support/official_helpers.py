"""What the published rules of benchmarks say to a text."""

from typing import Any

from reward_helpers import respond

from rewards.official import OFFICIAL
from rewards.official.letters import RANDOM

FRUIT = {"A": "apple", "B": "pear", "C": "dried plum", "D": ""}


def says(rule: str, text: str, gold: str, **meta: Any) -> float:
    return OFFICIAL[f"official_{rule}"](respond(text, gold, **meta)).score


def lettered(rule: str, text: str) -> str:
    """The letter that a rule finds in a text, or "random"."""
    outs = {letter: OFFICIAL[f"official_{rule}"](respond(text, letter, options=FRUIT)) for letter in FRUIT}
    if {out.reason for out in outs.values()} == {RANDOM}:
        return "random"
    [letter] = [letter for letter, out in outs.items() if out.score == 1]
    return letter
