r"""MathVerse testmini (arXiv 2403.14624): 788 problems, each in five versions with more and more in the picture.

Rows: sample_index, problem_index, problem_version ("Text Dominant" ... "Vision Only"), question_for_eval, query_cot
(the prompt that asks for reasoning), image, answer, question_type ("multi-choice", "free-form"), metadata. The names
sample_index, problem_index and metadata are from memory; a row is told apart by its place in the split, so that they
are not needed. The prompt is the row's `query_cot` with \boxed{}.

Public kits have a language model extract and compare. Here: the letter (or the text of an option listed as "A:..."),
else the reward "math", for which a unit may be left out. Papers report all versions or "Vision Only" alone; both are
in the groups.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from sapo_vl.benchmarks.base import Benchmark, Row
from sapo_vl.benchmarks.cells import gold, grouped, option_meta, options_in, text
from sapo_vl.benchmarks.prompts import BOXED, BOXED_LETTER, ask_about
from sapo_vl.types import Problem


def problems(row: Row) -> Iterator[Problem]:
    """One problem a row."""
    answer, kind = gold(row, "answer"), row.cells.get("question_type")
    if kind not in ("multi-choice", "free-form"):
        raise ValueError(f"question_type is {kind!r}, neither 'multi-choice' nor 'free-form'")
    choice = kind == "multi-choice"
    meta: dict[str, Any] = grouped(version=row.cells.get("problem_version"), type=kind)
    # In "Vision Only" the query has no options, while question_for_eval always has them.
    options = options_in(str(row.cells.get("question_for_eval"))) if choice else {}
    if options:
        meta["options"] = option_meta(options)
    yield Problem(
        id=f"mathverse-{row.index}",
        task="mathverse",
        messages=ask_about(1, text(row, "query_cot"), BOXED_LETTER if choice else BOXED),
        images=(row.image(row.cells.get("image")),),
        answer=answer,
        reward="choice" if choice else "math",
        meta=meta,
    )


MATHVERSE = Benchmark(
    name="mathverse",
    source="AI4Math/MathVerse",
    config="testmini",
    split="testmini",
    licence="unknown",
    columns=("question_for_eval", "query_cot", "question_type", "problem_version", "image", "answer"),
    problems=problems,
)
