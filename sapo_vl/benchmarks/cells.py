"""Reading the cells of a benchmark's rows: texts, golds, options, pictures that a text refers to."""

from __future__ import annotations

import ast
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any

from PIL import Image

from rewards.choice import folded
from sapo_vl.benchmarks.base import GROUPS, LeftOut, Row
from sapo_vl.benchmarks.prompts import MARKER

MAX_LIST_CHARS = 20_000  # of a list that is stored as the text of a Python list
BLANKED = frozenset(["", "?", "___"])  # what test splits without answers have in their place
IMAGE_NUMBER = re.compile(r"<image ?(\d{1,2})>")
_DIRECTLY = re.compile(r"\s*Please answer directly with [^.\n]*\.?\s*\Z")  # the closing sentence of some sets


def ident(row: Row, name: str) -> str:
    """The id in a cell. Raises ValueError if there is none."""
    cell = row.cells.get(name)
    if cell is None or isinstance(cell, bool) or not isinstance(cell, str | int) or not str(cell).strip():
        raise ValueError(f"{name} is {str(cell)[:40]!r}, not an id")
    return str(cell).strip()


def text(row: Row, name: str) -> str:
    """The text of a cell. Raises ValueError if it is empty or no text."""
    cell = row.cells.get(name)
    if not isinstance(cell, str) or not cell.strip():
        raise ValueError(f"{name} is {str(cell)[:40]!r}, not a text")
    return cell.strip()


def without_instruction(question: str) -> str:
    """A question without its closing "Please answer directly with ...", where ours takes its place.

    Raises ValueError if nothing is left.
    """
    left = _DIRECTLY.sub("", question)
    if not left:
        raise ValueError(f"question is {question[:40]!r}, an instruction alone")
    return left


def gold(row: Row, name: str) -> str:
    """The reference answer as text. Raises LeftOut("no gold") if it is missing (NaN in tables) or blanked."""
    cell = row.cells.get(name)
    answer = "" if cell is None or (isinstance(cell, float) and not math.isfinite(cell)) else str(cell).strip()
    if answer in BLANKED:
        raise LeftOut("no gold")
    return answer


def picture_cells(row: Row, name: str) -> list[Any]:
    """The picture cells of a column that holds a list of them, or none. Raises ValueError if it is no list."""
    cells = row.cells.get(name)
    if cells is not None and not isinstance(cells, list | tuple):
        raise ValueError(f"{name} is a {type(cells).__name__}, not a list of pictures")
    return list(cells or ())


def text_list(cell: Any, name: str) -> list[str]:
    """A list of texts, also one that is stored as the text of a Python list: "['a', 'b']". Raises ValueError.

    A list whose one item is a list is that list: a row of MMMU-Pro has "[['a', 'b']]".
    """
    value = cell
    if isinstance(cell, str):
        if len(cell) > MAX_LIST_CHARS:
            raise ValueError(f"{name} has {len(cell)} characters, more than {MAX_LIST_CHARS}")
        try:
            value = ast.literal_eval(cell.strip() or "[]")  # reads literals only, runs nothing
        except (ValueError, SyntaxError, RecursionError, MemoryError) as error:
            raise ValueError(f"{name} is {cell[:40]!r}, not the text of a Python list") from error
    if value is None:
        return []
    if isinstance(value, list | tuple) and len(value) == 1 and isinstance(value[0], list | tuple):
        value = value[0]
    if not isinstance(value, list | tuple) or not all(isinstance(item, str | int | float) for item in value):
        raise ValueError(f"{name} is {str(cell)[:40]!r}, not a list of texts")
    return [str(item).strip() for item in value]


def lettered(texts: Sequence[str]) -> dict[str, str]:
    """{"A": first text, "B": second, ...}. Raises ValueError if there are more than letters, or fewer than two."""
    if not 2 <= len(texts) <= 26:
        raise ValueError(f"{len(texts)} options; there must be 2 to 26")
    return {chr(ord("A") + i): option for i, option in enumerate(texts)}


def letters_of(answer: str, options: Mapping[str, str]) -> list[str]:
    """The letters of the options whose text is `answer`, one or more. Raises ValueError if it is no option's."""
    found = [label for label, option in options.items() if folded(option) == folded(answer)]
    if not found:
        raise ValueError(f"answer {answer[:40]!r} is the text of none of the options {str(dict(options))[:200]}")
    return found


def shown(options: Mapping[str, str]) -> str:
    """The options as lines "A. text". A text that is only its letter (the options are in the picture) is not shown."""
    return "\n".join(f"{label}. {option}" for label, option in options.items() if option != label)


def referred(question: str, pictures: Mapping[int, Any], row: Row) -> tuple[str, list[Image.Image]]:
    """A text with "<image 2>" in it, with MARKER in their place, and the images in the order of the markers.

    Pictures that the text does not refer to come first. A second reference to a picture is the words "image 2".

    Args:
        pictures: number -> image cell; None where the row has none.

    Raises:
        ValueError: a picture that is referred to is missing or cannot be read.
    """
    order: list[int] = []

    def place(match: re.Match[str]) -> str:
        number = int(match[1])
        if number in order:
            return f"image {number}"
        order.append(number)
        return MARKER

    marked = IMAGE_NUMBER.sub(place, question.replace(MARKER, "image"))
    first = [number for number, cell in pictures.items() if cell is not None and number not in order]
    for number in order:
        if pictures.get(number) is None:
            raise ValueError(f"the text refers to image {number}, which the row does not have")
    return MARKER * len(first) + marked, [row.image(pictures[number]) for number in [*first, *order]]


def grouped(**values: object) -> dict[str, dict[str, str]]:
    """meta["groups"]: by which the accuracy is also given. Missing values are left out."""
    return {GROUPS: {name: str(value) for name, value in values.items() if value is not None and value != ""}}
