"""What figures of a benchmark's own are made of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from sapo_vl.benchmarks.base import ItemScores


def right(item: ItemScores, response: int) -> bool:
    """Whether response number `response` of an item is fully right. One that could not be scored is not."""
    return response < len(item.scores) and item.scores[response] == 1.0


def rounds(items: Sequence[ItemScores]) -> range:
    """Numbers of the responses: figures over several items are worked out for each of the k and then averaged."""
    return range(max((len(item.scores) for item in items), default=0))


def part(parts: Mapping[str, float], name: str) -> float | None:
    """A number that the reward reported, also where the scorer put its term's name before it."""
    return parts.get(name, parts.get(f"accuracy/{name}"))
