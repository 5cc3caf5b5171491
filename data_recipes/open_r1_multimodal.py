"""open_r1_multimodal: multimodal-open-r1-8k, questions with a worked solution; `solution` holds thinking and answer."""

from data_recipes.building import HubSet, recipe
from data_recipes.reading import LeftOut, Row, cells_in, problem, text_of
from rewards.answers.extract import last_answer
from sapo_vl.data.writer import Card
from sapo_vl.types import Problem


def read(row: Row) -> Problem:
    """The gold is what the solution answers; the solution itself can be imitated in a cold start."""
    solution = text_of(row, "solution")
    gold = last_answer(solution)
    if not gold:
        raise LeftOut("no answer in the solution")
    return problem(
        row,
        task="open_r1_multimodal",
        text=text_of(row, "problem"),
        cells=cells_in(row, "image"),
        answer=gold,
        solution=solution,
    )


SET = HubSet(
    name="open_r1_multimodal",
    card=Card(
        name="multimodal-open-r1-8k-verified",
        source="lmms-lab/multimodal-open-r1-8k-verified",
        url="https://huggingface.co/datasets/lmms-lab/multimodal-open-r1-8k-verified",
        notes="7,690 rows; the solutions were written by a model.",
    ),
    columns=("image", "problem", "solution"),
    read=read,
)
build = recipe(SET)
