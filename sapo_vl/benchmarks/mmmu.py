r"""MMMU validation (arXiv 2311.16502): 900 questions of 30 college subjects, with up to seven pictures each.

Rows: id ("validation_Accounting_1"), question and options with "<image 1>" markers, options as the text of a Python
list, image_1 ... image_7, answer, question_type ("multiple-choice", "open"). The prompt is Qwen's, "Question: ...
Options: ... Please select the correct answer from the options above.", with \boxed{}. The split "test" has no answers.

Options: the letter. Public kits draw a random letter where they find none; here no answer scores 0. Open questions: the
gold, or one of several (a list), as text or as a number, to two decimals or those of the gold, to which its unit and
the name of what is asked for may be added ("8.4 V", "V_0 = 8.4"). lmms-eval takes any text that has the gold in it,
VLMEvalKit asks a model whether the answer is the gold or "other". Four of the 53 open golds have more than two decimals
(0.9965) and are compared to all of them: at most 0.4 points of 900 items.

`MMMU/MMMU` has a configuration a subject; the default source is the copy that has all in one.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rewards.answers.numerals import read_numeral
from rewards.options import option_meta
from sapo_vl.benchmarks.base import Benchmark, Row
from sapo_vl.benchmarks.cells import gold, grouped, ident, lettered, referred, shown, text, text_list
from sapo_vl.benchmarks.prompts import BOXED_LETTER, BOXED_SHORT, ask
from sapo_vl.types import Problem

PICTURES = 7
SELECT = "Please select the correct answer from the options above."


def pictures_of(row: Row) -> dict[int, Any]:
    """Image cells by number; None where the row has no such picture."""
    return {number: row.cells.get(f"image_{number}") for number in range(1, PICTURES + 1)}


def question_with(options: Mapping[str, str], row: Row) -> str:
    """Question and options as one text, as they are stored: a marker among the options keeps its place."""
    question = text(row, "question")
    return f"Question: {question}\nOptions:\n{shown(options)}" if options else f"Question: {question}"


def closeness(golds: Sequence[str]) -> dict[str, Any]:
    """How close a number must be: two decimals as in MMMU's own rule, or as many as the longest gold has.

    Rounded to two, 0.001 would be 0.004. A gold that fifteen decimals do not write down (6.02e-23, 1/3) must be met
    to 0.5%.
    """
    values = [numeral.value for numeral in map(read_numeral, golds) if numeral is not None]
    for decimals in range(2, 16):
        if all((value * 10**decimals).denominator == 1 for value in values):
            return {"precision": decimals}
    return {"relative_tolerance": 0.005}


def problems(row: Row) -> Iterator[Problem]:
    """One problem a row."""
    answer, kind = gold(row, "answer"), row.cells.get("question_type")
    subject = "_".join(ident(row, "id").split("_")[1:-1])
    meta: dict[str, Any] = grouped(subject=subject, type=kind)
    options: dict[str, str] = {}
    if kind == "multiple-choice":
        options = lettered(text_list(row.cells.get("options"), "options"))
        meta["options"] = option_meta(options)
        if answer not in options:
            raise ValueError(f"answer is {answer[:40]!r}, none of the letters {', '.join(options)}")
    elif kind == "open":
        golds = text_list(answer, "answer") if answer.startswith("[") else [answer]
        if not golds:
            raise ValueError("answer is an empty list")
        answer, meta = golds[0], meta | {"answers": golds[1:], "any_unit": True} | closeness(golds)
    else:
        raise ValueError(f"question_type is {kind!r}, neither 'multiple-choice' nor 'open'")
    marked, images = referred(question_with(options, row), pictures_of(row), row)
    yield Problem(
        id=f"mmmu-{ident(row, 'id')}",
        task="mmmu",
        messages=ask(f"{marked}\n{SELECT}" if options else marked, BOXED_LETTER if options else BOXED_SHORT),
        images=tuple(images),
        answer=answer,
        reward="choice" if options else "chart",
        meta=meta,
    )


MMMU = Benchmark(
    name="mmmu",
    source="lmms-lab-encoder/MMMU",
    split="validation",
    licence="unknown",
    columns=("id", "question", "options", "image_1", "answer", "question_type"),
    problems=problems,
    official="official_mmmu",
)
