"""dapo_math: competition mathematics with integer answers (DAPO-Math-17k).

The hub file holds every problem about a hundred times: 1.79 million rows, some 17,000 problems. The copies are left
out as duplicates and counted. Its own instruction around the problem is replaced by ours. The set that others have
de-duplicated has a config for each language and one for both:

    sapo-vl recipe dapo_math --out DIR source=open-r1/DAPO-Math-17k-Processed config=en
"""

from data_recipes.building import HubSet, recipe
from data_recipes.forms import FORMS
from data_recipes.reading import Row, problem, text_of, unwrap
from sapo_vl.data.writer import Card
from sapo_vl.types import Problem

BEFORE = "Solve the following math problem step by step. The last line of your response should be of the form Answer:"
AFTER = 'Remember to put your answer on its own line after "Answer:".'


def read(row: Row) -> Problem:
    """Rows of verl's form; those of open-r1/DAPO-Math-17k-Processed have `prompt` and `solution` as texts."""
    if isinstance(row.cells.get("prompt"), str):
        text, gold, system = text_of(row, "prompt"), unwrap(text_of(row, "solution")), ""
    else:
        form, columns = FORMS["verl"]
        found = form(row, columns)
        text, gold, system = found.text, found.answer, found.system
    return problem(row, task="dapo_math", text=without_instruction(text), answer=gold, system=system)


def without_instruction(text: str) -> str:
    """The problem without the set's own words: the first paragraph and the last sentence."""
    text = text.strip()
    if text.startswith(BEFORE):
        text = text.partition("\n\n")[2] or text
    return text.removesuffix(AFTER).strip()


SET = HubSet(
    name="dapo_math",
    card=Card(
        name="DAPO-Math-17k",
        source="BytedTsinghua-SIA/DAPO-Math-17k",
        licence="Apache-2.0",
        url="https://huggingface.co/datasets/BytedTsinghua-SIA/DAPO-Math-17k",
        paper="arXiv 2503.14476 (DAPO)",
        notes="De-duplicated: 1,791,700 rows hold about 17,400 problems. max_rows counts rows, not problems.",
    ),
    columns=("prompt",),
    read=read,
)
build = recipe(SET)
