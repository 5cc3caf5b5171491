"""Is every cell of a logic grid right? For puzzles like ZebraLogic (arXiv 2502.01100)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rewards.answers.blocks import MAX_JSON_CHARS, answer_or_reply, last_object, parse_json
from rewards.answers.extract import plain
from rewards.base import WRONG, RewardInput, RewardOutput, Unscorable, missing

MAX_CELLS = 1000
BLANK = "___"  # what the public copy of ZebraLogic has in place of its solutions
_SOLUTION = "solution"  # ZebraLogic asks for {"reasoning": "...", "solution": {...}}

Grid = dict[tuple[str, str], str]  # (row, column) -> cell


def json_grid(x: RewardInput) -> RewardOutput:
    """1 if every cell of the gold is in the answer (ZebraLogic's puzzle accuracy), else 0.

    The gold is a JSON object, row -> column -> cell, such as {"House 1": {"Name": "Eric", "Drink": "tea"}}, or
    ZebraLogic's own {"header": ["House", "Name", ...], "rows": [["1", "Eric", ...], ...]}, whose row keys become
    "House 1" and so on. The answer is the last complete JSON object in the last `<answer>...</answer>`, or,
    where there is no answer tag, after the thinking; the grid may be the whole object or its "solution". Names
    and cells are compared without regard to case and the amount of white space. Rows and columns that the gold
    does not have are ignored. A cell that is a list of one value is that value. Not JSON, a key given twice, or a cell
    that is a list of several (of candidates, say) make the object or the cell wrong.

    parts["cells"], in [0, 1], is the share of the gold's cells that are right.

    Raises:
        Unscorable: the gold is no such grid, has no cells or more than 1000, or has empty or blanked ("___") ones.
    """
    gold = _gold(x.answer)
    answer = _answer(x.text)
    right = sum(answer.get(place) == cell for place, cell in gold.items())
    reason = "" if right == len(gold) else WRONG
    if not answer:
        reason = missing(answer_or_reply(x.text)) or "not a grid"
    return RewardOutput(float(right == len(gold)), {"cells": right / len(gold)}, reason)


def _gold(text: str) -> Grid:
    try:
        grid = _grid(parse_json(text))
    except ValueError as error:
        raise Unscorable(f"the reference answer {text[:60]!r} is no grid: {error}") from error
    if not 0 < len(grid) <= MAX_CELLS:
        raise Unscorable(f"the reference answer has {len(grid)} cells; it must have 1 to {MAX_CELLS}")
    unusable = [place for place, cell in grid.items() if cell in ("", BLANK)]
    if unusable:
        raise Unscorable(f"the reference answer has no value for {unusable[0]}; was its solution blanked?")
    return grid


def _answer(text: str) -> Grid:
    """The grid of the answer; empty if it has none that can be read."""
    written = last_object((answer_or_reply(text) or "")[-MAX_JSON_CHARS:])
    if written is None:
        return {}
    try:
        value = parse_json(written)
        inner = value.get(_SOLUTION, value)
        return _grid(inner if isinstance(inner, dict) else value)
    except ValueError:  # no JSON, or one that contradicts itself: a wrong answer
        return {}


def _grid(value: Any) -> Grid:
    """Cells by place. Raises ValueError if one name is given twice, or the gold is not made of rows."""
    if not isinstance(value, dict):
        raise ValueError("not a JSON object")
    grid: Grid = {}
    rows = _from_table(value) if set(value) == {"header", "rows"} else value.items()
    names: set[str] = set()
    for row, columns in rows:
        row = _comparable(row)
        if row in names:
            raise ValueError(f"the row {row[:40]!r} occurs twice")
        names.add(row)
        for column, cell in columns.items() if isinstance(columns, dict) else ():
            place = row, _comparable(column)
            if place in grid:
                raise ValueError(f"the column {column[:40]!r} occurs twice")
            grid[place] = _comparable(cell[0] if isinstance(cell, list) and len(cell) == 1 else cell)
    return grid


def _from_table(value: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    header, rows = value["header"], value["rows"]
    lists = isinstance(header, list) and isinstance(rows, list) and all(isinstance(row, list) for row in rows)
    if not lists or not header or any(len(row) != len(header) for row in rows):
        raise ValueError("header and rows must be lists of equal length")
    columns = list(map(str, header[1:]))
    if len(set(columns)) < len(columns):
        raise ValueError("a column occurs twice in the header")
    for row in rows:
        yield f"{header[0]} {row[0]}", dict(zip(columns, row[1:], strict=True))


def _comparable(cell: Any) -> str:
    """A name or cell for comparison; "" for anything but a text or a number, which matches no gold."""
    if isinstance(cell, bool) or not isinstance(cell, str | int | float):
        return ""
    return plain(str(cell)).casefold()
