r"""HallusionBench (arXiv 2310.14566): yes or no about charts, maps, illusions, and edited copies of the same pictures.

Rows: category ("VD" visual dependent, "VS" visual supplement), subcategory, set_id, figure_id, question_id,
visual_input ("0" without a picture, "1" the original, "2" an edited one), question, gt_answer ("1" yes, "0" no), image.
Columns and splits (image 951, non_image 178) are those of lmms-eval's loader and of public notes on the set; the
default is the split with pictures, as kits report it. A row whose visual_input is "0" is asked without a picture.

Figures, as in the paper: `aAcc` the share of questions that are right; `qAcc` that of question pairs (one question
asked about the pictures of a set) all right; `fAcc` that of pictures all of whose questions are right. With k responses
they are those of the first responses, of the second, ..., averaged.

Not official: there a language model compares the response with a reference sentence; without a picture, "I cannot
tell" is right as well. Here the answer is yes or no. `eval.rule=official` is the rule of VLMEvalKit in its place: one
of both words, and not the other, anywhere in the answer.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence

from sapo_vl.benchmarks.base import Benchmark, ItemScores, Row
from sapo_vl.benchmarks.cells import gold, grouped, ident, text
from sapo_vl.benchmarks.prompts import BOXED_YES_NO, ask_about
from sapo_vl.benchmarks.tally import right, rounds
from sapo_vl.types import Problem

ANSWERS = {"1": "yes", "0": "no"}


def problems(row: Row) -> Iterator[Problem]:
    """One problem a row."""
    answer = gold(row, "gt_answer")
    if answer not in ANSWERS:
        raise ValueError(f"gt_answer is {answer[:40]!r}, neither '1' nor '0'")
    kind = f"{ident(row, 'category')}-{ident(row, 'subcategory')}-{ident(row, 'set_id')}"
    figure, question = ident(row, "figure_id"), ident(row, "question_id")
    blind = str(row.cells.get("visual_input")) == "0"
    yield Problem(
        id=f"hallusionbench-{kind}-{figure}-{question}",
        task="hallusionbench",
        messages=ask_about(0 if blind else 1, text(row, "question"), BOXED_YES_NO),
        images=() if blind else (row.image(row.cells.get("image")),),
        answer=ANSWERS[answer],
        reward="word",
        meta={"pair": f"{kind}-{question}", "figure": "" if blind else f"{kind}-{figure}"}
        | grouped(category=row.cells.get("category"), subcategory=row.cells.get("subcategory")),
    )


def consistency(items: Sequence[ItemScores]) -> dict[str, float]:
    """See the top of the file."""
    if not rounds(items):
        return {}
    every = [[item] for item in items]
    sets = {"aAcc": every, "qAcc": _by(items, "pair"), "fAcc": _by(items, "figure")}
    return {
        name: sum(all(right(item, response) for item in group) for group in groups for response in rounds(items))
        / (len(groups) * len(rounds(items)))
        for name, groups in sets.items()
        if groups
    }


def _by(items: Sequence[ItemScores], key: str) -> list[list[ItemScores]]:
    groups: dict[str, list[ItemScores]] = defaultdict(list)
    for item in items:
        if item.meta[key]:
            groups[item.meta[key]].append(item)
    return list(groups.values())


HALLUSIONBENCH = Benchmark(
    name="hallusionbench",
    source="lmms-lab-encoder/HallusionBench",
    split="image",
    licence="unknown",
    columns=("category", "subcategory", "set_id", "figure_id", "question_id", "visual_input", "question", "gt_answer"),
    problems=problems,
    official="official_hallusionbench",
    metrics=consistency,
)
