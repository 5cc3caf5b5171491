"""Taking some of many evenly, where not all have room."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")


def spread(items: Sequence[T], n: int) -> list[T]:
    """`n` of the items (all of them if there are fewer), evenly spaced, the first and the last among them."""
    if n >= len(items):
        return list(items)
    if n == 1:
        return [items[0]]
    return [items[round(i * (len(items) - 1) / (n - 1))] for i in range(n)]


def coarse_to_fine(count: int) -> list[int]:
    """0 to count - 1 in such an order that every beginning of it is spread over all of them."""
    order: dict[int, None] = {}
    n = 2
    while len(order) < count:
        order |= dict.fromkeys(spread(range(count), n))
        n *= 2
    return list(order)
