"""refcoco: find what a phrase describes (RefCOCO, RefCOCO+, RefCOCOg), answered in thousandths as Qwen3-VL does.

Training rows are VLM-R1's: JSON lines with `image` (a path), and `conversations` whose answer has a box in pixels,
x1 y1 x2 y2. Put the lines beside the COCO folder: source=/data/rec/refcoco_train.jsonl.

Rows of the evaluation sets are read as well: those of lmms-lab (a region a row: `answer`, a list of phrases, and
`bbox`, x y width height) and those of jxu124/refcoco-benchmark (a picture a row: `ref_list`). From the latter is what
is built without a source: UNC's val, 1500 pictures, of each the first region, tested on UNC's testA. Its pictures are
in neither testA nor testB; the benchmark `refcoco_unc_val` measures nothing after training on it. Do not train on
"val" of lmms-lab/RefCOCO or RefCOCOg: Google's partition is mixed in, with pictures of every test set.
"""

import re
from collections.abc import Mapping, Sequence
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
    form = _picture if "ref_list" in row.cells else _region if "bbox" in row.cells else _training
    phrase, corners, cells = form(row)
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


def _region(row: Row) -> tuple[str, list[float], Sequence[Any]]:
    """The first phrase; the others describe the same region."""
    phrases = cells_of(row.cells.get("answer"))
    if not phrases or not isinstance(phrases[0], str) or not phrases[0].strip():
        raise ValueError("answer has no phrase")
    return phrases[0].strip(), _corners(row.cells["bbox"], "bbox"), cells_in(row, "image")


def _picture(row: Row) -> tuple[str, list[float], Sequence[Any]]:
    """The first phrase of the first region, so that no picture is shown twice."""
    first = cells_of(row.cells["ref_list"])[:1]
    region = first[0] if first and isinstance(first[0], Mapping) else {}
    box, said = region.get("ann_info"), region.get("ref_info")
    sentences = cells_of(said.get("sentences")) if isinstance(said, Mapping) else []
    phrase = sentences[0].get("sent") if sentences and isinstance(sentences[0], Mapping) else None
    if not isinstance(box, Mapping) or not isinstance(phrase, str) or not phrase.strip():
        raise ValueError("ref_list[0] has no ann_info.bbox, or no text in ref_info.sentences[0].sent")
    return phrase.strip(), _corners(box.get("bbox"), "ann_info.bbox"), cells_in(row, "image")


def _corners(box: Any, name: str) -> list[float]:
    """x1, y1, x2, y2 of [x, y, width, height]."""
    if not isinstance(box, list) or len(box) != 4 or not all(isinstance(n, int | float) for n in box):
        raise ValueError(f"{name} is {str(box)[:60]}, not [x, y, width, height]")
    x, y, width, height = map(float, box)
    return [x, y, x + width, y + height]


SET = HubSet(
    name="refcoco",
    card=Card(
        name="RefCOCO, RefCOCO+, RefCOCOg",
        source="jxu124/refcoco-benchmark",
        licence="COCO terms of use; the images have licences of their own",
        url="https://huggingface.co/datasets/omlab/VLM-R1 (training rows), https://cocodataset.org (images)",
        paper="arXiv 1608.00272",
        notes="The phrases of one region are one row in the evaluation sets; the first one is asked for.",
    ),
    columns=("image",),
    read=read,
    train="refcoco_unc_val",
    test="refcoco_unc_testA",
)
build = recipe(SET)
