r"""CharXiv, reasoning questions (arXiv 2406.18521): 1000 questions about charts of arXiv papers.

Rows: image, figure_path, reasoning_q, reasoning_a, reasoning_q_source: 1 a text in the chart, 2 a text in general, 3 a
number in the chart, 4 a number in general. Columns, split and what each source asks for are those of lmms-eval's
loader; the official instructions are said in our words, with \boxed{}. For 4 they name the decimals of the gold.

Not official: there a language model judges ("the same term", "the same meaning", "exactly equal in values"). Here
numbers must be equal by value, texts equal but for case, blanks and brackets around a letter, and several terms of
source 1 may come in any order. So other words for the same thing are wrong here (not measured); a judge is
`rewards.by_task.charxiv=judge` (docs/rewards.md).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from sapo_vl.benchmarks.base import Benchmark, Row
from sapo_vl.benchmarks.cells import gold, grouped, text
from sapo_vl.benchmarks.prompts import ask_about
from sapo_vl.types import Problem

_BOXED = "Think step by step, and put the final answer in \\boxed{}. "
ASKED = {  # reasoning_q_source -> what the answer must be
    1: _BOXED + "It must be text that is written in the chart: full names of labels or subplots unless the question "
    "asks for a letter, and commas between several.",
    2: _BOXED + "If the question has options or instructions for the answer, follow them; else give a short phrase.",
    3: _BOXED + "It must be a number that is written in the chart, even if it is only near the value asked for.",
    4: _BOXED + "It must be {number}.",
}
_LETTER = re.compile(r"\(?([A-Za-z])\)?")


def problems(row: Row) -> Iterator[Problem]:
    """One problem a row."""
    answer, source = gold(row, "reasoning_a"), row.cells.get("reasoning_q_source")
    if not isinstance(source, int) or source not in ASKED:
        raise ValueError(f"reasoning_q_source is {str(source)[:40]!r}, none of 1, 2, 3, 4")
    reward, meta = _rule(answer, source)
    yield Problem(
        id=f"charxiv-{row.index}",
        task="charxiv",
        messages=ask_about(1, text(row, "reasoning_q"), ASKED[source].replace("{number}", _number(answer))),
        images=(row.image(row.cells.get("image")),),
        answer=answer,
        reward=reward,
        meta=meta | grouped(source=("text in chart", "text in general", "number in chart", "number")[source - 1]),
    )


def _rule(answer: str, source: int) -> tuple[str, dict[str, Any]]:
    if source == 1 and "," in answer and answer[0] not in "([{":
        return "list", {}
    letter = _LETTER.fullmatch(answer)
    return "chart", {"relative_tolerance": 0, "answers": [letter[1], f"({letter[1]})"] if letter else []}


def _number(answer: str) -> str:
    decimals = len(answer.partition(".")[2])
    if decimals == 0:
        return "an integer"
    return f"a number with {decimals} digit{'s' * (decimals > 1)} after the point"


CHARXIV = Benchmark(
    name="charxiv",
    source="princeton-nlp/CharXiv",
    split="validation",
    licence="CC BY-SA 4.0",
    columns=("image", "reasoning_q", "reasoning_a", "reasoning_q_source"),
    problems=problems,
)
