"""Is the answer what the chart shows, within ChartQA's relaxed accuracy?"""

import re
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import Any

from rewards.answers.extract import bare, last_answer
from rewards.answers.numerals import Numeral, read_numeral
from rewards.answers.quantity import split_unit
from rewards.base import EMPTY, NO_ANSWER, WRONG, RewardInput, RewardOutput, Unscorable
from rewards.number import precision, rounded

Same = Callable[[Fraction, Fraction], bool]  # (value of the answer, of the gold)

DEFAULT_TOLERANCE = Fraction(1, 20)
_PLAIN_UNITS = ("", "%", "$", "\u20ac", "\u00a3", "\u00a5")
# Units of physics in the form of unit_name ("mu F", "komega", "Ncdot m"), besides those that split_unit knows.
_UNIT = r"""(?:(?:mu|[GMkcdmnpu\u03bc])\ ?)?
    (?:Hz|Pa|Wb|eV|mol|bar|dB|rad|min|\u00b0(?:\ ?[CF])?|[VAWNJKCFHTSgmshL]|[Oo]mega|[\u03a9\u2126]|ohm|volt|amp|ampere
      |watt|newton|joule|kelvin|celsius|coulomb|farad|henry|tesla|hertz|pascal|mole)(?:\^-?[1-4])?"""
_UNITS = re.compile(rf"{_UNIT}(?:\ ?(?:/|\*|\u00b7|cdot|\ )\ ?{_UNIT}){{0,3}}", re.VERBOSE)
# "V_0 = " before an answer: one symbol, which may have an index.
_NAME = re.compile(
    r"\A(?:[A-Za-z\u03b1-\u03c9]|\\[A-Za-z]{2,10})'?"
    r"(?: ?_ ?(?:\w|\{(?:[^{}=]|\{[^{}=]{0,20}\}){1,20}\}))? ?= ?(?=[^= ])"
)
_DECADE = re.compile(r"[0-9]{3}0s")


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

    With meta["any_unit"] = true the answer may carry a unit that the gold has not, or leave out one that it has, and
    the name of what is asked for: "8.4 V" and `V_0 = 8.4` are 8.4. Nothing is converted; two units must be the same.

    Raises:
        Unscorable: a gold is empty, the tolerance is not a finite number >= 0, precision is no such count, both are
            given, or any_unit is neither true nor false.
    """
    same, any_unit = _rule(x.meta), x.meta.get("any_unit", False)
    if not isinstance(any_unit, bool):
        raise Unscorable(f"meta['any_unit'] must be true or false, got {any_unit!r}")
    golds = _golds(x.answer, x.meta.get("answers", ()))
    answer = last_answer(x.text)
    if not answer:
        return RewardOutput(0.0, reason=NO_ANSWER if answer is None else EMPTY)
    numeric = [gold for gold in map(_gold_quantity if any_unit else _number, golds) if gold is not None]
    number = _quantity(_NAME.sub("", bare(answer)), [gold.unit for gold in numeric]) if any_unit else _number(answer)
    text = bare(answer).casefold()
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
    return numeral if numeral is not None and numeral.unit in _PLAIN_UNITS else None


def _quantity(text: str, units: Sequence[str] = ()) -> Numeral | None:
    """A number with a unit that is known, one of `units`, or none."""
    numeral = read_numeral(text)
    if numeral is None or _DECADE.fullmatch(bare(text)):
        return None
    return numeral if numeral.unit in (*_PLAIN_UNITS, *units) or _is_unit(numeral.unit) else None


def _gold_quantity(text: str) -> Numeral | None:
    """A number with a unit, for which most words are taken, or none."""
    formula, unit = split_unit(text, trusted=True)
    amount = _number(formula) if unit else None
    return Numeral(amount.value, unit) if amount is not None and not amount.unit else _quantity(text)


def _is_unit(name: str) -> bool:
    base, power, exponent = name.partition("^")
    return _UNITS.fullmatch(name) is not None or split_unit(rf"1\text{{{base}}}{power}{exponent}")[1] != ""


def _near(number: Numeral, gold: Numeral, same: Same) -> bool:
    if number.unit and gold.unit and number.unit != gold.unit:
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
