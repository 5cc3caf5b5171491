r"""ChartQA test (arXiv 2203.10244): 2500 questions about charts, half written by people, half made from captions.

Rows: type ("human_test", "augmented_test"), question, answer, image. The usual prompt, "Answer the question with a
single word.", with \boxed{}. Relaxed accuracy (reward "chart"): 5% of the gold for numbers, else the same text. Unlike
in the kits 0.0 is 0, "5%" is 5, and "1,250" is a number: a gold of "5%" is matched by 5 as well as by 0.05, which
may lift the figure slightly (not measured). Reported: by type, and over all (the accuracy).
"""

from __future__ import annotations

from collections.abc import Iterator

from sapo_vl.benchmarks.base import Benchmark, Row
from sapo_vl.benchmarks.cells import gold, grouped, text
from sapo_vl.benchmarks.prompts import BOXED_SHORT, ask_about
from sapo_vl.types import Problem


def problems(row: Row) -> Iterator[Problem]:
    """One problem a row."""
    yield Problem(
        id=f"chartqa-{row.index}",
        task="chartqa",
        messages=ask_about(1, text(row, "question"), BOXED_SHORT),
        images=(row.image(row.cells.get("image")),),
        answer=gold(row, "answer"),
        reward="chart",
        meta=grouped(type=str(row.cells.get("type")).removesuffix("_test")),
    )


CHARTQA = Benchmark(
    name="chartqa",
    source="lmms-lab-encoder/ChartQA",
    split="test",
    licence="unknown",
    columns=("type", "question", "answer", "image"),
    problems=problems,
    official="official_chartqa",
)
