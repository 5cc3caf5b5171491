"""deepmath: hard mathematics with checked final answers (DeepMath-103K). Rows that give theirs away are left out."""

from data_recipes.building import HubSet, recipe
from data_recipes.reading import Row, problem, text_of, unwrap
from sapo_vl.data.writer import Card
from sapo_vl.types import Problem


def read(row: Row) -> Problem:
    kept = {name: row.cells[name] for name in ("difficulty", "topic") if row.cells.get(name) is not None}
    answer = unwrap(text_of(row, "final_answer"))
    return problem(row, task="deepmath", text=text_of(row, "question"), answer=answer, meta=kept)


SET = HubSet(
    name="deepmath",
    card=Card(
        name="DeepMath-103K",
        source="zwhe99/DeepMath-103K",
        licence="MIT",
        url="https://huggingface.co/datasets/zwhe99/DeepMath-103K",
        paper="arXiv 2504.11456",
        notes="About 103,000 rows, 2 GB because of three worked solutions each, which are not read.",
    ),
    columns=("question", "final_answer"),
    read=read,
)
build = recipe(SET)
