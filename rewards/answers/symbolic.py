r"""Compare two formulas with math-verify, and where that is laxer than an answer should be, more strictly.

Importing this module imports SymPy. It belongs into a worker that can be killed: SymPy may take any time, and the
time limits of math-verify are off, because they are alarms (SIGALRM) that raise a BaseException.

No text is evaluated. Answers reach SymPy through rewards.latex and the grammar of latex2sympy2_extended only; the
other entry of math-verify, `sympy.parse_expr`, is an eval and is not used. SymPy's own numerical code writes the
names of symbols into Python source that it executes (`evalf` of a `Sum` calls `lambdify`), so each name is checked
once more after parsing.
"""

import functools
import logging
import math
import re
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import sympy
from latex2sympy2_extended.latex2sympy2 import is_expr_of_only_symbols, latex2sympy
from latex2sympy2_extended.logic import And
from math_verify.grader import (
    is_assignment_relation,
    should_treat_as_complex,
    take_first_relation,
    take_last_relation,
    verify,
)
from sympy.core.function import AppliedUndef
from sympy.core.random import seed
from sympy.core.relational import Relational

from rewards.answers.labelled import labelled
from rewards.answers.latex import Formula, NotMath, formula, words
from rewards.answers.quantity import split_unit
from rewards.answers.solutions import (
    as_set,
    in_order,
    is_solution,
    is_solved,
    members,
    relations,
    spread,
    without_indices,
)
from rewards.base import WRONG

MAX_BITS = 20_000  # of a number that SymPy may work out: 6000 digits
MAX_TERMS = 500  # that a formula expands to: (x + 1)^100 has 101
CLOSE = 1e-5  # relative difference at which two decimals may still be the same number
MEMORY = 1 << 30  # bytes that one comparison may add to the process

_GIVEN_UP = (TypeError, ValueError, ArithmeticError, AttributeError, NotImplementedError, RecursionError)
_STATM = Path("/proc/self/statm")  # pages in use; where there is none (macOS) memory is not limited
_NAME = re.compile(r"[A-Za-z0-9_{},+-]+")

logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns that its time limits are off


@functools.lru_cache(maxsize=4096)
def problem_of_gold(gold: str) -> str:
    """Why nothing can be compared with this gold, or "". One that does not equal itself would fail every answer."""
    try:
        return "it does not equal itself" if difference(gold, gold) else ""
    except NotMath as reason:
        return str(reason)


@functools.lru_cache(maxsize=4096)
def verdict(gold: str, answer: str) -> str:
    """Why the answer scores 0, or "". Responses to one problem often end alike, and a comparison takes 20 ms."""
    try:
        return difference(gold, answer)
    except NotMath as reason:
        return str(reason)


def difference(gold: str, answer: str) -> str:
    """Why `answer` is not what `gold` says, in a few fixed words; "" if it is.

    Words ("no solution") are compared as words. Values under names ("domain: ..., range: ...") must have the same
    names, in any order, and are compared one by one (rewards.answers.labelled). Units: the same as the gold's, or none
    in one of the two; "20%" is 20 and 0.2. For the rest math-verify decides (`verify`, gold first), and beyond that
    these are wrong:

    * an unevaluated integral, sum, limit, ... where the gold has none;
    * a number in another base: 1011_3 for 1011_2;
    * a set in braces for a tuple or interval, and the other way round;
    * a list where the gold is one thing, or a longer list than the gold's, even of equal values: 5, 5 for 5;
    * numbers more than CLOSE apart, relatively (math-verify rounds to 6 decimals, so to it 1e-7 is 2e-7);
    * an equation for its right side alone: x + 2 = 7 for 7; or a chain that is false: 7 = 5 for 5;
    * an equation that the gold solves: x + 2 = 7 for x = 5 (rewards.answers.solutions);
    * values in another order than that of the gold's names: 2, 1 for x = 1, y = 2.

    Solutions of one unknown may also be written without indices, and those of inequalities as a set.

    Raises:
        NotMath: the answer (or the gold) is not plain mathematics, cannot be parsed, or is too large.
    """
    if wanted_parts := labelled(gold):
        parts = labelled(answer)
        if parts.keys() != wanted_parts.keys():
            return "other names"
        return next(filter(None, (difference(wanted_parts[name], part) for name, part in parts.items())), "")
    gold_words, answer_words = words(gold), words(answer)
    if gold_words or answer_words:
        return "" if gold_words == answer_words else WRONG
    gold_text, gold_unit = split_unit(gold, trusted=True)
    answer_text, answer_unit = split_unit(answer, also=gold_unit)
    percents = (gold_unit == "%") - (answer_unit == "%")
    if gold_unit and answer_unit and gold_unit != answer_unit:
        return "wrong unit"
    given, wanted = formula(answer_text), formula(gold_text)
    if given.unevaluated - wanted.unevaluated:
        return "not evaluated"
    if given.bases not in ((), wanted.bases) and (wanted.bases or set(given.bases) != {"10"}):
        return "wrong base"
    kinds = {given.brackets, wanted.brackets}
    if "{}" in kinds and "" not in kinds and len(kinds) == 2:
        return "wrong kind of brackets"
    with _bounded():
        is_real = not any(should_treat_as_complex(f.tex.replace("I", "i")) for f in (given, wanted))
        value, gold_value = _parsed(given, is_real), _parsed(wanted, is_real)
        if given.items > 1 and (not _is_list(gold_value) or given.items > wanted.items > 1):
            return "more than one answer"
        try:
            gold_value, value = without_indices(spread(gold_value), spread(value))
            points = not any(token[0].islower() for token in wanted.tex.split())
            same = _equal(gold_value, value, points)
            if percents and not same and isinstance(gold_value, sympy.Expr):
                same = _equal(gold_value * sympy.Integer(100) ** -percents, value, points)
        except _GIVEN_UP as error:  # what SymPy raises where it cannot work with a value
            raise NotMath("cannot be compared") from error
    return "" if same else WRONG


@contextmanager
def _bounded() -> Iterator[None]:
    """Limit what SymPy may allocate, and make it repeatable: its numerical tests draw random numbers."""
    seed(0)
    soft, hard = bound, _ = resource.getrlimit(resource.RLIMIT_AS)
    if _STATM.exists():
        bound = int(_STATM.read_text().split()[0]) * resource.getpagesize() + MEMORY
        bound = bound if soft == resource.RLIM_INFINITY else min(bound, soft)
    resource.setrlimit(resource.RLIMIT_AS, (bound, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _parsed(text: Formula, is_real: bool) -> Any:
    try:
        value = latex2sympy(text.tex, is_real=is_real, convert_degrees=False, normalization_config=None)
    except Exception as error:  # the parser raises plain Exception for a syntax error, and SymPy anything
        raise NotMath("cannot be parsed") from error
    if not isinstance(value, sympy.Basic | sympy.MatrixBase):
        raise NotMath("cannot be parsed")
    for part in sympy.preorder_traversal(value):
        name = part.name if isinstance(part, sympy.Symbol) else getattr(part, "name", "x")
        if isinstance(part, sympy.Symbol | AppliedUndef) and not _NAME.fullmatch(str(name)):
            raise NotMath("not mathematics")
    _check_size(value)
    return value


def _is_list(gold: Any) -> bool:
    """Whether an answer that is a list can say the same as `gold`."""
    if isinstance(gold, sympy.Eq):
        gold = gold.rhs
    return isinstance(gold, sympy.Set | sympy.Tuple | sympy.MatrixBase | Relational | And)


def _equal(gold: Any, value: Any, points: bool) -> bool:
    if not relations(gold) and not all(map(_names_a_value, relations(value))):
        return False
    if is_solution(gold, points) and not is_solved(value):
        return False
    gold, value = in_order(gold, value)
    if isinstance(value, sympy.Interval | sympy.Union):
        gold = as_set(gold)
    if any(map(_is_false_chain, members(value))) or not verify(gold, value, timeout_seconds=None):
        return False
    numbers, wanted = _numbers(value), _numbers(gold)
    return len(numbers) != len(wanted) or all(map(_close, numbers, wanted))


def _names_a_value(value: Any) -> bool:
    """Whether a relation starts with a name or a number: x = 5, f(2) = 5, 2 + 3 = 5; but not x + 2 = 7."""
    start = take_first_relation(value).lhs
    return start.is_number or isinstance(start, AppliedUndef) or is_expr_of_only_symbols(start)


def _is_false_chain(value: Any) -> bool:
    """Whether `value` says that two different numbers are equal, as 7 = 5 and x = 7 = 5 do."""
    equations = value.args if isinstance(value, And) else (value,)
    sides = {side for e in equations if isinstance(e, sympy.Eq) for side in e.args}
    numbers = [number for side in sides if isinstance(side, sympy.Expr) for number in _numbers(side)]
    return not all(_close(numbers[0], number) for number in numbers[1:])


def _numbers(value: Any) -> list[Any]:
    """The numbers that `value` consists of, sorted: itself, elements, bounds, the right side of x = 5."""
    if is_assignment_relation(value):
        value = take_last_relation(value).rhs
    parts: Any
    if isinstance(value, sympy.Interval):
        parts = (value.start, value.end)
    else:
        parts = value.args if isinstance(value, sympy.FiniteSet | sympy.Tuple) else (value,)
    if not all(isinstance(part, sympy.Expr) and part.is_number for part in parts):
        return []
    return sorted(map(_evaluated, parts), key=lambda part: sympy.re(part))


def _evaluated(number: Any) -> Any:
    """20 digits of a number. A zero of which SymPy finds no digit (13 - 4 - 9) compares with nothing."""
    value = number.evalf(20)
    return sympy.Integer(0) if value.is_Float and not value.is_comparable else value


def _close(a: Any, b: Any) -> bool:
    gap, size = abs(a - b), sympy.Max(abs(a), abs(b))
    if not (gap.is_finite and size.is_finite):
        return True  # infinity, or a number that SymPy cannot work out: math-verify has decided
    return bool(gap <= CLOSE * size)


def _check_size(value: Any) -> tuple[float, float]:
    """(upper bound of log2 |value| of a number, 0 for a symbol; terms that `value` expands to).

    Raises:
        NotMath: SymPy would have to work out numbers of more than MAX_BITS bits, or more than MAX_TERMS terms.
    """
    if isinstance(value, sympy.Rational):
        return max(value.p.bit_length(), value.q.bit_length()), 1
    if isinstance(value, sympy.Float):
        return abs(math.log2(abs(float(value)) or 1.0)), 1
    parts: Any = value.flat() if isinstance(value, sympy.MatrixBase) else value.args
    sizes = [_check_size(part) for part in parts]
    bits, terms = sum(size[0] for size in sizes), 1.0
    if isinstance(value, sympy.Add):
        terms = sum(size[1] for size in sizes)
    elif isinstance(value, sympy.Mul):
        terms = math.prod(size[1] for size in sizes)
    elif isinstance(value, sympy.Pow | sympy.exp):
        base, exponent = value.as_base_exp()
        (base_bits, base_terms), power = _check_size(base), _largest(exponent)
        bits = max(base_bits, 0.0 if base.free_symbols else 2.0) * power
        if exponent.is_Integer and base_terms > 1:  # (a + b + c)^n
            terms = math.exp(math.lgamma(base_terms + power) - math.lgamma(base_terms) - math.lgamma(power + 1))
    elif isinstance(value, sympy.factorial):
        power = _largest(value.args[0])
        bits = power * math.log2(power + 1)
    if bits > MAX_BITS or terms > MAX_TERMS:
        raise NotMath("too large")
    return bits, terms


def _largest(exponent: Any) -> float:
    """Upper bound of |exponent| if it is a number, else 1, and at least 1."""
    if not exponent.is_number:
        return 1.0
    if isinstance(exponent, sympy.Number) and exponent.is_finite:
        return max(1.0, min(abs(float(exponent)), 2.0**64))
    return 2.0 ** min(_check_size(exponent)[0], 64)


def value_of(text: str) -> float | None:
    """The finite real number that a formula works out to; None if it is none, or is no plain mathematics."""
    try:
        with _bounded():
            value = _parsed(formula(text), is_real=True)
            if not isinstance(value, sympy.Expr) or not value.is_number:
                return None
            number = complex(value.evalf(20))
    except (NotMath, TypeError, ValueError, OverflowError):
        return None
    return number.real if math.isfinite(number.real) and not number.imag else None


# SymPy imports its solvers, and the parser fills its tables, at first use. That belongs to the start of a worker too.
for _gold, _answer in (("x=5", "y=5"), ("(1,2)", "[1,2)"), (r"\frac{x+1}{2}", r"\sin(x)^2"), (r"\sqrt{2}", "x<1.4")):
    difference(_gold, _answer)
