r"""RealWorldQA (xAI): 765 questions about photographs, most with options.

Rows: image, question (with its options, a line each, and an instruction of its own), answer. The prompt is the
question, with \boxed{} in place of its closing instruction ("Please answer directly with ..."), which contradicts ours;
nothing else of it is changed. lmms-eval removes it likewise. A gold that is a letter is an option (its text is right as
well), one in digits a count ("three" is 3), any other a text.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from rewards.options import option_meta, options_in
from sapo_vl.benchmarks.base import Benchmark, Row
from sapo_vl.benchmarks.cells import gold, grouped, text, without_instruction
from sapo_vl.benchmarks.prompts import BOXED_LETTER, BOXED_SHORT, ask_about
from sapo_vl.types import Problem


def problems(row: Row) -> Iterator[Problem]:
    """One problem a row."""
    question, answer = without_instruction(text(row, "question")), gold(row, "answer")
    meta: dict[str, Any] = {}
    if len(answer) == 1 and answer in "ABCDEFGH":
        reward, options = "choice", options_in(question)
        meta = {"options": option_meta(options)} if options else {}
    else:
        reward = "count" if answer.isascii() and answer.isdecimal() else "word"
    yield Problem(
        id=f"realworldqa-{row.index}",
        task="realworldqa",
        messages=ask_about(1, question, BOXED_LETTER if reward == "choice" else BOXED_SHORT),
        images=(row.image(row.cells.get("image")),),
        answer=answer,
        reward=reward,
        meta=meta | grouped(type=reward),
    )


REALWORLDQA = Benchmark(
    name="realworldqa",
    source="xai-org/RealworldQA",
    split="test",
    licence="CC BY-ND 4.0",
    columns=("image", "question", "answer"),
    problems=problems,
    official="official_realworldqa",
)
