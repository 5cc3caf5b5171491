r"""MMStar (arXiv 2403.20330): 1500 questions that cannot be answered without the picture, four options each.

Rows: index, question (with its options), image, answer (a letter), category (6), l2_category (18). Columns and split
are those of lmms-eval's loader and of the stored card of a copy. How the options stand in the question was not seen
first hand: lines "A. text" and one line "A: text, B: text" are read (rewards.options), so that a text is right as well;
where neither is found, the letter alone is. The usual prompt asks for the letter directly, here with \boxed{}.

`average` is lmms-eval's figure: the mean over the 18 fine categories of their accuracies. The authors' own is the share
of all questions.

Not official: there a response must begin with the letter ("because ..." with B), also as "option B" or "the answer is
B"; here the letter or the text is the final answer.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

from rewards.options import option_meta, options_in
from sapo_vl.benchmarks.base import GROUPS, Benchmark, ItemScores, Row
from sapo_vl.benchmarks.cells import gold, grouped, ident, text
from sapo_vl.benchmarks.prompts import BOXED_LETTER, ask_about
from sapo_vl.types import Problem


def problems(row: Row) -> Iterator[Problem]:
    """One problem a row."""
    question, answer = text(row, "question"), gold(row, "answer")
    if not re.fullmatch("[A-Z]", answer):
        raise ValueError(f"answer is {answer[:40]!r}, not the letter of an option")
    options = options_in(question)
    meta: dict[str, Any] = {"options": option_meta(options)} if answer in options else {}
    yield Problem(
        id=f"mmstar-{ident(row, 'index')}",
        task="mmstar",
        messages=ask_about(1, question, BOXED_LETTER),
        images=(row.image(row.cells.get("image")),),
        answer=answer,
        reward="choice",
        meta=meta | grouped(category=row.cells.get("category"), fine=row.cells.get("l2_category")),
    )


def average(items: Sequence[ItemScores]) -> dict[str, float]:
    """The mean over the fine categories, of the items that could be scored."""
    means: dict[str, list[float]] = defaultdict(list)
    for item in items:
        if item.mean is not None:
            means[item.meta.get(GROUPS, {}).get("fine", "")].append(item.mean)
    return {"average": sum(sum(each) / len(each) for each in means.values()) / len(means)} if means else {}


MMSTAR = Benchmark(
    name="mmstar",
    source="Lin-Chen/MMStar",
    split="val",
    licence="unknown",
    columns=("index", "question", "image", "answer", "category", "l2_category"),
    problems=problems,
    official="official_mmstar",
    metrics=average,
)
