"""The puzzles of our own recipe: `sapo-vl recipe visual_puzzles --out DIR`, then DIR as the source. Needs no network.

The rows are problems already, in the schema of sapo_vl.data.problem_set, and are asked as the recipe wrote them.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from sapo_vl.benchmarks.base import GROUPS, Benchmark, Row
from sapo_vl.benchmarks.cells import grouped
from sapo_vl.data.problem_set import FEATURES, problem_from_row
from sapo_vl.types import Problem


def problems(row: Row) -> Iterator[Problem]:
    """The row itself, in groups by task and level."""
    problem = problem_from_row(row.cells)
    groups = grouped(task=problem.task, level=problem.meta.get("level"))
    yield dataclasses.replace(problem, meta=dict(problem.meta) | {GROUPS: groups[GROUPS]})


VISUAL_PUZZLES = Benchmark(
    name="visual_puzzles",
    source="visual_puzzles",
    split="test",
    licence="Apache-2.0",
    columns=tuple(FEATURES),
    problems=problems,
)
