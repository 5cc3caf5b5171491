"""clevr_count: how many objects are in a rendered scene, in both forms in which the set is passed around.

EasyR1's (`images`, `problem` with a marker, `answer`) is the default; R1-V's (`image`, `problem`, `solution` with
answer tags in it) is read from source=leonardPKU/clevr_cogen_a_train test_from= or a copy of it.
"""

from data_recipes.building import HubSet, recipe
from data_recipes.forms import FORMS
from data_recipes.reading import Row, problem
from sapo_vl.data.writer import Card
from sapo_vl.types import Problem


def read(row: Row) -> Problem:
    """The form is told by the row. "different" goes: "how many different items" asks for something else."""
    form, columns = FORMS["r1v" if "solution" in row.cells else "easyr1"]
    found = form(row, columns)
    text = found.text.replace("different ", "")
    return problem(row, task="clevr_count", text=text, cells=found.cells, answer=found.answer, reward="count")


SET = HubSet(
    name="clevr_count",
    card=Card(
        name="CLEVR count",
        source="BUAADreamer/clevr_count_70k",
        licence="CC BY 4.0 (of CLEVR; the set itself states none)",
        url="https://huggingface.co/datasets/BUAADreamer/clevr_count_70k",
        paper="arXiv 1612.06890 (CLEVR)",
        notes="70,000 training and 200 test rows, about 10 GB. The R1-V form has no test rows: test_from= draws some.",
    ),
    columns=("problem",),
    read=read,
    test="test",
)
build = recipe(SET)
