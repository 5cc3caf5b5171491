r"""MathVision (arXiv 2402.14804): competition problems with a picture, by 16 subjects and 5 levels.

Rows: id, question (with "<image1>" markers for its one picture), options (empty, or texts, or the letters alone where
the options are in the picture), decoded_image, answer, level, subject. The prompt is that of lmms-eval, question and
lettered options, with \boxed{}.

Options: the letter or the option's text is right, whichever of the two the gold is. Without options the reward "math"
compares; public kits round to two decimals (3.14 is pi to them) or run `eval` on the answer, which is not done here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator

from rewards.options import option_meta
from sapo_vl.benchmarks.base import Benchmark, Row
from sapo_vl.benchmarks.cells import IMAGE_NUMBER, gold, grouped, ident, lettered, shown, text, text_list
from sapo_vl.benchmarks.prompts import BOXED, BOXED_LETTER, MARKER, ask
from sapo_vl.types import Problem

_UNIT = re.compile(r"\{(square|cubic|)(degrees|inches|feet|units)\}\Z")  # "69{degrees}", a \text that was lost


def problems(row: Row) -> Iterator[Problem]:
    """One problem a row."""
    answer = gold(row, "answer")
    question = text(row, "question").replace(MARKER, " ")
    # There is one picture, whatever the markers count to: it stands at the first of them.
    question = IMAGE_NUMBER.sub(MARKER, question, count=1) if IMAGE_NUMBER.search(question) else MARKER + question
    question = IMAGE_NUMBER.sub("", question)
    texts = text_list(row.cells.get("options"), "options")
    options = lettered(texts) if texts else {}
    meta = grouped(subject=row.cells.get("subject"), level=row.cells.get("level"))
    yield Problem(
        id=f"mathvision-{ident(row, 'id')}",
        task="mathvision",
        messages=ask(f"{question}\n{shown(options)}", BOXED_LETTER if options else BOXED),
        images=(row.image(row.cells.get("decoded_image")),),
        answer=answer if options else _UNIT.sub(r"\\text{ \1 \2}", answer),
        reward="choice" if options else "math",
        meta=meta | {"options": option_meta(options)} if options else meta,
    )


def _benchmark(name: str, split: str) -> Benchmark:
    return Benchmark(
        name=name,
        source="MathLLMs/MathVision",
        split=split,
        licence="MIT",
        columns=("id", "question", "options", "decoded_image", "answer", "level", "subject"),
        problems=problems,
        official="official_mathvision",
    )


MATHVISION = (_benchmark("mathvision", "test"), _benchmark("mathvision_testmini", "testmini"))
