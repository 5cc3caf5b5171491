"""Does the path lead through the maze? Checked by walking it."""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from typing import NamedTuple

from rewards.answers.extract import bare
from rewards.answers.extract import last_answer as final_answer
from rewards.base import WRONG, RewardInput, RewardOutput, Unscorable, missing

MAX_CELLS = 10_000
_MAX_STEPS_PER_CELL = 4
WALL, START, GOAL = "#", "S", "G"
_STEPS = {"u": (-1, 0), "d": (1, 0), "l": (0, -1), "r": (0, 1)}
_WORDS = {"up": "u", "down": "d", "left": "l", "right": "r"}
_WORDS |= {"\u2191": "u", "\u2193": "d", "\u2190": "l", "\u2192": "r"}
_WORDS |= {"\u2b06": "u", "\u2b07": "d", "\u2b05": "l", "\u27a1": "r"}
_DROPPED = str.maketrans("", "", "\ufe0f")  # "show as an emoji", which follows the heavier arrows
_MOVE = re.compile(r"[a-z]+|[\u2190-\u2193\u27a1\u2b05-\u2b07]")
_BETWEEN_MOVES = re.compile(r"[\s,;.\[\]\"'|-]*")
_CELL = re.compile(r"(?<![0-9])-?[0-9]{1,4}(?![0-9])")  # "-1" is off the grid, "0-1" are two numbers
_BETWEEN_CELLS = re.compile(r"[\s,;()\[\]>\u2192-]*")

Place = tuple[int, int]  # row from the top, column from the left, both from 0


class Maze(NamedTuple):
    open: frozenset[Place]
    start: Place
    goal: Place


def maze(x: RewardInput) -> RewardOutput:
    """1 if the answer is a path from S to G that stays on open cells, else 0.

    meta["grid"] is a list of rows of equal length: "#" is a wall, "S" the start, "G" the goal, anything else is
    open. The path is given as moves, "U", "D", "L", "R" (also "UURD"), "up", "down", "left", "right", or arrows; or
    as the cells it passes, S and G included, in numbers from 0: (row, column), or (x, y) with meta["cells"] =
    "xy". Any path that ends on G counts, if it has at most four steps for each open cell; with meta["shortest"] =
    true it must be as short as one can be. A step into a wall or off the grid, a gap between two cells, or any other
    text scores 0.

    parts["legal"], in [0, 1], is the share of the steps before the first that is not allowed.

    Raises:
        Unscorable: the grid is no such grid, is larger than 10,000 cells, or no path leads from S to G.
    """
    board = _board(x.meta.get("grid"))
    shortest = x.meta.get("shortest", False)
    order = x.meta.get("cells", "rc")
    if not isinstance(shortest, bool) or order not in ("rc", "xy"):
        raise Unscorable(f"meta['shortest'] must be true or false and meta['cells'] rc or xy: {shortest!r}, {order!r}")
    distance = _distance(board)
    if distance is None:
        raise Unscorable("no path leads from S to G of meta['grid']")
    found = final_answer(x.text)
    steps = _path(found or "", board, order, _MAX_STEPS_PER_CELL * len(board.open))
    if not steps:
        return RewardOutput(0.0, {"legal": 0.0}, missing(found) or "not a path")
    place = board.start
    for legal, (row, column) in enumerate(steps):
        place = place[0] + row, place[1] + column
        if place not in board.open or abs(row) + abs(column) != 1:
            return RewardOutput(0.0, {"legal": legal / len(steps)}, "through a wall")
    arrived = place == board.goal and (not shortest or len(steps) == distance)
    return RewardOutput(float(arrived), {"legal": 1.0}, "" if arrived else WRONG)


def _path(text: str, board: Maze, order: str, most: int) -> list[Place] | None:
    """The steps of the path, as changes of row and column; None if `text` is no path, or one too long."""
    if len(text) > 20 * most:
        return None
    text = bare(text.translate(_DROPPED)).casefold()
    moves = _tokens(_CELL if re.search("[0-9]", text) else _MOVE, text)
    if moves is None or len(moves) > 2 * most + 2:
        return None
    if moves and moves[0].isdecimal():
        return _steps_between(_cells(moves, order), board.start)
    names: list[str] = []
    for move in moves:
        run = move if set(move) <= _STEPS.keys() else _WORDS.get(move)  # "uurd" is four moves
        if run is None:
            return None
        names.extend(run)
    return [_STEPS[name] for name in names] if len(names) <= most else None


def _tokens(token: re.Pattern[str], text: str) -> list[str] | None:
    """The tokens that `text` consists of, apart from what may stand between them; else None."""
    between = _BETWEEN_CELLS if token is _CELL else _BETWEEN_MOVES
    return token.findall(text) if all(map(between.fullmatch, token.split(text))) else None


def _cells(numbers: Sequence[str], order: str) -> list[Place]:
    """Pairs of numbers as cells; [] if one number is left over."""
    if len(numbers) % 2:
        return []
    pairs = zip(map(int, numbers[::2]), map(int, numbers[1::2]), strict=True)
    return [(a, b) if order == "rc" else (b, a) for a, b in pairs]


def _steps_between(cells: Sequence[Place], start: Place) -> list[Place] | None:
    if not cells or cells[0] != start:
        return None
    return [(b[0] - a[0], b[1] - a[1]) for a, b in itertools.pairwise(cells)]


def _board(grid: object) -> Maze:
    rows = grid if isinstance(grid, list | tuple) else []
    texts = [row for row in rows if isinstance(row, str)]
    if not texts or len(texts) < len(rows) or len({len(row) for row in texts}) > 1:
        raise Unscorable(f"meta['grid'] must be a list of texts of one length, got {str(grid)[:60]!r}")
    if len(texts) * len(texts[0]) > MAX_CELLS:
        raise Unscorable(f"meta['grid'] has more than {MAX_CELLS} cells")
    cells = {(r, c): cell for r, row in enumerate(texts) for c, cell in enumerate(row)}
    starts = [place for place, cell in cells.items() if cell == START]
    goals = [place for place, cell in cells.items() if cell == GOAL]
    if len(starts) != 1 or len(goals) != 1:
        raise Unscorable(f"meta['grid'] must have one S and one G, it has {len(starts)} and {len(goals)}")
    return Maze(frozenset(place for place, cell in cells.items() if cell != WALL), starts[0], goals[0])


def _distance(board: Maze) -> int | None:
    """Steps of a shortest path from the start to the goal, by breadth-first search; None if there is none."""
    seen, edge, steps = {board.start}, [board.start], 0
    while edge:
        if board.goal in edge:
            return steps
        near = {(r + dr, c + dc) for r, c in edge for dr, dc in _STEPS.values()}
        edge = list((near & board.open) - seen)
        seen.update(edge)
        steps += 1
    return None
