r"""ZeroBench (arXiv 2502.09696): 100 very hard questions about pictures, and 334 subquestions. Never train on it.

Rows: question_id, question_text, question_images_decoded (a list), question_answer (a number or a text). The official
prompt wants the final answer in curly braces; here these are those of \boxed{}. The answer must be the gold, as text
or by value; VLMEvalKit takes any text that has the gold in it. Official figures of the main questions: one greedy
response (pass@1), and five: one of them right (pass@5), all right (5/5 reliability).
"""

from __future__ import annotations

from collections.abc import Iterator

from sapo_vl.benchmarks.base import Benchmark, Row
from sapo_vl.benchmarks.cells import gold, ident, picture_cells, text
from sapo_vl.benchmarks.prompts import BOXED, ask_about
from sapo_vl.types import Problem


def problems(row: Row) -> Iterator[Problem]:
    """One problem a row."""
    images = tuple(row.image(cell) for cell in picture_cells(row, "question_images_decoded"))
    if not images:
        raise ValueError("question_images_decoded is empty")
    yield Problem(
        id=f"zerobench-{ident(row, 'question_id')}",
        task="zerobench",
        messages=ask_about(len(images), text(row, "question_text"), BOXED),
        images=images,
        answer=gold(row, "question_answer"),
        reward="chart",
        meta={"relative_tolerance": 0},
    )


def _benchmark(name: str, k: int) -> Benchmark:
    return Benchmark(
        name=name,
        source="jonathan-roberts1/zerobench",
        split=name,
        licence="unknown",
        columns=("question_id", "question_text", "question_images_decoded", "question_answer"),
        problems=problems,
        official="official_zerobench",
        k=k,
    )


ZEROBENCH = (_benchmark("zerobench", 5), _benchmark("zerobench_subquestions", 1))
