"""The parts of a flat row: groups as lengths, and the segments they make.

A flat row of T tokens is prompt 1, its responses, prompt 2, its responses, ... Every prompt and every response is one
segment, numbered along the row. Token q may attend to token k, both counted along the row, if

    k <= q  and  (segment[k] == segment[q]  or  segment[k] is the prompt of q's group)

which is causal attention inside every segment, and all of the prompt for its responses.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

Groups = tuple[tuple[int, tuple[int, ...]], ...]  # (tokens of the prompt, tokens of its responses), in row order


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    start: int  # its first token in the row
    length: int
    prompt: int  # the number of the segment that is the prompt of its group: its own for a prompt

    @property
    def stop(self) -> int:
        return self.start + self.length


def check_groups(groups: Sequence[tuple[int, Sequence[int]]]) -> Groups:
    """The same as tuples. Raises ValueError if there is no group, or an empty prompt or response."""
    if not groups or any(p < 1 for p, _ in groups) or any(r < 1 for _, rs in groups for r in rs):
        raise ValueError(f"a layout needs groups of non-empty prompts and responses, got {list(groups)}")
    return tuple((int(p), tuple(int(r) for r in rs)) for p, rs in groups)


def segments(groups: Groups) -> list[Segment]:
    found: list[Segment] = []
    start = 0
    for prompt, responses in groups:
        number = len(found)
        for length in (prompt, *responses):
            found.append(Segment(start=start, length=length, prompt=number))
            start += length
    return found


def needed_scores(groups: Groups) -> int:
    """How many pairs of a query and a key may attend, per head."""
    return sum(
        p * (p + 1) // 2 + sum(p * r + r * (r + 1) // 2 for r in responses) for p, responses in groups
    )  # fmt: skip
