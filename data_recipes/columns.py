"""columns: any file or hub set in one of the usual shapes (data_recipes.forms), with the columns named.

sapo-vl recipe columns --out DIR source=rows.jsonl form=r1v
sapo-vl recipe columns --out DIR source=me/receipts image=photo question=ask answer=total reward=number
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from data_recipes.building import MAX_BAD_SHARE, MAX_TOKENS, Rules, split_rows, write_set
from data_recipes.forms import FORMS, Columns
from data_recipes.reading import Row, problem
from rewards import REWARDS
from sapo_vl.data.images import is_missing
from sapo_vl.data.problem_set import DataError
from sapo_vl.data.source import Source, open_source
from sapo_vl.data.writer import UNKNOWN, Card
from sapo_vl.types import Problem


def build(
    out: Path,
    *,
    seed: int = 0,
    source: str = "",
    form: str = "columns",
    config: str = "",
    image: str = "",
    question: str = "",
    answer: str = "",
    reward: str = "",
    task: str = "data",
    instruction: str = "",
    text_only: bool = False,
    licence: str = UNKNOWN,
    train_from: str = "train",
    test_from: str = "",
    test_rows: int = 200,
    max_rows: int = 0,
    max_tokens: int = MAX_TOKENS,
    check_golds: bool = True,
    max_bad_share: float = MAX_BAD_SHARE,
) -> dict[str, Any]:
    """Writes the data set folder `out` with the splits test and train, and returns its manifest.

    seed: which rows are drawn, where test_rows or max_rows draw any.
    source: a file (JSON, JSON lines, parquet, CSV, TSV), a folder of such, or a hub id; config is that of a hub set.
    form: the shape of the rows, one of columns, easyr1, r1v, llava, sharegpt, verl.
    image, question, answer: names of the columns where they are not those of the form. Paths of images start at the
        folder of the source and must stay in it.
    reward: that of all rows; "" = choice, word or math, by the look of each gold.
    instruction: what is said after the question; "" = to answer between answer tags; "none" = nothing.
    text_only: whether a row whose picture is missing (null, an empty text) is a problem without a picture; if not, it
        is left out. A row without such a column, or with an empty list in it, is one in any case, and counted.
    test_from: split that becomes our test split; "" = test_rows rows of train_from do.
    The others are those of data_recipes.building.recipe.

    Raises DataError if the source lacks splits or columns, or an argument makes no sense.
    """
    arguments = {name: value for name, value in locals().items() if name != "out"}
    if not source:
        raise DataError("source is missing; give source=FILE, source=FOLDER or source=OWNER/NAME")
    if form not in FORMS:
        raise DataError(f"form={form!r}; there are {', '.join(FORMS)}")
    if reward and reward not in REWARDS:
        raise DataError(f"reward={reward!r}; there are {', '.join(sorted(REWARDS))}")
    read, usual = FORMS[form]
    columns = Columns(image=image or usual.image, question=question or usual.question, answer=answer or usual.answer)
    needed = [name for name in (columns.question, columns.answer, image) if name]

    def opened(split: str) -> Source:
        return open_source(source, split, config=config or None, columns=needed)

    def to_problem(row: Row) -> Problem:
        found = read(row, columns)
        cells = [] if text_only and all(map(is_missing, found.cells)) else found.cells
        return problem(
            row, task=task, text=found.text, cells=cells, answer=found.answer, reward=reward,
            instruction=instruction, system=found.system,
        )  # fmt: skip

    rules = Rules(max_tokens=max_tokens, check_golds=check_golds, max_bad_share=max_bad_share)
    parts = split_rows(opened, source, train_from, test_from, test_rows, max_rows, seed)
    # The folders above the source are the user's own business.
    card = Card(name=task, source=Path(source).name if Path(source).exists() else source, licence=licence)
    return write_set(out, task, card, parts, to_problem, rules, arguments)
