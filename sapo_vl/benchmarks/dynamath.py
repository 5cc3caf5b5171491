r"""DynaMath (arXiv 2411.00836): 501 questions about pictures, each in 10 variants with other numbers or other drawings.

Rows: id (of the question: the variants share it), question (with its options), decoded_image, ground_truth,
answer_type ("float", "multiple choice", "text"). The default source has all 5010 rows in one split, the variants of a
question 501 rows apart; `DynaMath/DynaMath_Sample` (apache-2.0) has the same columns in ten splits, sample_variant1 to
sample_variant10: one of them is a benchmark without a worst case. The usual prompt asks for JSON with a "short
answer"; here \boxed{}. As there, decimal numbers are to have three digits after the point, also in texts.

Rules: a number within 0.001, a letter (or the text of its option, where the question lists them), the same text. What
kind of text decides how texts are compared (short_answers.rule_of). Of the authors' 310 text golds 100 are numbers in
brackets or between commas, 20 equations, 20 times, 10 a code of three digits; 160 are words, dates and names of edges
or nodes.

Not official: in the authors' script a text is right if the gold is in it, in VLMEvalKit if it is in the gold, blanks
included. So "(5, -2)" is wrong there for "(5.000, -2.000)" and right here, "8:00" likewise for "8:0"; "uneven" for
"even" is right in the authors' script and wrong here.

Figures: the accuracy is the average over variants. `worst_case` is the share of questions with all ten variants right,
among those of which all ten were asked (`questions`); `incomplete` counts the others. With k responses to each, the
worst case is that of the first responses, of the second, ..., averaged.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from rewards.options import option_meta, options_in
from sapo_vl.benchmarks.base import Benchmark, ItemScores, Row
from sapo_vl.benchmarks.cells import gold, grouped, ident, text
from sapo_vl.benchmarks.prompts import BOXED_DECIMAL, BOXED_LETTER, BOXED_TEXT, ask_about
from sapo_vl.benchmarks.short_answers import rule_of
from sapo_vl.benchmarks.tally import right, rounds
from sapo_vl.types import Problem

VARIANTS = 10
RULES: dict[str, tuple[str, str, dict[str, Any]]] = {  # answer_type -> reward, instruction, meta
    "float": ("number", BOXED_DECIMAL, {"tolerance": 0.001}),
    "multiple choice": ("choice", BOXED_LETTER, {}),
    "text": ("", BOXED_TEXT, {}),  # the gold decides
}


def problems(row: Row) -> Iterator[Problem]:
    """One problem a row."""
    answer, kind = gold(row, "ground_truth"), str(row.cells.get("answer_type"))
    if kind not in RULES:
        raise ValueError(f"answer_type is {kind!r}, none of {', '.join(RULES)}")
    reward, instruction, rule = RULES[kind]
    asked, question = text(row, "question"), ident(row, "id")
    if not reward:
        reward, rule = rule_of(answer)
    elif reward == "choice" and answer in (options := options_in(asked)):
        rule = {"options": option_meta(options)}
    groups = grouped(type=kind, subject=row.cells.get("subject"), level=row.cells.get("knowledge_level"))
    yield Problem(
        id=f"dynamath-{question}-{row.index}",
        task="dynamath",
        messages=ask_about(1, asked, instruction),
        images=(row.image(row.cells.get("decoded_image")),),
        answer=answer,
        reward=reward,
        meta=rule | {"variant_of": question} | groups,
    )


def worst_case(items: Sequence[ItemScores]) -> dict[str, float]:
    """See the top of the file."""
    questions: Mapping[str, list[ItemScores]] = defaultdict(list)
    for item in items:
        questions[item.meta["variant_of"]].append(item)
    complete = [variants for variants in questions.values() if len(variants) == VARIANTS]
    figures = {"questions": float(len(complete)), "incomplete": float(len(questions) - len(complete))}
    if complete:
        shares = [
            sum(all(right(item, response) for item in variants) for variants in complete) / len(complete)
            for response in rounds(items)
        ]
        figures["worst_case"] = sum(shares) / len(shares)
    return figures


DYNAMATH = Benchmark(
    name="dynamath",
    source="kcz358/DynaMath",
    split="test",
    licence="Apache-2.0",
    columns=("id", "question", "decoded_image", "ground_truth", "answer_type"),
    problems=problems,
    official="official_dynamath",
    metrics=worst_case,
)
