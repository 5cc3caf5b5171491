"""ZebraLogic (arXiv 2502.01100): 1000 logic grid puzzles of 2x2 to 6x6, without pictures.

Rows: id, size ("5*6": houses and attributes), puzzle, solution {"header": ["House", "Name", ...], "rows": [["1", ...],
...]}. The default source is the authors' earlier, open release, which public loaders give as the copy with the
solutions. In `allenai/ZebraLogicBench` the solutions are blanked and every row is left out;
`allenai/ZebraLogicBench-private` has them and access to it must be asked for. That ids and puzzles of the two are the
same is to be checked once by who has access:
eval.benchmarks={zebralogic: {source: allenai/ZebraLogicBench-private}}.
The prompt is the usual one: an example, the puzzle, and the answer as JSON with "reasoning" and "solution".

A cell that is a list of one value is that value, as officially. Not official: of a list of several the first counts
there, and none here (not measured).

The accuracy is the headline: puzzles of which every cell is right. `cell_accuracy` is the mean share of right cells.
Groups are by the number of assignments, (houses!)^attributes: small < 10^3 <= medium < 10^6 <= large < 10^10 <=
x-large.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rewards.json_grid import BLANK
from sapo_vl.benchmarks.base import Benchmark, ItemScores, LeftOut, Row
from sapo_vl.benchmarks.cells import grouped, ident, text
from sapo_vl.benchmarks.prompts import ask_about
from sapo_vl.benchmarks.tally import part
from sapo_vl.types import Problem

_SIZE = re.compile(r"([2-9])\*([2-9])")
GROUP_LIMITS = {"small": 10**3, "medium": 10**6, "large": 10**10}
EXAMPLE = """# Example

There are 2 houses, numbered 1 to 2 from left to right. Each is occupied by a different person.
 - Each person has a unique name: Peter, Eric
 - Each person has a unique favorite drink: tea, water
1. Eric is directly left of the person who likes tea.

The answer to this example:
{"reasoning": "Only house 1 has a house to its right, so Eric lives there and tea is liked in house 2.",
 "solution": {"House 1": {"Name": "Eric", "Drink": "water"}, "House 2": {"Name": "Peter", "Drink": "tea"}}}"""


def problems(row: Row) -> Iterator[Problem]:
    """One problem a row."""
    size = _SIZE.fullmatch(str(row.cells.get("size")))
    if size is None:
        raise ValueError(f"size is {row.cells.get('size')!r}, not like '5*6'")
    header, rows = _solution(row.cells.get("solution"))
    houses, attributes = int(size[1]), int(size[2])
    if len(rows) != houses or len(header) != attributes + 1:
        raise ValueError(f"solution has {len(rows)} rows and {len(header)} columns, size is {size[0]}")
    blank = {f"House {row[0]}": dict.fromkeys(header[1:], BLANK) for row in rows}
    instruction = (
        "Think step by step, then give the answer to the puzzle above as one JSON object in this form, with your "
        f'values in place of "{BLANK}":\n{json.dumps({"reasoning": BLANK, "solution": blank}, ensure_ascii=False)}'
    )
    yield Problem(
        id=f"zebralogic-{ident(row, 'id')}",
        task="zebralogic",
        messages=ask_about(0, f"{EXAMPLE}\n\n# Puzzle to solve\n\n{text(row, 'puzzle')}", instruction),
        answer=json.dumps({"header": header, "rows": rows}, ensure_ascii=False),
        reward="json_grid",
        meta=grouped(size=size[0], group=_group(houses, attributes)),
    )


def _solution(cell: Any) -> tuple[list[str], list[list[str]]]:
    if not isinstance(cell, Mapping) or not isinstance(cell.get("rows"), list):
        raise ValueError(f"solution is {str(cell)[:60]!r}, not an object with header and rows")
    header, rows = cell.get("header"), cell["rows"]
    if not all(isinstance(row, list) for row in (header, *rows)):
        raise ValueError("header and rows of the solution are not lists")
    if not header or not rows or any(value == BLANK for row in rows for value in row):
        raise LeftOut("no gold")
    if any(len(row) != len(header) for row in rows):
        raise ValueError("the rows of the solution are not as long as its header")
    return list(header), [list(row) for row in rows]


def _group(houses: int, attributes: int) -> str:
    assignments = math.factorial(houses) ** attributes
    return next((name for name, limit in GROUP_LIMITS.items() if assignments < limit), "x-large")


def cell_accuracy(items: Sequence[ItemScores]) -> dict[str, float]:
    """The mean share of right cells, over the responses that could be scored."""
    shares = [part(parts, "cells") for item in items for parts in item.parts]
    known = [share for share in shares if share is not None]
    return {"cell_accuracy": sum(known) / len(known)} if known else {}


ZEBRALOGIC = Benchmark(
    name="zebralogic",
    source="WildEval/ZebraLogic",
    config="grid_mode",
    split="test",
    licence="unknown",
    columns=("id", "size", "puzzle", "solution"),
    problems=problems,
    metrics=cell_accuracy,
)
