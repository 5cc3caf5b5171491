r"""virl39k: ViRL39K, questions of many subjects with checked answers.

`image` is a list of paths relative to the folder of the parquet file, so download the set, unzip its images there and
give the file: source=/data/ViRL39K/39Krelease.parquet. Golds are in `\boxed{}`. A missing "<image>" marker goes before
the text. Rows of the ready form (Kun-Xiang/ViRL39K: `images`, `problem`) are read as well.
"""

from data_recipes.building import HubSet, recipe
from data_recipes.reading import Row, cells_in, problem, text_of, unwrap
from sapo_vl.data.writer import Card
from sapo_vl.types import Problem


def read(row: Row) -> Problem:
    ready = "problem" in row.cells
    kept = {name: row.cells[name] for name in ("category", "source", "qid") if row.cells.get(name) is not None}
    return problem(
        row,
        task="virl39k",
        text=text_of(row, "problem" if ready else "question"),
        cells=cells_in(row, "images" if ready else "image"),
        answer=unwrap(text_of(row, "answer")),
        meta=kept,
    )


SET = HubSet(
    name="virl39k",
    card=Card(
        name="ViRL39K",
        source="TIGER-Lab/ViRL39K",
        licence="MIT",
        url="https://huggingface.co/datasets/TIGER-Lab/ViRL39K",
        paper="arXiv 2504.08837 (VL-Rethinker)",
        notes="38,870 rows. Images are files beside the parquet file.",
    ),
    columns=("answer",),
    read=read,
)
build = recipe(SET)
