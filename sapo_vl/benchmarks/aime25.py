"""AIME 2025: 30 competition problems with integer answers (arXiv 2511.20347 reports the mean over 32 responses)."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from sapo_vl.benchmarks.base import Benchmark, Row
from sapo_vl.benchmarks.cells import gold, ident, text
from sapo_vl.benchmarks.prompts import BOXED, ask_about
from sapo_vl.types import Problem


def aime(name: str) -> Callable[[Row], Iterator[Problem]]:
    """The reader of a year: problem_idx, problem, answer."""

    def problems(row: Row) -> Iterator[Problem]:
        """The gold is an integer in 0..999; "042" and "42" are the same, and an angle may have its degree sign."""
        answer = gold(row, "answer")
        if not answer.isascii() or not answer.isdecimal() or len(answer) > 9 or int(answer) > 999:
            raise ValueError(f"answer is {answer[:40]!r}, not an integer in 0..999")
        yield Problem(
            id=f"{name}-{ident(row, 'problem_idx')}",
            task=name,
            messages=ask_about(0, text(row, "problem"), BOXED),
            answer=str(int(answer)),
            reward="number",
            meta={"unit": "\u00b0"},
        )

    return problems


AIME25 = Benchmark(
    name="aime25",
    source="MathArena/aime_2025",
    split="train",
    licence="CC BY-NC-SA 4.0",
    columns=("problem_idx", "problem", "answer"),
    problems=aime("aime25"),
    k=32,
)
