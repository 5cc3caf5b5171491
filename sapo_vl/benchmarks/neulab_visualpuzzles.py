r"""VisualPuzzles of neulab (arXiv 2504.10342): 1168 puzzles of reasoning with little knowledge, four options each.

Not to be mixed up with `visual_puzzles`, the puzzles of our own recipe. Rows: id, image, question, options (a list, or
none where they are in the picture), answer (a letter), category. Columns and split ("train", the only one) are those
of public loaders. The prompt is question and options with \boxed{}.

Not official: there a letter is looked for in one form after another, then the text of an option, else one is drawn;
here no answer scores 0.
"""

from __future__ import annotations

from collections.abc import Iterator

from rewards.options import option_meta
from sapo_vl.benchmarks.base import Benchmark, Row
from sapo_vl.benchmarks.cells import gold, grouped, ident, lettered, shown, text, text_list
from sapo_vl.benchmarks.prompts import BOXED_LETTER, ask_about
from sapo_vl.types import Problem

IN_PICTURE = {"A": "A", "B": "B", "C": "C", "D": "D"}  # a text that is only its letter is not shown


def problems(row: Row) -> Iterator[Problem]:
    """One problem a row."""
    answer = gold(row, "answer").upper()
    texts = text_list(row.cells.get("options"), "options")
    options = lettered(texts) if texts else IN_PICTURE
    if answer not in options:
        raise ValueError(f"answer is {answer[:40]!r}, none of the letters {', '.join(options)}")
    yield Problem(
        id=f"neulab_visualpuzzles-{ident(row, 'id')}",
        task="neulab_visualpuzzles",
        messages=ask_about(1, f"{text(row, 'question')}\n{shown(options)}", BOXED_LETTER),
        images=(row.image(row.cells.get("image")),),
        answer=answer,
        reward="choice",
        meta={"options": option_meta(options)} | grouped(category=row.cells.get("category")),
    )


NEULAB_VISUALPUZZLES = Benchmark(
    name="neulab_visualpuzzles",
    source="neulab/VisualPuzzles",
    split="train",
    licence="unknown",
    columns=("id", "image", "question", "options", "answer"),
    problems=problems,
    official="official_neulab_visualpuzzles",
)
