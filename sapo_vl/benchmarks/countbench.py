r"""CountBench with questions (arXiv 2302.12066; vikhyatk/CountBenchQA): about 490 pictures of two to ten things.

Rows: image, question ("How many ... are there in the image?"), number. The usual prompt asks for a number only; here
in \boxed{}. The answer must be the number, in digits or in words. (VLMEvalKit takes any text that has the gold in it,
so "10" for 1.)
"""

from __future__ import annotations

from collections.abc import Iterator

from sapo_vl.benchmarks.base import Benchmark, Row
from sapo_vl.benchmarks.cells import gold, grouped, text
from sapo_vl.benchmarks.prompts import BOXED_NUMBER, ask_about
from sapo_vl.types import Problem


def problems(row: Row) -> Iterator[Problem]:
    """One problem a row."""
    number = gold(row, "number")
    if not number.isascii() or not number.isdecimal():
        raise ValueError(f"number is {number[:40]!r}, not a count")
    yield Problem(
        id=f"countbench-{row.index}",
        task="countbench",
        messages=ask_about(1, text(row, "question"), BOXED_NUMBER),
        images=(row.image(row.cells.get("image")),),
        answer=number,
        reward="count",
        meta=grouped(number=number),
    )


COUNTBENCH = Benchmark(
    name="countbench",
    source="vikhyatk/CountBenchQA",
    split="test",
    licence="unknown",
    columns=("image", "question", "number"),
    problems=problems,
    official="official_countbench",
)
