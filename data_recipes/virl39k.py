r"""virl39k: ViRL39K, questions of many subjects with checked answers.

The hub set is a file of rows, 39Krelease.parquet, whose `image` is a list of paths, and a zip of the pictures. Both are
fetched by name and the zip is read as it is; a local copy is a folder with the two, or with the unpacked pictures:
source=/data/ViRL39K, or its parquet file. Golds are in `\boxed{}`. Where several pictures have one "<image>", or none,
all of them stand there, or before the text. Rows of the ready form (Kun-Xiang/ViRL39K: `images`, `problem`) are read as
well.
"""

from data_recipes.building import HubSet, recipe
from data_recipes.reading import MARKER, Row, cells_in, problem, text_of, unwrap
from sapo_vl.data.source import Layout
from sapo_vl.data.writer import Card
from sapo_vl.types import Problem


def read(row: Row) -> Problem:
    ready = "problem" in row.cells
    kept = {name: row.cells[name] for name in ("category", "source", "qid") if row.cells.get(name) is not None}
    text, cells = text_of(row, "problem" if ready else "question"), cells_in(row, "images" if ready else "image")
    if text.count(MARKER) == 1:
        text = text.replace(MARKER, MARKER * max(1, len(cells)))
    return problem(
        row,
        task="virl39k",
        text=text,
        cells=cells,
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
    layout=Layout(repo="TIGER-Lab/ViRL39K", files=("39Krelease.parquet",), archive="images.zip"),
    columns=("answer",),
    read=read,
)
build = recipe(SET)
