r"""Which rule suits a short gold of no declared kind: a tuple of numbers, a time, an equation, a number, or a text.

For sets whose own rule compares texts, or asks a model, where `(5, -2)` for "(5.000, -2.000)" must not be wrong.
"""

from __future__ import annotations

import re
from typing import Any

from rewards.number import parse_number

TOLERANCE = 0.001  # of numbers: golds are written with three digits after the point
_NUMBER = r"\s*[+-]?\d{1,15}(?:\.\d{1,15})?\s*"
_NUMBERS = re.compile(rf"\({_NUMBER}(?:,{_NUMBER})+\)|\[{_NUMBER}(?:,{_NUMBER})+\]|{_NUMBER}(?:,{_NUMBER})+")
_TUPLES = re.compile(r"\s*\([^()]{1,80}\)(?:\s*,\s*\([^()]{1,80}\))+\s*")
_EQUATION = re.compile(rf"\s*[A-Za-z]\s*={_NUMBER}")
_TIME = re.compile(r"\s*(\d{1,2}):(\d{1,2})\s*")


def rule_of(gold: str) -> tuple[str, dict[str, Any]]:
    """(reward, meta) for a gold.

    * numbers between commas, with or without brackets: reward "list", in their order, each within TOLERANCE;
    * several tuples: "list", in their order;
    * "8:0", a time: "chart" with its other spellings, 8:00 and 08:00;
    * "x = 0": "math", for which 0 alone and `x=0.000` are the same;
    * a number: "number" within TOLERANCE;
    * anything else: "word".
    """
    if _NUMBERS.fullmatch(gold) and not _thousands(gold):
        return "list", {"ordered": True, "tolerance": TOLERANCE}
    if _TUPLES.fullmatch(gold):
        return "list", {"ordered": True}
    if time := _TIME.fullmatch(gold):
        hours, minutes = int(time[1]), int(time[2])
        spellings = {f"{hours}:{minutes}", f"{hours}:{minutes:02}", f"{hours:02}:{minutes:02}"} - {gold.strip()}
        return "chart", {"relative_tolerance": 0, "answers": sorted(spellings)}
    if _EQUATION.fullmatch(gold):
        return "math", {}
    return ("number", {"tolerance": TOLERANCE}) if parse_number(gold) is not None else ("word", {})


def _thousands(gold: str) -> bool:
    """Whether the commas may be those of one number, as in "1,250"."""
    return parse_number(gold) is not None
