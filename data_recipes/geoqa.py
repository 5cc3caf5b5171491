"""geoqa: geometry questions of GEOQA as R1-V trains on them; the R1-V form or EasyR1's, told by the row."""

from data_recipes.building import HubSet, recipe
from data_recipes.forms import FORMS
from data_recipes.reading import Row, problem
from sapo_vl.data.writer import Card
from sapo_vl.types import Problem


def read(row: Row) -> Problem:
    """Golds are numbers, LaTeX or letters of options."""
    form, columns = FORMS["r1v" if "solution" in row.cells else "easyr1"]
    found = form(row, columns)
    return problem(row, task="geoqa", text=found.text, cells=found.cells, answer=found.answer)


SET = HubSet(
    name="geoqa",
    card=Card(
        name="GEOQA R1-V",
        source="leonardPKU/GEOQA_R1V_Train_8K",
        url="https://huggingface.co/datasets/leonardPKU/GEOQA_R1V_Train_8K",
        paper="arXiv 2105.14517 (GeoQA)",
        notes="About 8,000 training rows. source=leonardPKU/GEOQA_8K_R1V test_from=test is the form with a test split.",
    ),
    columns=("problem",),
    read=read,
)
build = recipe(SET)
