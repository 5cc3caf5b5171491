r"""MathVerse testmini (arXiv 2403.14624): 788 problems, each in five versions with more and more in the picture.

Rows: sample_index, problem_index, problem_version ("Text Dominant" ... "Vision Only"), question_for_eval, query_cot
(the prompt that asks for reasoning), image, answer, question_type ("multi-choice", "free-form"), metadata. The names
sample_index, problem_index and metadata are from memory; a row is told apart by its place in the split, so that they
are not needed. The prompt is the row's `query_cot` with \boxed{}.

Public kits have a language model extract and compare. Here: the letter (or the text of an option listed as "A:..."; or
all letters, where the gold has several), else the reward "math", for which a unit may be left out. Golds are written
in many ways ("Area $=9 \mathrm{~cm}^{2}$", "=7/4", "y=\sin x=(30,2)"): `value_of` takes the value out of what
stands around it. The golds of problems 459, 493 and 494 are a sentence and functions by cases, and stay unscorable.
Papers report all versions or "Vision Only" alone; both are in the groups.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from rewards.options import option_meta, options_in
from sapo_vl.benchmarks.base import Benchmark, Row
from sapo_vl.benchmarks.cells import gold, grouped, text
from sapo_vl.benchmarks.prompts import BOXED, BOXED_LETTER, BOXED_LETTERS, ask_about
from sapo_vl.types import Problem

_LETTERS = re.compile(r"[A-Z](?:[\s,;]+[A-Z])+")
# "Surface Area =...", "S.A. =...", "=...": what is named is said by the question. A name of one letter may stay.
_NAMED = re.compile(r"\s*(?:(?:[A-Za-z]\.)+|[A-Za-z]{2,}|)(?: +[A-Za-z.]+)*\s*=\s*(?P<value>[^=]+)")
_POINT = re.compile(r".*=\s*(?P<value>(?:\\left)?\([^=()]*,[^=()]*\))\s*", re.DOTALL)
_TURNED = re.compile(r"\s*(?P<value>[0-9.]+)\s*=\s*(?P<name>[a-z])\s*")
_LOST_FRACTION = re.compile(r"\A\{([0-9]+)\}\{([0-9]+)\}")


def value_of(answer: str) -> str:
    r"""The value that a free-form gold of this set gives, without the prose, the dollars and the slips around it.

    "Area $=9 \mathrm{~cm}^{2}$" is "9 \mathrm{~cm}^{2}", "Center $=(2,1)$" is "(2,1)", "5=s" is "s=5". Several values
    on lines of their own are a list. What is left over as prose, such as a whole sentence, stays as it is.
    """
    text = answer.replace("\u63b3", "\u00b0")  # a degree sign in UTF-8 that was read as GBK
    if text.count("$") % 2 == 0:
        text = text.replace("$", "")
    text = ", ".join(line.strip() for line in text.split("\n") if line.strip())
    text = _LOST_FRACTION.sub(r"\\frac{\1}{\2}", text)
    if turned := _TURNED.fullmatch(text):
        return f"{turned['name']}={turned['value']}"
    named = _POINT.fullmatch(text) or _NAMED.fullmatch(text)
    return named["value"].strip() if named else text


def problems(row: Row) -> Iterator[Problem]:
    """One problem a row."""
    answer, kind = gold(row, "answer"), row.cells.get("question_type")
    if kind not in ("multi-choice", "free-form"):
        raise ValueError(f"question_type is {kind!r}, neither 'multi-choice' nor 'free-form'")
    choice = kind == "multi-choice"
    meta: dict[str, Any] = grouped(version=row.cells.get("problem_version"), type=kind)
    several = choice and _LETTERS.fullmatch(answer) is not None
    # In "Vision Only" the query has no options, while question_for_eval always has them.
    options = options_in(str(row.cells.get("question_for_eval"))) if choice else {}
    if options:
        meta["options"] = option_meta(options)
    if several:
        meta["several"] = True
    instruction = BOXED_LETTERS if several else BOXED_LETTER if choice else BOXED
    yield Problem(
        id=f"mathverse-{row.index}",
        task="mathverse",
        messages=ask_about(1, text(row, "query_cot"), instruction),
        images=(row.image(row.cells.get("image")),),
        answer=answer if choice else value_of(answer),
        reward="choice" if choice else "math",
        meta=meta,
    )


MATHVERSE = Benchmark(
    name="mathverse",
    source="AI4Math/MathVerse",
    config="testmini",
    split="testmini",
    licence="MIT",
    columns=("question_for_eval", "query_cot", "question_type", "problem_version", "image", "answer"),
    problems=problems,
)
