"""RefCOCO, RefCOCO+ and RefCOCOg (arXiv 1608.00272, 1511.02283): find what an expression refers to.

Each expression is a problem of its own. The answer is asked for as Qwen3-VL gives it, JSON in thousandths of width and
height, and is right if its IoU with the gold reaches 0.5 (Acc@0.5). The unit is fixed by the question: kits guess it
from the size of the numbers.

Two forms of rows. lmms-lab's, a region a row: image, answer (the expressions), bbox [x, y, width, height] in pixels.
jxu124/refcoco-benchmark's, a picture a row: image, ref_list of {ann_info: {bbox}, ref_info: {sentences: [{sent}]}}
(as its card lists them).

Published figures are those of the partitions of UNC (RefCOCO, RefCOCO+) and UMD (RefCOCOg). testA, testB, RefCOCO+ and
RefCOCOg test are these in lmms-lab's sets. "val" of lmms-lab/RefCOCO (8811 regions) and of lmms-lab/RefCOCOg mixes
them with Google's, whose pictures lie in UNC's training and test sets, so it is not offered: `refcoco_unc_val` (1500
pictures, 3811 regions, 10834 expressions) and `refcocog_umd_val` (1300 pictures) take the published splits from
jxu124's set.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from PIL import Image

from sapo_vl.benchmarks.base import Benchmark, LeftOut, Row
from sapo_vl.benchmarks.prompts import BOX_JSON, ask_about
from sapo_vl.types import Problem

SETS = {  # name -> (hub set, splits)
    "refcoco": ("lmms-lab/RefCOCO", ("testA", "testB")),
    "refcocoplus": ("lmms-lab/RefCOCOplus", ("val", "testA", "testB")),
    "refcocog": ("lmms-lab/RefCOCOg", ("test",)),
}
BY_PICTURE = ("refcoco_unc_val", "refcocog_umd_val")  # splits of the set below, and names
BY_PICTURE_SOURCE = "jxu124/refcoco-benchmark"
_MIXED = "mixed the published split with Google's, of whose pictures most are training pictures; the published one is"
RENAMED = {  # names that were benchmarks -> what to say
    "refcoco_val": f"refcoco_val {_MIXED} 'refcoco_unc_val'",
    "refcocog_val": f"refcocog_val {_MIXED} 'refcocog_umd_val'",
}


def _corners(cell: Any) -> str:
    """[x, y, width, height] as "x1 y1 x2 y2"."""
    if not cell:
        raise LeftOut("no gold")
    if not isinstance(cell, Sequence) or len(cell) != 4 or not all(isinstance(side, int | float) for side in cell):
        raise ValueError(f"bbox is {str(cell)[:60]!r}, not [x, y, width, height]")
    x, y, width, height = cell
    if not (width > 0 and height > 0 and max(map(abs, cell)) < 100_000):
        raise ValueError(f"bbox is {list(cell)}, which is no box in an image")
    return f"{x:.3f} {y:.3f} {x + width:.3f} {y + height:.3f}"


def _problem(name: str, place: str, expression: str, gold: str, image: Image.Image) -> Problem:
    return Problem(
        id=f"{name}-{place}",
        task=name,
        messages=ask_about(1, f'Locate what this expression refers to: "{expression.strip()}".', BOX_JSON),
        images=(image,),
        answer=gold,
        reward="box",
        meta={"coords": "0-1000", "size": list(image.size), "threshold": 0.5},
    )


def _of_region(name: str) -> Callable[[Row], Iterator[Problem]]:
    def problems(row: Row) -> Iterator[Problem]:
        """A problem an expression."""
        gold, image = _corners(row.cells.get("bbox")), row.image(row.cells.get("image"))
        expressions = row.cells.get("answer")
        if not isinstance(expressions, list) or not expressions or not all(isinstance(e, str) for e in expressions):
            raise ValueError(f"answer is {str(expressions)[:60]!r}, not a list of expressions")
        for number, expression in enumerate(expressions):
            yield _problem(name, f"{row.index}-{number}", expression, gold, image)

    return problems


def _of_picture(name: str) -> Callable[[Row], Iterator[Problem]]:
    def problems(row: Row) -> Iterator[Problem]:
        """A problem an expression, of all regions of the picture."""
        image, regions = row.image(row.cells.get("image")), row.cells.get("ref_list")
        if not isinstance(regions, list) or not regions:
            raise ValueError(f"ref_list is {str(regions)[:60]!r}, not a list of regions")
        read = [_region(region, number) for number, region in enumerate(regions)]  # all, before one is asked
        for place, (gold, expressions) in enumerate(read):
            for number, expression in enumerate(expressions):
                yield _problem(name, f"{row.index}-{place}-{number}", expression, gold, image)

    return problems


def _region(region: Any, number: int) -> tuple[str, list[str]]:
    """Gold and expressions of an item of ref_list."""
    about = region if isinstance(region, Mapping) else {}
    box, said = about.get("ann_info"), about.get("ref_info")
    sentences = said.get("sentences") if isinstance(said, Mapping) else None
    found = [s.get("sent") for s in sentences if isinstance(s, Mapping)] if isinstance(sentences, list) else []
    expressions = [text for text in found if isinstance(text, str) and text.strip()]
    if not isinstance(box, Mapping) or not expressions or len(expressions) < len(sentences or ()):
        raise ValueError(f"ref_list[{number}] has no ann_info.bbox, or not only texts in ref_info.sentences[].sent")
    return _corners(box.get("bbox")), expressions


def _benchmark(base: str, split: str) -> Benchmark:
    name = f"{base}_{split}"
    return Benchmark(
        name=name,
        source=SETS[base][0],
        split=split,
        licence="unknown",
        columns=("image", "answer", "bbox"),
        problems=_of_region(name),
    )


def _by_picture(name: str) -> Benchmark:
    return Benchmark(
        name=name,
        source=BY_PICTURE_SOURCE,
        split=name,
        licence="unknown",
        columns=("image", "ref_list"),
        problems=_of_picture(name),
    )


REFCOCO = (
    *(_benchmark(base, split) for base, (_, splits) in SETS.items() for split in splits),
    *map(_by_picture, BY_PICTURE),
)
