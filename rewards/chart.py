"""Is the answer what the chart shows, within ChartQA's relaxed accuracy?"""

from collections.abc import Callable, Mapping
from fractions import Fraction
from typing import Any

from rewards.answers.extract import bare, last_answer
from rewards.answers.numerals import Numeral, read_numeral
from rewards.base import EMPTY, NO_ANSWER, WRONG, RewardInput, RewardOutput, Unscorable
from rewards.number import precision, rounded

Same = Callable[[Fraction, Fraction], bool]  # (value of the answer, of the gold)

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

    With relative_tolerance 0 this is the rule for short answers that may be a number or a text. meta["precision"],
    a count of decimals in 0..15, goes in place of the tolerance: numbers are the same once rounded to it, halves away
    from zero. meta["answers"] lists more golds; one of all must be matched.

    Raises:
        Unscorable: a gold is empty, the tolerance is not a finite number >= 0, precision is no such count, or both
            are given.
    """
    same = _rule(x.meta)
    golds = _golds(x.answer, x.meta.get("answers", ()))
    answer = last_answer(x.text)
    if not answer:
        return RewardOutput(0.0, reason=NO_ANSWER if answer is None else EMPTY)
    number, text = _number(answer), bare(answer).casefold()
    numeric = [gold for gold in map(_number, golds) if gold is not None]
    texts = [bare(gold).casefold() for gold in golds if _number(gold) is None]
    if text in texts or (number is not None and any(_near(number, gold, same) for gold in numeric)):
        return RewardOutput(1.0)
    return RewardOutput(0.0, reason="not a number" if number is None and not texts else WRONG)


def _golds(answer: str, more: Any) -> list[str]:
    if not isinstance(more, list | tuple) or not all(isinstance(text, str) for text in more):
        raise Unscorable(f"meta['answers'] must be a list of texts, got {str(more)[:60]!r}")
    golds = [answer, *more]
    if not all(map(bare, golds)):
        raise Unscorable("the reference answer is empty")
    return golds


def _number(text: str) -> Numeral | None:
    numeral = read_numeral(text)
    return numeral if numeral is not None and numeral.unit in ("", "%", *_CURRENCIES) else None


def _near(number: Numeral, gold: Numeral, same: Same) -> bool:
    if number.unit in _CURRENCIES and gold.unit != number.unit and gold.unit:
        return False
    if "%" in (number.unit, gold.unit) and {number.unit, gold.unit} & set(_CURRENCIES):
        return False
    if same(number.value, gold.value):
        return True
    if number.percent and not gold.percent:
        return same(number.value / 100, gold.value)
    return gold.percent and not number.percent and same(number.value * 100, gold.value)


def _rule(meta: Mapping[str, Any]) -> Same:
    """Whether a value is as good as the gold's."""
    relative, decimals = meta.get("relative_tolerance"), meta.get("precision")
    if decimals is None:
        tolerance = _tolerance(relative)
        return lambda value, gold: abs(value - gold) <= tolerance * abs(gold)
    if relative is not None:
        raise Unscorable("meta['relative_tolerance'] and meta['precision'] contradict each other; give one")
    places = precision(decimals)
    return lambda value, gold: rounded(value, places) == rounded(gold, places)


def _tolerance(value: Any) -> Fraction:
    if value is None:
        return DEFAULT_TOLERANCE
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf"):
        raise Unscorable(f"meta['relative_tolerance'] must be a finite number >= 0, got {value!r}")
    return Fraction(str(value))
