"""BeyondAIME: 100 competition problems with integer answers (arXiv 2511.20347 reports the mean over 16 responses).

Rows: problem, answer (an integer, which may be large). The column names are from memory. An angle may have its degree
sign.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from sapo_vl.benchmarks.base import Benchmark, Row
from sapo_vl.benchmarks.cells import gold, text
from sapo_vl.benchmarks.prompts import BOXED, ask_about
from sapo_vl.types import Problem

_INTEGER = re.compile(r"-?[0-9]{1,60}")


def problems(row: Row) -> Iterator[Problem]:
    """One problem a row."""
    answer = gold(row, "answer")
    if not _INTEGER.fullmatch(answer):
        raise ValueError(f"answer is {answer[:40]!r}, not an integer of at most 60 digits")
    yield Problem(
        id=f"beyondaime-{row.index}",
        task="beyondaime",
        messages=ask_about(0, text(row, "problem"), BOXED),
        answer=answer,
        reward="number",
        meta={"unit": "\u00b0"},
    )


BEYONDAIME = Benchmark(
    name="beyondaime",
    source="ByteDance-Seed/BeyondAIME",
    split="test",
    licence="unknown",
    columns=("problem", "answer"),
    problems=problems,
    k=16,
)
