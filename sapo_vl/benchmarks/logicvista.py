r"""LogicVista (arXiv 2407.04973): 448 multiple-choice questions of logic about pictures, by five skills.

Rows: question (with the letters of its options, which may stand in the picture), image, answer (a letter, or several:
"A, C"), skill (a text or a list of texts). The usual prompt is the question alone; here \boxed{} is asked for. All
letters and no other must be named, in any order, or the text of the one option that is right, where the question lists
them (rewards.options); kits have a language model pull the letters out of the response.

Not official: 2 of the 448 rows leave the mean, one whose gold is the number 3 (a bad row) and one without a gold. Kits
count both as wrong, so that their figure is 0.4% lower, relatively.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from rewards.options import option_meta, options_in
from sapo_vl.benchmarks.base import Benchmark, Row
from sapo_vl.benchmarks.cells import gold, grouped, text
from sapo_vl.benchmarks.prompts import BOXED_LETTERS, ask_about
from sapo_vl.types import Problem

_LETTERS = re.compile(r"[A-Za-z](?:[,; ]*[A-Za-z])*")


def problems(row: Row) -> Iterator[Problem]:
    """One problem a row."""
    answer, skill = gold(row, "answer"), row.cells.get("skill")
    if not _LETTERS.fullmatch(answer):
        raise ValueError(f"answer is {answer[:40]!r}, not letters of options")
    question = text(row, "question")
    options = options_in(question)
    known = set(re.findall("[A-Z]", answer.upper())) <= options.keys()
    meta: dict[str, Any] = {"several": True} | ({"options": option_meta(options)} if known else {})
    skills = ", ".join(map(str, skill)) if isinstance(skill, list) else skill
    yield Problem(
        id=f"logicvista-{row.index}",
        task="logicvista",
        messages=ask_about(1, question, BOXED_LETTERS),
        images=(row.image(row.cells.get("image")),),
        answer=answer,
        reward="choice",
        meta=meta | grouped(skill=skills),
    )


LOGICVISTA = Benchmark(
    name="logicvista",
    source="lscpku/LogicVista",
    split="test",
    licence="Apache-2.0",
    columns=("question", "image", "answer", "skill"),
    problems=problems,
)
