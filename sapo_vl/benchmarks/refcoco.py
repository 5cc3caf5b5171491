"""RefCOCO, RefCOCO+ and RefCOCOg (arXiv 1608.00272, 1511.02283): find what an expression refers to.

Rows: question_id, image, answer (the expressions for one region, each a problem of its own), bbox [x, y, width,
height] in pixels. The answer is asked for as Qwen3-VL gives it, JSON in thousandths of width and height, and is right
if its IoU with the gold reaches 0.5 (Acc@0.5). The unit is fixed by the question: kits guess it from the size of the
numbers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from sapo_vl.benchmarks.base import Benchmark, LeftOut, Row
from sapo_vl.benchmarks.prompts import BOX_JSON, ask_about
from sapo_vl.types import Problem

SETS = {  # name -> (hub set, splits)
    "refcoco": ("lmms-lab/RefCOCO", ("val", "testA", "testB")),
    "refcocoplus": ("lmms-lab/RefCOCOplus", ("val", "testA", "testB")),
    "refcocog": ("lmms-lab/RefCOCOg", ("val", "test")),
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


def _problems(name: str) -> Callable[[Row], Iterator[Problem]]:
    def problems(row: Row) -> Iterator[Problem]:
        """A problem an expression."""
        gold, image = _corners(row.cells.get("bbox")), row.image(row.cells.get("image"))
        expressions = row.cells.get("answer")
        if not isinstance(expressions, list) or not expressions or not all(isinstance(e, str) for e in expressions):
            raise ValueError(f"answer is {str(expressions)[:60]!r}, not a list of expressions")
        for number, expression in enumerate(expressions):
            yield Problem(
                id=f"{name}-{row.index}-{number}",
                task=name,
                messages=ask_about(1, f'Locate what this expression refers to: "{expression.strip()}".', BOX_JSON),
                images=(image,),
                answer=gold,
                reward="box",
                meta={"coords": "0-1000", "size": list(image.size), "threshold": 0.5},
            )

    return problems


def _benchmark(base: str, split: str) -> Benchmark:
    name = f"{base}_{split}"
    return Benchmark(
        name=name,
        source=SETS[base][0],
        split=split,
        licence="unknown",
        columns=("image", "answer", "bbox"),
        problems=_problems(name),
    )


REFCOCO = tuple(_benchmark(base, split) for base, (_, splits) in SETS.items() for split in splits)
