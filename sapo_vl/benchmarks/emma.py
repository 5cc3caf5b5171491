r"""EMMA (arXiv 2501.05444): 2788 problems of mathematics, physics, chemistry and coding, with up to five pictures each.

Rows: pid, context ("none" or a text), question, options with "<image_1>" markers, options a list, image_1 ... image_5,
answer (a letter, or a short answer), type ("Multiple Choice", "Open-ended"), subject, category. Columns, split and the
configuration "All" are those of lmms-eval's loader. The prompt is context, question and options with \boxed{}.

Options: the letter. Open questions: a number rounded to two decimals (or those of the gold, if they are more), with its
unit or without, or the same text; a formula by its value.

Not official: the fast rule there takes the last box or what follows "answer is", number words anywhere in it, and an
option's text, also by its value to two decimals; "(B)" is none. The paper also has a language model judge.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from rewards.options import option_meta
from sapo_vl.benchmarks.base import Benchmark, Row
from sapo_vl.benchmarks.cells import gold, grouped, ident, lettered, referred, shown, text, text_list
from sapo_vl.benchmarks.mmmu import closeness
from sapo_vl.benchmarks.prompts import BOXED_LETTER, BOXED_SHORT, ask
from sapo_vl.types import Problem

PICTURES = 5
_MARKER = re.compile(r"<image_(\d{1,2})>")
_FORMULA = re.compile(r"\\(?!text)[A-Za-z]|\^")


def problems(row: Row) -> Iterator[Problem]:
    """One problem a row."""
    answer, kind = gold(row, "answer"), str(row.cells.get("type")).strip().lower()
    context = row.cells.get("context")
    lines = [context.strip()] if isinstance(context, str) and context.strip().lower() not in ("", "none") else []
    lines.append(text(row, "question"))
    meta: dict[str, Any] = {}
    if kind == "multiple choice":
        options = lettered([_spaced(option) for option in text_list(row.cells.get("options"), "options")])
        answer, reward, meta = answer.upper(), "choice", {"options": option_meta(options)}
        if answer not in options:
            raise ValueError(f"answer is {answer[:40]!r}, none of the letters {', '.join(options)}")
        lines.append(shown(options))
    elif kind in ("open-ended", "open ended"):
        reward, meta = ("math", {}) if _FORMULA.search(answer) else ("chart", closeness([answer]) | {"any_unit": True})
    else:
        raise ValueError(f"type is {kind[:40]!r}, neither 'Multiple Choice' nor 'Open-ended'")
    pictures = {number: row.cells.get(f"image_{number}") for number in range(1, PICTURES + 1)}
    marked, images = referred(_spaced("\n".join(lines)), pictures, row)
    yield Problem(
        id=f"emma-{ident(row, 'pid')}",
        task="emma",
        messages=ask(marked, BOXED_LETTER if reward == "choice" else BOXED_SHORT),
        images=tuple(images),
        answer=answer,
        reward=reward,
        meta=meta | grouped(subject=row.cells.get("subject"), category=row.cells.get("category"), type=kind),
    )


def _spaced(said: str) -> str:
    """Markers as cells.referred reads them."""
    return _MARKER.sub(r"<image \1>", said)


EMMA = Benchmark(
    name="emma",
    source="lmms-lab-encoder/EMMA",
    config="All",
    split="test",
    licence="unknown",
    columns=("pid", "question", "options", "answer", "type", "image_1"),
    problems=problems,
    official="official_emma",
)
