r"""MathVista testmini (arXiv 2310.02255): 1000 questions about pictures, 540 of them with options.

Rows: pid, query (question with its hint, unit and options), decoded_image, choices, unit, precision, answer (for
options: the text of the right one), question_type ("multi_choice", "free_form"), answer_type ("text", "integer",
"float", "list"), metadata. The prompt is the row's `query` with \boxed{}. The split "test" has no answers.

Public kits have a language model extract the answer. Here the rule follows from the type: the option, the integer, the
number rounded to `precision` decimals (a count, stored as a float; the unit may be left out), the list in its order.

Where two options have the text of the gold (one row of 1000), both letters and the text are right, as officially. Not
official: an integer with decimals is wrong here, and cut off there (25.6 for 25 is right). That concerns the 418
integer golds; how many responses write decimals was not measured.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from rewards.options import option_meta
from sapo_vl.benchmarks.base import Benchmark, Row
from sapo_vl.benchmarks.cells import gold, grouped, ident, lettered, letters_of, text, text_list
from sapo_vl.benchmarks.prompts import BOXED, BOXED_LETTER, ask_about
from sapo_vl.types import Problem

TYPES = {"text": "word", "integer": "number", "float": "number", "list": "list"}


def problems(row: Row) -> Iterator[Problem]:
    """One problem a row."""
    answer, rule = gold(row, "answer"), str(row.cells.get("answer_type"))
    options = row.cells.get("question_type") == "multi_choice"
    meta: dict[str, Any] = {}
    if options:
        choices = lettered(text_list(row.cells.get("choices"), "choices"))
        reward, meta = "choice", {"options": option_meta(choices)}
        answer, *others = letters_of(answer, choices)
        if others:
            meta["options"][answer] = choices[answer]
            meta["same"] = dict.fromkeys(others, answer)
    elif rule in TYPES:
        reward = TYPES[rule]
        if reward == "number":
            meta = _number_rule(row, rule)
        elif reward == "list":
            meta = {"ordered": True}
    else:
        raise ValueError(f"answer_type is {rule!r}, none of {', '.join(TYPES)}")
    about = row.cells.get("metadata")
    about = about if isinstance(about, Mapping) else {}
    groups = {name: about.get(name) for name in ("category", "task", "context", "grade")}
    yield Problem(
        id=f"mathvista-{ident(row, 'pid')}",
        task="mathvista",
        messages=ask_about(1, text(row, "query"), BOXED_LETTER if options else BOXED),
        images=(row.image(row.cells.get("decoded_image")),),
        answer=answer,
        reward=reward,
        meta=meta | grouped(type=row.cells.get("question_type"), answer_type=rule, **groups),
    )


def _number_rule(row: Row, rule: str) -> dict[str, Any]:
    unit, decimals = row.cells.get("unit"), row.cells.get("precision")
    meta: dict[str, Any] = {"unit": unit} if isinstance(unit, str) and unit else {}
    if rule == "float":
        if not isinstance(decimals, int | float) or not float(decimals).is_integer():
            raise ValueError(f"precision is {decimals!r}, not a count of decimals")
        meta["precision"] = int(decimals)
    return meta


MATHVISTA = Benchmark(
    name="mathvista",
    source="AI4Math/MathVista",
    split="testmini",
    licence="CC BY-SA 4.0",
    columns=(
        "pid",
        "query",
        "decoded_image",
        "choices",
        "unit",
        "precision",
        "answer",
        "question_type",
        "answer_type",
        "metadata",
    ),
    problems=problems,
    official="official_mathvista",
)
