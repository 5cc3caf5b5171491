"""Which rank trains which group, in which micro-batch, so that ranks wait little for each other.

Ranks go through an update in lock step: with sharded weights they meet in every micro-batch. An update takes as long as
the largest micro-batch of each round, so all micro-batches of a round should be equal work. Where groups are few or
large, some are split: that costs their prompt once more, and is done where it still makes the update shorter.

Everything here is numbers, worked out alike on every rank. What an update computes does not depend on it, up to the
rounding of sums: which groups an update has, and what it divides by, is settled before.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from sapo_vl.model.batching import split_lengths
from sapo_vl.model.work import Work

# Groups move only for an update that is shorter by this much: where they lie they cost nothing.
LEAST_GAIN = 0.05
GOOD_ENOUGH = 0.97  # the efficiency from which on no other deal is tried
# Groups that are more than so many times the mean work of a micro-batch are split, tried in turn; 0 = none is.
SPLITS = (0.0, 1.0, 0.7, 0.5, 0.35, 0.25)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sized:
    """What ranks tell each other of a group that takes part in an update."""

    home: int  # the rank that sampled it
    index: int  # its place among the groups of that rank
    prompt: int  # tokens
    patches: tuple[int, ...]  # of each picture
    responses: tuple[int, ...]  # those that take part, by place in the group
    lengths: tuple[int, ...]  # their tokens


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """A group or a part of one: what a micro-batch is made of."""

    home: int
    index: int
    responses: tuple[int, ...]  # by place in the group
    size: int  # flat tokens and vision patches, against the budget
    work: float  # see Work.of


@dataclass(frozen=True, slots=True, kw_only=True)
class Deal:
    """One update. rows[rank][round]: the pieces of a micro-batch; ranks may have fewer than there are rounds."""

    rows: tuple[tuple[tuple[Piece, ...], ...], ...]
    needed: float  # work of all groups, none of them split

    @property
    def taken(self) -> float:
        """Work that fits into the time this takes: all ranks, as long as the largest micro-batch of each round."""
        longest = [0.0] * max(map(len, self.rows), default=0)
        for rank in self.rows:
            for i, row in enumerate(rank):
                longest[i] = max(longest[i], sum(piece.work for piece in row))
        return len(self.rows) * sum(longest)

    @property
    def rounds(self) -> int:
        return max(map(len, self.rows), default=0)


def deal(groups: Sequence[Sized], ranks: int, budget: int, work: Work) -> Deal:
    """Deals the groups of one update, which come by home and index.

    Where that is nearly as good they stay where they are, in their order; with one rank always.
    """
    needed = _needed(groups, work)
    home = at_home(groups, ranks, budget, work)
    if ranks == 1 or not groups:
        return home
    best: Deal | None = None
    for factor in SPLITS:
        pieces = _cut(groups, ranks, budget, work, factor * needed)
        found = Deal(rows=_balanced(pieces, ranks, budget), needed=needed)
        if best is None or found.taken < 0.99 * best.taken:
            best = found
        if needed >= GOOD_ENOUGH * best.taken:
            break
    assert best is not None
    return best if best.taken < (1 - LEAST_GAIN) * home.taken else home


def at_home(groups: Sequence[Sized], ranks: int, budget: int, work: Work) -> Deal:
    """Every group on its rank and in order, packed as `split_by_budget` does it."""
    rows: list[list[list[Piece]]] = [[] for _ in range(ranks)]
    room = [0] * ranks
    for group in groups:
        mine = rows[group.home]
        for piece in _parts(group, budget, work):
            if not mine or piece.size > room[group.home]:
                mine.append([])
                room[group.home] = budget
            mine[-1].append(piece)
            room[group.home] -= piece.size
    return Deal(rows=tuple(tuple(map(tuple, rank)) for rank in rows), needed=_needed(groups, work))


def _needed(groups: Sequence[Sized], work: Work) -> float:
    return sum(work.of(g.prompt, g.lengths, g.patches) for g in groups)


def _parts(group: Sized, budget: int, work: Work, least: int = 1) -> list[Piece]:
    """The group in parts within the budget, at least `least`."""
    fixed = group.prompt + sum(group.patches)
    whole = fixed + sum(group.lengths)
    parts = [list(range(len(group.lengths)))]
    if least > 1 or whole > budget:
        parts = split_lengths(group.lengths, budget - fixed, least)
    return [
        Piece(
            home=group.home,
            index=group.index,
            responses=tuple(group.responses[i] for i in part),
            size=fixed + sum(group.lengths[i] for i in part),
            work=work.of(group.prompt, [group.lengths[i] for i in part], group.patches),
        )
        for part in parts
    ]


def _cut(groups: Sequence[Sized], ranks: int, budget: int, work: Work, above: float) -> list[Piece]:
    """All groups in pieces; those whose work is more than `above` over the number of micro-batches, in several."""
    size = sum(g.prompt + sum(g.patches) + sum(g.lengths) for g in groups)
    limit = above / (ranks * max(1, -(-size // (ranks * budget))))
    pieces: list[Piece] = []
    for group in groups:
        least = 1
        if limit:
            least = int(np.ceil(work.of(group.prompt, group.lengths, group.patches) / limit))
        pieces += _parts(group, budget, work, least)
    return pieces


def _balanced(pieces: Sequence[Piece], ranks: int, budget: int) -> tuple[tuple[tuple[Piece, ...], ...], ...]:
    """The fewest rounds that the budget allows, filled by the largest piece first into the micro-batch with the least
    work; then the micro-batches by size, so that those of a round are alike; each to the rank that has most of it."""
    rounds = max(1, -(-sum(p.size for p in pieces) // (ranks * budget)))
    while (bins := _filled(pieces, ranks * rounds, budget)) is None:
        rounds += 1
    bins = sorted((row for row in bins if row), key=lambda row: -sum(p.work for p in row))
    rows: list[list[tuple[Piece, ...]]] = [[] for _ in range(ranks)]
    for start in range(0, len(bins), ranks):
        for rank, row in _nearest(bins[start : start + ranks], ranks):
            rows[rank].append(tuple(sorted(row, key=lambda p: (p.home, p.index, p.responses))))
    return tuple(map(tuple, rows))


def _filled(pieces: Sequence[Piece], count: int, budget: int) -> list[list[Piece]] | None:
    """`count` micro-batches, some perhaps empty; None if the pieces do not fit. One over the budget is alone."""
    bins: list[list[Piece]] = [[] for _ in range(count)]
    size, work = np.zeros(count), np.zeros(count)
    for piece in sorted(pieces, key=lambda p: (-p.work, p.home, p.index, p.responses)):
        open_ = (size + piece.size <= budget) | (size == 0)
        if not open_.any():
            return None
        at = int(np.argmin(np.where(open_, work, np.inf)))
        bins[at].append(piece)
        size[at] += piece.size
        work[at] += piece.work
    return bins


def _nearest(rows: Sequence[Sequence[Piece]], ranks: int) -> list[tuple[int, Sequence[Piece]]]:
    """A rank for each row of a round: the pairs that leave most where it lies come first."""
    there = np.zeros((len(rows), ranks))
    for i, row in enumerate(rows):
        for piece in row:
            there[i, piece.home] += piece.size
    order = np.argsort(-there, axis=None, kind="stable")
    rank_of: dict[int, int] = {}
    taken: set[int] = set()
    for i, rank in zip(*np.unravel_index(order, there.shape), strict=True):
        if int(i) not in rank_of and int(rank) not in taken:
            rank_of[int(i)] = int(rank)
            taken.add(int(rank))
    return [(rank_of[i], row) for i, row in enumerate(rows)]
