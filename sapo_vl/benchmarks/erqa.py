r"""ERQA (arXiv 2503.20020): 400 questions about scenes a robot sees, with one picture or several, four options each.

Rows: question_id, question (with its options), images (a list), answer (a letter), question_type. Columns and split are
those of lmms-eval's loader. All pictures go before the question, as there: where in the text the authors place
them (visual_indices) is not used. A closing "Please answer directly with ..." of the question gives way to \boxed{}.
The options are read out of the question (rewards.options), so that a text is right as well; where they are not found,
the letter alone is.

Not official: there the response is the letter and nothing else, full stops aside; "(D)" and the option's text are right
here only.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from rewards.options import option_meta, options_in
from sapo_vl.benchmarks.base import Benchmark, Row
from sapo_vl.benchmarks.cells import gold, grouped, ident, picture_cells, text, without_instruction
from sapo_vl.benchmarks.prompts import BOXED_LETTER, ask_about
from sapo_vl.types import Problem


def problems(row: Row) -> Iterator[Problem]:
    """One problem a row."""
    answer = gold(row, "answer")
    if not re.fullmatch("[A-Z]", answer):
        raise ValueError(f"answer is {answer[:40]!r}, not the letter of an option")
    images = tuple(row.image(cell) for cell in picture_cells(row, "images") if cell is not None)
    if not images:
        raise ValueError("images is empty")
    question = without_instruction(text(row, "question"))
    options = options_in(question)
    meta: dict[str, Any] = {"options": option_meta(options)} if answer in options else {}
    yield Problem(
        id=f"erqa-{ident(row, 'question_id')}",
        task="erqa",
        messages=ask_about(len(images), question, BOXED_LETTER),
        images=images,
        answer=answer,
        reward="choice",
        meta=meta | grouped(type=row.cells.get("question_type"), images="one" if len(images) == 1 else "several"),
    )


ERQA = Benchmark(
    name="erqa",
    source="FlagEval/ERQA",
    split="test",
    licence="unknown",
    columns=("question_id", "question", "images", "answer"),
    problems=problems,
    official="official_erqa",
)
