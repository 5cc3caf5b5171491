r"""VisuLogic (arXiv 2504.15279): 1000 puzzles of visual logic without knowledge; the four options are in the picture.

Rows: question, label (a letter A to D), image or image_path, id, tag. The set of the authors (`VisuLogic/VisuLogic`)
has data.jsonl and images.zip, which load_dataset does not join: unpack the pictures beside data.jsonl and give that
file as the source. The default source is a copy with the pictures in the rows; its columns are from a public loader's
notes, its split ("test") was not confirmed.

Not official: there a letter in the last box (not "(B)"), else one that begins or ends the response or follows a phrase,
else a language model says which (VLMEvalKit: none). Here it is asked for in \boxed{}.
"""

from __future__ import annotations

from collections.abc import Iterator

from sapo_vl.benchmarks.base import Benchmark, Row
from sapo_vl.benchmarks.cells import gold, grouped, text
from sapo_vl.benchmarks.prompts import BOXED_LETTER, ask_about
from sapo_vl.types import Problem

LETTERS = ("A", "B", "C", "D")


def problems(row: Row) -> Iterator[Problem]:
    """One problem a row."""
    answer = gold(row, "label").upper()
    if answer not in LETTERS:
        raise ValueError(f"label is {answer[:40]!r}, none of {', '.join(LETTERS)}")
    cell = row.cells.get("image")
    yield Problem(
        id=f"visulogic-{row.index}",
        task="visulogic",
        messages=ask_about(1, text(row, "question"), BOXED_LETTER),
        images=(row.image(row.cells.get("image_path") if cell is None else cell),),
        answer=answer,
        reward="choice",
        meta={"options": dict.fromkeys(LETTERS, "")} | grouped(tag=row.cells.get("tag")),
    )


VISULOGIC = Benchmark(
    name="visulogic",
    source="lscpku/VisuLogic",
    split="test",
    licence="unknown",
    columns=("question", "label"),
    problems=problems,
    official="official_visulogic",
)
