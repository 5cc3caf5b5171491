"""refcoco: find what a phrase describes (RefCOCO, RefCOCO+, RefCOCOg), answered in thousandths as Qwen3-VL does.

Training rows are VLM-R1's: JSON lines with `image` (a path), and `conversations` whose answer has a box in pixels,
x1 y1 x2 y2. Put the lines beside the COCO folder: source=/data/rec/refcoco_train.jsonl. Rows of the evaluation sets
(lmms-lab/RefCOCO, RefCOCOplus, RefCOCOg: `answer`, a list of phrases, and `bbox`, x y width height) are read as well:
source=lmms-lab/RefCOCO train_from=val test_from=testA.
"""

import re
from collections.abc import Sequence
from typing import Any

from data_recipes.building import HubSet, recipe
from data_recipes.forms import FORMS
from data_recipes.reading import BOX, MARKER, Row, cells_in, cells_of, pictures, turn
from sapo_vl.data.writer import Card
from sapo_vl.types import Problem

QUESTION = "Find the region that this phrase describes: {phrase}"
_BOX = re.compile(
    r"\[\s*(-?\d+(?:\.\d+)?)\s*,\s*(-?\d+(?:\.\d+)?)\s*,\s*(-?\d+(?:\.\d+)?)\s*,\s*(-?\d+(?:\.\d+)?)\s*\]"
)
_PHRASE = re.compile(r"(?:describes|sentence describes|phrase):\s*(.+?)\.?\s*$", re.S)


def read(row: Row) -> Problem:
    phrase, corners, cells = _evaluation(row) if "bbox" in row.cells else _training(row)
    images = pictures(row, cells)
    if len(images) != 1:
        raise ValueError(f"the row has {len(images)} images, not 1")
    return Problem(
        id=row.id,
        task="refcoco",
        messages=turn(QUESTION.format(phrase=phrase), 1, BOX),
        images=images,
        answer=thousandths(corners, images[0].size),
        reward="box",
        meta={"coords": "0-1000"},
    )


def thousandths(corners: Sequence[float], size: tuple[int, int]) -> str:
    """x1 y1 x2 y2 in pixels of an image of `size` as thousandths. Raises ValueError if the box is not in the image."""
    x1, y1, x2, y2 = corners
    width, height = size
    # Half a pixel of rounding is forgiven; annotations reach that far.
    if not (-0.5 <= x1 < x2 <= width + 0.5 and -0.5 <= y1 < y2 <= height + 0.5):
        raise ValueError(f"the box {list(corners)} is no box of an image of {width}x{height} pixels")
    scaled = [x1 / width, y1 / height, x2 / width, y2 / height]
    return ", ".join(f"{min(1.0, max(0.0, value)) * 1000:.1f}" for value in scaled)


def _training(row: Row) -> tuple[str, list[float], Sequence[Any]]:
    form, columns = FORMS["llava"]
    found = form(row, columns)
    box = _BOX.search(found.answer)
    if box is None:
        raise ValueError(f"the answer {found.answer[:60]!r} has no box [x1, y1, x2, y2]")
    text = found.text.replace(MARKER, "").strip()
    phrase = _PHRASE.search(text)
    return (phrase[1] if phrase else text), [float(number) for number in box.groups()], found.cells


def _evaluation(row: Row) -> tuple[str, list[float], Sequence[Any]]:
    """The first phrase; the others describe the same region."""
    phrases, box = cells_of(row.cells.get("answer")), row.cells["bbox"]
    if not phrases or not isinstance(phrases[0], str) or not phrases[0].strip():
        raise ValueError("answer has no phrase")
    if not isinstance(box, list) or len(box) != 4 or not all(isinstance(n, int | float) for n in box):
        raise ValueError(f"bbox is {str(box)[:60]}, not [x, y, width, height]")
    x, y, width, height = map(float, box)
    return phrases[0].strip(), [x, y, x + width, y + height], cells_in(row, "image")


SET = HubSet(
    name="refcoco",
    card=Card(
        name="RefCOCO, RefCOCO+, RefCOCOg",
        source="lmms-lab/RefCOCO",
        licence="COCO terms of use; the images have licences of their own",
        url="https://huggingface.co/datasets/omlab/VLM-R1 (training rows), https://cocodataset.org (images)",
        paper="arXiv 1608.00272",
        notes="The phrases of one region are one row in the evaluation sets; the first one is asked for.",
    ),
    columns=("image",),
    read=read,
    train="val",
    test="testA",
)
build = recipe(SET)
