"""AIME 2025: 30 competition problems with integer answers (arXiv 2511.20347 reports the mean over 32 responses)."""

from __future__ import annotations

from collections.abc import Iterator

from sapo_vl.benchmarks.base import Benchmark, Row
from sapo_vl.benchmarks.prompts import BOXED, ask
from sapo_vl.types import Problem


def problems(row: Row) -> Iterator[Problem]:
    """The gold is an integer in 0..999; "042" and "42" are the same."""
    gold = str(row.cells["answer"]).strip()
    if not gold.isdecimal() or int(gold) > 999:
        raise ValueError(f"answer is {gold[:40]!r}, not an integer in 0..999")
    yield Problem(
        id=f"aime25-{row.cells['problem_idx']}",
        task="aime25",
        messages=ask(row.cells["problem"], BOXED),
        answer=str(int(gold)),
        reward="number",
    )


AIME25 = Benchmark(
    name="aime25",
    source="MathArena/aime_2025",
    split="train",
    licence="CC BY-NC-SA 4.0",
    columns=("problem_idx", "problem", "answer"),
    problems=problems,
    k=32,
)
