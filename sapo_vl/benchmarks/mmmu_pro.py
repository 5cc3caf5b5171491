"""MMMU-Pro (arXiv 2409.02813): 1730 questions, with ten options, with four, or with the whole question in the picture.

Rows: id, options as the text of a Python list, answer (a letter up to J), subject; the standard configurations also
question with "<image 1>" markers and image_1 ... image_7, "vision" one picture `image`. The prompt is the official
chain of thought: a last line "Answer: LETTER". The paper's figure is the mean of "standard (10 options)" and "vision".
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from PIL import Image

from rewards.options import option_meta
from sapo_vl.benchmarks.base import Benchmark, Row
from sapo_vl.benchmarks.cells import gold, grouped, ident, lettered, referred, text_list
from sapo_vl.benchmarks.mmmu import pictures_of, question_with
from sapo_vl.benchmarks.prompts import ANSWER_LETTER, VISION_LETTER, ask, ask_about
from sapo_vl.types import Problem


def standard_problems(row: Row) -> Iterator[Problem]:
    """Question and options as text."""
    options = lettered(text_list(row.cells.get("options"), "options"))
    marked, images = referred(question_with(options, row), pictures_of(row), row)
    yield _problem(row, options, ask(marked, ANSWER_LETTER), images)


def vision_problems(row: Row) -> Iterator[Problem]:
    """Question and options in the picture; their texts are for the reward alone."""
    options = lettered(text_list(row.cells.get("options"), "options"))
    yield _problem(row, options, ask_about(1, "", VISION_LETTER), [row.image(row.cells.get("image"))])


def _problem(row: Row, options: dict[str, str], messages: tuple[Any, ...], images: list[Image.Image]) -> Problem:
    answer = gold(row, "answer")
    if answer not in options:
        raise ValueError(f"answer is {answer[:40]!r}, none of the letters {', '.join(options)}")
    return Problem(
        id=f"mmmu_pro-{ident(row, 'id')}",
        task="mmmu_pro",
        messages=messages,
        images=tuple(images),
        answer=answer,
        reward="choice",
        meta={"options": option_meta(options)} | grouped(subject=row.cells.get("subject")),
    )


def _benchmark(name: str, config: str, own: tuple[str, ...], problems: Callable[[Row], Iterator[Problem]]) -> Benchmark:
    return Benchmark(
        name=name,
        source="MMMU/MMMU_Pro",
        config=config,
        split="test",
        licence="Apache-2.0",
        columns=("id", "options", "answer", *own),
        problems=problems,
        official="official_mmmu_pro",
    )


MMMU_PRO = (
    _benchmark("mmmu_pro_standard", "standard (10 options)", ("question", "image_1"), standard_problems),
    _benchmark("mmmu_pro_standard4", "standard (4 options)", ("question", "image_1"), standard_problems),
    _benchmark("mmmu_pro_vision", "vision", ("image",), vision_problems),
)
