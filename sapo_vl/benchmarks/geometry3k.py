r"""Geometry3K test (arXiv 2105.04165, as hiyouga/geometry3k has it): 601 geometry questions with figures.

Rows: images, problem (with one "<image>" marker an image), answer (a number or LaTeX; with the option's value, not its
letter). The prompt is the problem with \boxed{}, as in EasyR1; the reward "math" compares.
"""

from __future__ import annotations

from collections.abc import Iterator

from sapo_vl.benchmarks.base import Benchmark, Row
from sapo_vl.benchmarks.cells import gold, picture_cells, text
from sapo_vl.benchmarks.prompts import BOXED, MARKER, ask
from sapo_vl.types import Problem


def problems(row: Row) -> Iterator[Problem]:
    """One problem a row."""
    problem, cells = text(row, "problem"), picture_cells(row, "images")
    if problem.count(MARKER) != len(cells):
        raise ValueError(f"the problem has {problem.count(MARKER)} {MARKER} markers and the row {len(cells)} images")
    yield Problem(
        id=f"geometry3k-test-{row.index}",
        task="geometry3k",
        messages=ask(problem, BOXED),
        images=tuple(row.image(cell) for cell in cells),
        answer=gold(row, "answer"),
        reward="math",
    )


GEOMETRY3K = Benchmark(
    name="geometry3k",
    source="hiyouga/geometry3k",
    split="test",
    licence="MIT",
    columns=("images", "problem", "answer"),
    problems=problems,
)
