r"""geometry3k: questions about geometry figures (hiyouga/geometry3k on the Hugging Face hub, MIT).

Its rows have `images`, `problem` with one "<image>" marker per image, and `answer`. Numbers and LaTeX such as
`2 \sqrt { 221 }` are judged by the reward "math", to which equal expressions are equal.
"""

from data_recipes.building import HubSet, recipe
from data_recipes.reading import TAGS, Row, cells_of, problem, text_of
from sapo_vl.data.writer import Card
from sapo_vl.types import Problem

INSTRUCTION = TAGS + ", as a plain number where possible."


def read(row: Row) -> Problem:
    return problem(
        row,
        task="geometry3k",
        text=text_of(row, "problem"),
        cells=cells_of(row.cells["images"]),
        answer=text_of(row, "answer"),
        instruction=INSTRUCTION,
    )


SET = HubSet(
    name="geometry3k",
    card=Card(
        name="Geometry3K",
        source="hiyouga/geometry3k",
        licence="MIT",
        url="https://huggingface.co/datasets/hiyouga/geometry3k",
        paper="arXiv 2105.04165 (Inter-GPS)",
        notes="2101 training, 300 validation and 601 test rows. Golds are values, not the letters of the options.",
    ),
    columns=("images", "problem", "answer"),
    read=read,
    test="test",
)
build = recipe(SET)
