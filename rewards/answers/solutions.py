"""Golds that give names their values (x = 5; x = 1, y = 2; x < -2 or x > 3), and answers to them.

To math-verify two relations are the same if one can be rearranged into the other, values without names may stand in any
order, and relations in a list are no set. So it takes the equation of the question for its solution, (2, 1) for
x = 1, y = 2, and no interval for x < -2 or x > 3. Here is what it lacks; it gets what is left.
"""

from collections.abc import Iterable
from typing import Any

import sympy
from latex2sympy2_extended.sets import FiniteSet
from math_verify.grader import is_assignment_relation, is_relation, take_first_relation, take_last_relation
from sympy.core.function import AppliedUndef

_UNKNOWN = "x"  # x_1 and x_2 are the roots of one equation; a_1 and a_2 are two things
_SIGNS_OF_POINTS = frozenset(["angle", "triangle"])


def members(value: Any) -> tuple[Any, ...]:
    """What a list holds, in the order of the text; else `value` alone."""
    if isinstance(value, sympy.FiniteSet | sympy.Tuple):
        return tuple(getattr(value, "_unsorted_args", value.args))
    return (value,)


def relations(value: Any) -> list[Any]:
    """The equations and inequalities that `value` is or lists; a chain (x = 2 + 3 = 5) is one."""
    return [part for part in members(value) if is_relation(part)]


def spread(value: Any) -> Any:
    """(x, y) = (1, 2) as the list x = 1, y = 2; anything else as it is."""
    if not isinstance(value, sympy.Eq) or not isinstance(value.lhs, sympy.Tuple):
        return value
    names, point = value.lhs.args, value.rhs
    if isinstance(point, sympy.Interval) and point.is_open:  # how the parser reads (1, 2)
        point = sympy.Tuple(point.start, point.end)
    if not isinstance(point, sympy.Tuple) or len(point) != len(names):
        return value
    return _list(zip(names, point, strict=True))


def is_solution(gold: Any, points: bool) -> bool:
    """Whether `gold` is relations of which each has a name on one side and a value on the other.

    Args:
        points: the letters of the gold are all capitals, so that AB = 5 is a length and no product.
    """
    found = relations(gold)
    return bool(found) and all(
        (_is_named(left, points) and _is_closed(right)) or (_is_named(right, points) and _is_closed(left))
        for relation in found
        for left, right in _sides(relation)
    )


def is_solved(value: Any) -> bool:
    """Whether the relations of an answer have nothing but names and values as their sides: not x + 2 = 7."""
    sides = [side for relation in relations(value) for pair in _sides(relation) for side in pair]
    return all(_is_named(side, points=True) or _is_closed(side) for side in sides)


def in_order(gold: Any, value: Any) -> tuple[Any, Any]:
    """Both as tuples where the gold gives values to different names and the answer is values without names.

    Then the first value is that of the first name. x = 3 or x = 4 is in any order, and so are x_1 = 3, x_2 = 4.
    """
    pairs = _values(gold)
    names = {_letter(name) for name, _ in pairs}
    if len(pairs) < 2 or len(names) < len(pairs) or relations(value):
        return gold, value
    listed = sympy.Tuple(*members(value)) if isinstance(value, sympy.FiniteSet) else value
    return sympy.Tuple(*(number for _, number in pairs)), listed


def without_indices(gold: Any, value: Any) -> tuple[Any, Any]:
    """Both with x for x_1 and x_2 where these are all the names of the gold: which root is the first is no matter.

    Other letters only where the answer has no indices: t = 2 or t = 3 for t_1 = 2, t_2 = 3.
    """
    wanted, given = _values(gold), _values(value)
    letters = {_letter(name) for name, _ in (*wanted, *given)}
    indexed = {name for name, _ in (*wanted, *given) if str(name) not in letters}
    if len(letters) != 1 or len(wanted) != len(given) or len(wanted) < 2 or not indexed:
        return gold, value
    letter = min(letters)
    if letter != _UNKNOWN and any(name in indexed for name, _ in given):
        return gold, value
    unknown = sympy.Symbol(letter, real=next(iter(indexed)).is_real)
    return _list((unknown, number) for _, number in wanted), _list((unknown, number) for _, number in given)


def as_set(gold: Any) -> Any:
    """Inequalities in one unknown that no number meets at once, x < -2 or x > 3, as the set of those that meet one.

    Anything else as it is: x > 5, x < 7 may mean "and".
    """
    found = relations(gold)
    inequalities = [relation for relation in found if not is_assignment_relation(relation)]
    if len(found) < 2 or not inequalities or len(gold.free_symbols) != 1 or not is_solution(gold, points=False):
        return gold
    sets = [relation.as_set() for relation in found]
    return sympy.Union(*sets) if sympy.Intersection(*sets).is_empty else gold


def _sides(relation: Any) -> list[tuple[Any, Any]]:
    """The two sides of a relation; of the links of a chain, or of x = ... = 5 as a whole, as math-verify reads it."""
    if is_assignment_relation(relation):
        return [(take_first_relation(relation).lhs, take_last_relation(relation).rhs)]
    links = [relation] if isinstance(relation, sympy.Rel) else relation._unsorted_args
    return [(link.lhs, link.rhs) for link in links]


def _values(value: Any) -> list[tuple[Any, Any]]:
    """(name, value) of each part of a list x = 1, y = 2; [] if any is something else."""
    found = [_sides(part)[0] for part in members(value) if is_assignment_relation(part) or _is_value_of_call(part)]
    pairs = [(name, number) for name, number in found if _is_named(name, points=True) and _is_closed(number)]
    return pairs if len(pairs) == len(members(value)) else []


def _list(pairs: Iterable[tuple[Any, Any]]) -> Any:
    return FiniteSet(*(sympy.Eq(name, number, evaluate=False) for name, number in pairs))


def _is_value_of_call(value: Any) -> bool:
    return isinstance(value, sympy.Eq) and isinstance(value.lhs, AppliedUndef)


def _is_named(side: Any, points: bool) -> bool:
    """Whether a side is one name: x, f(2), and of points (AB, an angle ABC) a product of letters."""
    if isinstance(side, sympy.Mul) and all(factor.is_Symbol for factor in side.args):
        return points or any(str(factor) in _SIGNS_OF_POINTS for factor in side.args)
    return isinstance(side, sympy.Symbol | AppliedUndef)


def _is_closed(side: Any) -> bool:
    """Whether a side is a value that depends on nothing: 5, 2 + 3, infinity, a set of numbers."""
    return not side.free_symbols and not side.has(AppliedUndef)


def _letter(name: Any) -> str:
    """What a name is without its index: x of x_1."""
    return str(name).partition("_")[0] if name.is_Symbol else str(name)
