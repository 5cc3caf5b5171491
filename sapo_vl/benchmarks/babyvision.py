r"""BabyVision (arXiv 2601.06521): 388 visual tasks that small children solve, with options or a blank to fill.

Rows: taskId, type (4), subtype (22), ansType ("choice", "blank"), options (a list), choiceAns (the number of the right
option, from 0), blankAns, question, image. Columns and split are those of lmms-eval's loader. The prompt is question
and options with \boxed{}, as the authors' own.

Not official: there a language model compares answer and gold, for options too. Here an option is its letter or text,
and for a blank the gold decides (short_answers.rule_of): "(4,7)" is read as two numbers. Other words for the same thing
are wrong here (not measured); a judge is `rewards.by_task.babyvision=judge` (docs/rewards.md).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rewards.options import option_meta
from sapo_vl.benchmarks.base import Benchmark, Row
from sapo_vl.benchmarks.cells import gold, grouped, ident, lettered, shown, text, text_list
from sapo_vl.benchmarks.prompts import BOXED, BOXED_LETTER, ask_about
from sapo_vl.benchmarks.short_answers import rule_of
from sapo_vl.types import Problem


def problems(row: Row) -> Iterator[Problem]:
    """One problem a row."""
    question, kind = text(row, "question"), row.cells.get("ansType")
    meta: dict[str, Any]
    if kind == "choice":
        answer, options = _choice(row)
        reward, meta = "choice", {"options": option_meta(options)} if options else {}
        question = f"{question}\n{shown(options)}".strip()
    elif kind == "blank":
        answer = gold(row, "blankAns")
        reward, meta = rule_of(answer)
    else:
        raise ValueError(f"ansType is {str(kind)[:40]!r}, neither 'choice' nor 'blank'")
    yield Problem(
        id=f"babyvision-{ident(row, 'taskId')}",
        task="babyvision",
        messages=ask_about(1, question, BOXED_LETTER if kind == "choice" else BOXED),
        images=(row.image(row.cells.get("image")),),
        answer=answer,
        reward=reward,
        meta=meta | grouped(kind=kind, type=row.cells.get("type"), subtype=row.cells.get("subtype")),
    )


def _choice(row: Row) -> tuple[str, dict[str, str]]:
    """The letter of the gold, and the options; {} where they are in the picture."""
    number = gold(row, "choiceAns").removesuffix(".0")  # a column with gaps is one of floats in tables
    texts = text_list(row.cells.get("options"), "options")
    options = lettered(texts) if texts else {}
    if not number.isascii() or not number.isdecimal() or int(number) >= (len(options) or 26):
        raise ValueError(f"choiceAns is {number[:40]!r}, not the number of one of {len(options)} options")
    return chr(ord("A") + int(number)), options


BABYVISION = Benchmark(
    name="babyvision",
    source="UnipatAI/BabyVision",
    split="train",
    licence="MIT",
    columns=("taskId", "ansType", "question", "image", "options", "choiceAns", "blankAns"),
    problems=problems,
)
