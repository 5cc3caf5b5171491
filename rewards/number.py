"""Is the answer the right number?"""

from collections.abc import Mapping
from fractions import Fraction
from math import floor
from typing import Any

from rewards.answers.extract import last_answer
from rewards.answers.numerals import MAX_CHARS, Numeral, read_numeral, unit_name
from rewards.base import EMPTY, NO_ANSWER, TOO_LONG, WRONG, RewardInput, RewardOutput, Unscorable

DEFAULT_TOLERANCE = Fraction(1, 10**9)
MAX_PRECISION = 15
PERCENT = {"points": Fraction(1), "fraction": Fraction(1, 100)}  # value of "1%"


def parse_number(text: str) -> Fraction | None:
    """The one number `text` consists of, exactly; None for words, units, two numbers, NaN, inf."""
    numeral = read_numeral(text)
    return None if numeral is None or numeral.unit else numeral.value


def number(x: RewardInput) -> RewardOutput:
    """1 if the answer is the gold number, else 0.

    "Is" means |answer - gold| <= meta["tolerance"], absolute, in the unit of the gold (1e-9 if not given). Or, with
    meta["precision"], a count of decimals in 0..15, that both are the same once rounded to it, halves away from
    zero. Spellings: rewards.numerals.read_numeral.

    A unit is wrong unless meta["unit"] allows it: a text, or a list of texts that mean the same. The answer may
    then carry one of these or none. meta["percent"] says what "20%" means: "points" or true (20), "fraction"
    (0.2); without it a per cent sign is a wrong unit. A rule that is null counts as not given.

    Raises:
        Unscorable: the gold is not such a number, a rule of meta is malformed, or both tolerance and precision
            are given.
    """
    rule = _Rule(x.meta)
    gold = read_numeral(x.answer)
    gold_value = None if gold is None else rule.value(gold)
    if gold_value is None:
        raise Unscorable(f"the reference answer {x.answer[:40]!r} is not a number")
    answer = last_answer(x.text)
    if not answer:
        return RewardOutput(0.0, reason=NO_ANSWER if answer is None else EMPTY)
    numeral = read_numeral(answer)
    if numeral is None:
        return RewardOutput(0.0, reason=TOO_LONG if len(answer) > MAX_CHARS else "not a number")
    value = rule.value(numeral)
    if value is None:
        return RewardOutput(0.0, reason="wrong unit")
    return RewardOutput(1.0) if rule.same(value, gold_value) else RewardOutput(0.0, reason=WRONG)


class _Rule:
    """How the data set wants numbers compared."""

    def __init__(self, meta: Mapping[str, Any]):
        tolerance, decimals, unit, percent = map(meta.get, ("tolerance", "precision", "unit", "percent"))
        if tolerance is not None and decimals is not None:
            raise Unscorable("meta['tolerance'] and meta['precision'] contradict each other; give one")
        self._tolerance = DEFAULT_TOLERANCE if tolerance is None else _tolerance(tolerance)
        self._precision = None if decimals is None else precision(decimals)
        self._units = frozenset[str]() if unit is None else _units(unit)
        if isinstance(percent, bool):
            percent = "points" if percent else None
        if percent is not None and (not isinstance(percent, str) or percent not in PERCENT):
            raise Unscorable(f"meta['percent'] must be one of {sorted(PERCENT)}, got {percent!r}")
        self._percent = None if percent is None else PERCENT[percent]

    def value(self, numeral: Numeral) -> Fraction | None:
        """The number in the unit of the gold; None if its unit is not allowed."""
        if not numeral.unit or numeral.unit in self._units:
            return numeral.value
        return numeral.value * self._percent if numeral.percent and self._percent is not None else None

    def same(self, value: Fraction, gold: Fraction) -> bool:
        if self._precision is not None:
            return rounded(value, self._precision) == rounded(gold, self._precision)
        return abs(value - gold) <= self._tolerance


def rounded(value: Fraction, decimals: int) -> int:
    """`value` in units of the last decimal, halves away from zero."""
    size = floor(abs(value) * 10**decimals + Fraction(1, 2))
    return size if value >= 0 else -size


def _tolerance(value: Any) -> Fraction:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < float("inf"):
        raise Unscorable(f"meta['tolerance'] must be a finite number >= 0, got {value!r}")
    return Fraction(str(value))


def precision(value: Any) -> int:
    """meta["precision"], checked. Raises Unscorable."""
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value <= MAX_PRECISION:
        raise Unscorable(f"meta['precision'] must be a count of decimals in 0..{MAX_PRECISION}, got {value!r}")
    return value


def _units(value: Any) -> frozenset[str]:
    names = [value] if isinstance(value, str) else value
    if not isinstance(names, list | tuple) or not all(isinstance(name, str) and unit_name(name) for name in names):
        raise Unscorable(f"meta['unit'] must be a unit or a list of units, got {value!r}")
    return frozenset(map(unit_name, names))
