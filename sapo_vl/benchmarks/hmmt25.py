"""HMMT February 2025: 30 competition problems with answers in LaTeX (arXiv 2511.20347: the mean over 16 responses)."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from sapo_vl.benchmarks.base import Benchmark, Row
from sapo_vl.benchmarks.cells import gold, ident, text
from sapo_vl.benchmarks.prompts import BOXED, ask_about
from sapo_vl.types import Problem


def hmmt(name: str) -> Callable[[Row], Iterator[Problem]]:
    """The reader of a year: problem_idx, problem, answer."""

    def problems(row: Row) -> Iterator[Problem]:
        """The gold is a formula, or several with commas between them, which may come in any order."""
        yield Problem(
            id=f"{name}-{ident(row, 'problem_idx')}",
            task=name,
            messages=ask_about(0, text(row, "problem"), BOXED),
            answer=gold(row, "answer"),
            reward="math",
        )

    return problems


HMMT25 = Benchmark(
    name="hmmt25",
    source="MathArena/hmmt_feb_2025",
    split="train",
    licence="CC BY-NC-SA 4.0",
    columns=("problem_idx", "problem", "answer"),
    problems=hmmt("hmmt25"),
    k=16,
)
