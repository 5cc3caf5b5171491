"""mmk12: school mathematics and science with pictures, as MMK12 or as the older MM-Eureka data set.

MMK12 has `question`, `image`, `answer`; its test split is multiple choice. MM-Eureka's JSON lines have `message`, the
JSON text of chat turns whose images are "file:///" addresses, and `answer`; the addresses must lead into the folder of
the file: source=/data/mm_eureka/data.jsonl. Their system turn, which says in which form to answer, is replaced by our
instruction.
"""

from data_recipes.building import HubSet, recipe
from data_recipes.forms import FORMS, Columns, conversation
from data_recipes.reading import Row, problem
from sapo_vl.data.writer import Card
from sapo_vl.types import Problem


def read(row: Row) -> Problem:
    if "message" in row.cells:
        found = conversation(row, Columns(image="", question="message", answer="answer"))
    else:
        form, columns = FORMS["columns"]
        found = form(row, columns)
    subject = row.cells.get("subject")
    return problem(
        row,
        task="mmk12",
        text=found.text,
        cells=found.cells,
        answer=found.answer,
        meta={"subject": subject} if isinstance(subject, str) else {},
    )


SET = HubSet(
    name="mmk12",
    card=Card(
        name="MMK12",
        source="FanqingM/MMK12",
        url="https://huggingface.co/datasets/FanqingM/MMK12",
        paper="arXiv 2503.07365 (MM-Eureka)",
        notes="15,616 training rows to fill in, 2,000 test rows of multiple choice.",
    ),
    columns=("answer",),
    read=read,
    test="test",
)
build = recipe(SET)
