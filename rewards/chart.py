"""Is the answer what the chart shows, within ChartQA's relaxed accuracy?"""

from fractions import Fraction
from typing import Any

from rewards.base import EMPTY, NO_ANSWER, WRONG, RewardInput, RewardOutput, Unscorable
from rewards.extract import bare, last_answer
from rewards.numerals import Numeral, read_numeral

DEFAULT_TOLERANCE = Fraction(1, 20)
_CURRENCIES = ("$", "\u20ac", "\u00a3", "\u00a5")


def chart(x: RewardInput) -> RewardOutput:
    """Relaxed accuracy of ChartQA (arXiv 2203.10244): 1 for a number within 5% of the gold or the gold's text, else 0.

    Numbers: |answer - gold| <= meta["relative_tolerance"] * |gold| (0.05 if not given), bound included. So 0 is
    matched by 0 alone ("0.0", "0%"), and a year within 100 years of the gold counts, as in ChartQA; give such
    questions a relative_tolerance of 0. Thousands separators and fractions are read as in the reward "number".
    "%" is a way to write a number: "5%" matches "5" and, being its value, "0.05". A currency sign may be left out
    but not exchanged. Any other unit makes text of it.

    Anything else is text: equal but for case and white space. A number never matches a text, nor a text a number.

    Raises:
        Unscorable: the gold is empty, or the tolerance is not a finite number >= 0.
    """
    tolerance = _tolerance(x.meta.get("relative_tolerance"))
    gold_text = bare(x.answer).casefold()
    if not gold_text:
        raise Unscorable("the reference answer is empty")
    answer = last_answer(x.text)
    if not answer:
        return RewardOutput(0.0, reason=NO_ANSWER if answer is None else EMPTY)
    gold, number = _number(x.answer), _number(answer)
    if gold is None:
        right = bare(answer).casefold() == gold_text
    elif number is None:
        return RewardOutput(0.0, reason="not a number")
    else:
        right = _near(number, gold, tolerance)
    return RewardOutput(1.0) if right else RewardOutput(0.0, reason=WRONG)


def _number(text: str) -> Numeral | None:
    numeral = read_numeral(text)
    return numeral if numeral is not None and numeral.unit in ("", "%", *_CURRENCIES) else None


def _near(number: Numeral, gold: Numeral, tolerance: Fraction) -> bool:
    if number.unit in _CURRENCIES and gold.unit != number.unit and gold.unit:
        return False
    if "%" in (number.unit, gold.unit) and {number.unit, gold.unit} & set(_CURRENCIES):
        return False
    bound = tolerance * abs(gold.value)
    if abs(number.value - gold.value) <= bound:
        return True
    if number.percent and not gold.percent:
        return abs(number.value / 100 - gold.value) <= bound
    return gold.percent and not number.percent and abs(number.value * 100 - gold.value) <= bound


def _tolerance(value: Any) -> Fraction:
    if value is None:
        return DEFAULT_TOLERANCE
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf"):
        raise Unscorable(f"meta['relative_tolerance'] must be a finite number >= 0, got {value!r}")
    return Fraction(str(value))
