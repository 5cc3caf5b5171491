r"""From a row of somebody else's data to a problem: what all recipes need for it.

A reader is a function (Row) -> Problem. It raises ValueError where the row is broken (a picture that cannot be read is
one: sapo_vl.data.images.ImageRefused), and LeftOut where the row is fine but no problem for a rule to judge.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from PIL import Image

from rewards.answers.extract import last_answer
from rewards.answers.latex_writer import MAX_DIGITS
from rewards.number import parse_number
from rewards.options import option_meta, options_in
from sapo_vl.data.images import ImageRefused
from sapo_vl.types import Problem

MARKER = "<image>"  # where a picture belongs in the text of a row
TAGS = "Think step by step between <think> and </think>, then give only the final answer between <answer> and </answer>"
ANSWER = TAGS + "."
LETTER = TAGS + ", as the letter of the option."
NO_INSTRUCTION = "none"  # in place of one of these: nothing is put behind the question
PROGRAM = (
    "Think step by step between <think> and </think>, then put the whole program, in Python, into one ```python block "
    "between <answer> and </answer>."
)
BOX = TAGS + ", as [x1, y1, x2, y2] in thousandths of the width and height of the image."
_ANSWER_IS = re.compile(r"(?:^|\n|\. )(?:so |thus |therefore |hence )?,? ?the (?:final )?answer is:? (.{1,200})$", re.I)
_LETTER = re.compile(r"\(?([A-J])\)?\.?")
_WORDS = re.compile(r"[A-Za-z]+(?:[ -][A-Za-z]+){0,4}")


class LeftOut(Exception):
    """A row that is fine but cannot be used; the text is the reason, in a few fixed words, as it is counted."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One row of a source."""

    index: int  # place in the split of the source
    id: str  # for the problem: unique in the set, the same in every build
    cells: Mapping[
        str, Any
    ]  # as stored; pictures are cells. `cells[name]` raises ValueError if there is no such column
    image: Callable[[Any], Image.Image] = field(repr=False)  # reads a picture's cell; raises ImageRefused

    def __post_init__(self) -> None:
        object.__setattr__(self, "cells", _Cells(self.cells))


class _Cells(dict[str, Any]):
    """Rows of JSON need not all have the same columns: where one is missing, the row is malformed and no bug."""

    def __missing__(self, column: str) -> Any:
        raise ValueError(f"{column} is missing")


ReadRow = Callable[[Row], Problem]


def text_of(row: Row, column: str) -> str:
    """The trimmed text of a column; numbers are written out. Raises ValueError if it is empty or no text."""
    return as_text(row.cells.get(column), column)


def as_text(value: Any, name: str) -> str:
    """`value` as `text_of` gives it; NaN and infinity are how tables write that nothing is there, and no text."""
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        raise ValueError(f"{name} is {'missing' if value is None else f'a {type(value).__name__}, not a text'}")
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{name} is the number {value}, not a text")
    if not str(value).strip():
        raise ValueError(f"{name} is empty")
    return str(value).strip()


def cells_of(value: Any) -> list[Any]:
    """The picture cells of a column that holds one or a list of them. An empty list says that there is none.

    Null, NaN and "" are one cell, whose picture is missing.
    """
    return list(value) if isinstance(value, list | tuple) else [value]


def cells_in(row: Row, column: str) -> list[Any]:
    """The picture cells of a column as `cells_of` gives them; none if the row has no such column."""
    return cells_of(row.cells[column]) if column and column in row.cells else []


def unwrap(gold: str) -> str:
    r"""What an answer column holds without what is around it.

    Of `<answer> 3 </answer>`, `\boxed{3}`, "... Answer: 3" (last line) and "... The answer is 3." it is 3; else the
    text itself.
    """
    found = last_answer(gold)
    if found is not None:
        return found
    said = _ANSWER_IS.search(gold.strip())
    return said[1].strip().removesuffix(".") if said else gold.strip()


def pick_reward(gold: str) -> str:
    """The reward that suits a gold: choice (a letter A to J), word (plain words), else math.

    Numbers are for math, too, as in the benchmarks of the same data: 12 cm, $12 and x = 12 are 12. Not those of so many
    digits that only the reward number reads them.
    """
    if parse_number(gold) is not None:
        return "number" if sum(map(str.isdecimal, gold)) > MAX_DIGITS else "math"
    if _LETTER.fullmatch(gold):
        return "choice"
    return "word" if _WORDS.fullmatch(gold) and max(map(len, re.split("[ -]", gold))) > 2 else "math"


def turn(text: str, images: int, instruction: str) -> tuple[Mapping[str, Any], ...]:
    """One user turn: the text with a picture at every MARKER, then the instruction, unless that is NO_INSTRUCTION.

    Pictures without a marker go before the text. Raises ValueError if there are markers, but not as many as pictures.
    """
    if images and MARKER not in text:
        text = MARKER * images + text
    texts = text.split(MARKER)
    if len(texts) - 1 != images:
        raise ValueError(f"the text has {len(texts) - 1} {MARKER} markers and the row has {images} images")
    parts: list[dict[str, str]] = []
    for number, piece in enumerate(texts):
        if number:
            parts.append({"type": "image"})
        if piece.strip():
            parts.append({"type": "text", "text": piece.strip()})
    if instruction != NO_INSTRUCTION:
        parts.append({"type": "text", "text": "\n" + instruction})
    return ({"role": "user", "content": parts},)


def system_turn(text: str) -> tuple[Mapping[str, Any], ...]:
    """A system turn that says `text`; none for ""."""
    return ({"role": "system", "content": text},) if text else ()


def pictures(row: Row, cells: Sequence[Any]) -> tuple[Image.Image, ...]:
    """The pictures of `cells`. Raises ImageRefused that names which."""
    images = []
    for number, cell in enumerate(cells):
        try:
            images.append(row.image(cell))
        except ImageRefused as error:
            raise ImageRefused(error.kind, f"image {number}: {error}") from error
    return tuple(images)


def problem(
    row: Row,
    *,
    task: str,
    text: str,
    answer: str,
    cells: Sequence[Any] = (),
    reward: str = "",
    instruction: str = "",
    solution: str = "",
    system: str = "",
    meta: Mapping[str, Any] | None = None,
) -> Problem:
    """A problem of one user turn.

    Args:
        reward: "" = `pick_reward` of the answer.
        instruction: "" = answer tags, and the letter of the option where the reward is "choice"; NO_INSTRUCTION = none.
        system: a system turn before it; "" = none.
        meta: of a letter of "choice" the options that stand in the text are added, unless it has some.
    """
    reward, meta = reward or pick_reward(answer), meta or {}
    if reward == "choice" and (letter := _LETTER.fullmatch(answer)):
        answer = letter[1]
        if meta.keys().isdisjoint(("options", "choices")) and answer in (options := options_in(text)):
            meta = {**meta, "options": option_meta(options)}
    asked = turn(text, len(cells), instruction or (LETTER if reward == "choice" else ANSWER))
    return Problem(
        id=row.id,
        task=task,
        messages=(*system_turn(system), *asked),
        images=pictures(row, cells),
        answer=answer,
        solution=solution,
        reward=reward,
        meta=meta,
    )
