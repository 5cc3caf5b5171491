"""Is the answer the right number?"""

import re
from fractions import Fraction
from typing import Any

from rewards.base import RewardInput, RewardOutput, Unscorable
from rewards.extract import last_answer_or_boxed, plain

DEFAULT_TOLERANCE = Fraction(1, 10**9)
_MAX_CHARS = 40
# ASCII digits only; an exponent of at most two digits keeps the exact arithmetic small.
_NUMBER = re.compile(r"[+-]?(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)?(?:\.[0-9]*)?(?:[eE][+-]?[0-9]{1,2})?")


def parse_number(text: str) -> Fraction | None:
    """The one number `text` consists of, exactly; None for words, units, two numbers, NaN, inf."""
    text = plain(text)
    if len(text) > 1 and text.startswith("$") and text.endswith("$"):
        text = text[1:-1].strip()
    if len(text) > _MAX_CHARS or not _NUMBER.fullmatch(text):
        return None
    mantissa = re.split("[eE]", text)[0]
    if not re.search("[0-9]", mantissa):
        return None
    return Fraction(text.replace(",", ""))


def number(x: RewardInput) -> RewardOutput:
    r"""1 if the last `<answer>` (or, without answer tags, the last `\boxed{}`) is the gold number, else 0.

    "Is" means |answer - gold| <= meta["tolerance"], absolute, in the unit of the gold (1e-9 if not given).

    Raises:
        Unscorable: the gold is not a number, or the tolerance is not a finite number >= 0.
    """
    gold = parse_number(x.answer)
    if gold is None:
        raise Unscorable(f"the reference answer {x.answer[:40]!r} is not a number")
    tolerance = _tolerance(x.meta["tolerance"]) if "tolerance" in x.meta else DEFAULT_TOLERANCE
    answer = last_answer_or_boxed(x.text)
    value = None if answer is None else parse_number(answer)
    return RewardOutput(float(value is not None and abs(value - gold) <= tolerance))


def _tolerance(value: Any) -> Fraction:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf"):
        raise Unscorable(f"meta['tolerance'] must be a finite number >= 0, got {value!r}")
    return Fraction(str(value))
