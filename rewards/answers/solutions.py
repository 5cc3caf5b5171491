"""Golds that give names their values (x = 5; x = 1, y = 2; x > 3), and answers to them.

To math-verify two relations are the same if one can be rearranged into the other. So it takes the equation of the
question for its solution.
"""

from typing import Any

import sympy
from math_verify.grader import is_assignment_relation, is_relation, take_first_relation, take_last_relation
from sympy.core.function import AppliedUndef

_SIGNS_OF_POINTS = frozenset(["angle", "triangle"])


def members(value: Any) -> tuple[Any, ...]:
    """What a list holds, in the order of the text; else `value` alone."""
    if isinstance(value, sympy.FiniteSet | sympy.Tuple):
        return tuple(getattr(value, "_unsorted_args", value.args))
    return (value,)


def relations(value: Any) -> list[Any]:
    """The equations and inequalities that `value` is or lists; a chain (x = 2 + 3 = 5) is one."""
    return [part for part in members(value) if is_relation(part)]


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


def _sides(relation: Any) -> list[tuple[Any, Any]]:
    """The two sides of a relation; of the links of a chain, or of x = ... = 5 as a whole, as math-verify reads it."""
    if is_assignment_relation(relation):
        return [(take_first_relation(relation).lhs, take_last_relation(relation).rhs)]
    links = [relation] if isinstance(relation, sympy.Rel) else relation._unsorted_args
    return [(link.lhs, link.rhs) for link in links]


def _is_named(side: Any, points: bool) -> bool:
    """Whether a side is one name: x, f(2), and of points (AB, an angle ABC) a product of letters."""
    if isinstance(side, sympy.Mul) and all(factor.is_Symbol for factor in side.args):
        return points or any(str(factor) in _SIGNS_OF_POINTS for factor in side.args)
    return isinstance(side, sympy.Symbol | AppliedUndef)


def _is_closed(side: Any) -> bool:
    """Whether a side is a value that depends on nothing: 5, 2 + 3, infinity, a set of numbers."""
    return not side.free_symbols and not side.has(AppliedUndef)
