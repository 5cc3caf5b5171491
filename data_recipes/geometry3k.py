r"""geometry3k: questions about geometry figures (hiyouga/geometry3k on the Hugging Face hub, MIT).

Its rows have `images`, `problem` with one "<image>" marker per image, and `answer` (a number or LaTeX). An
answer that is a plain number is judged by the reward "number", any other by "word", which wants the same
text: an equal expression written in another way scores 0. The argument numbers_only leaves such rows out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from rewards.number import parse_number
from sapo_vl.data import BadRow, BadRows
from sapo_vl.dataset_writer import write_splits
from sapo_vl.images import read_image
from sapo_vl.source import Source, open_source
from sapo_vl.types import Problem

HUB_ID = "hiyouga/geometry3k"
COLUMNS = ("images", "problem", "answer")
MARKER = "<image>"
ReadImage = Callable[[Any], Image.Image]
INSTRUCTION = (
    "Think step by step between <think> and </think>, then give only the final answer between <answer> and "
    "</answer>, as a plain number where possible."
)


def build(
    out: Path,
    *,
    seed: int = 0,
    source: str = HUB_ID,
    test_from: str = "test",
    numbers_only: bool = False,
    max_bad_share: float = 0.01,
) -> dict[str, Any]:
    """Writes the data set folder `out` with the splits train and test, and returns its manifest.

    seed: for the signature all recipes share; nothing here is random.
    source: a hub id, or a local folder: one written by save_to_disk, or one with parquet files per split.
    test_from: the split of the source that becomes our test split: "test" or "validation".
    numbers_only: leave out the rows whose answer is not a plain number.
    max_bad_share: a row with a missing or broken image, or with markers that do not match its images, is left
        out and named in the manifest; more than this share of them in a split raises TooManyBadRows.

    Raises DataError if the source has not the splits and columns of Geometry3K.
    """
    notes: dict[str, Any] = {}
    splits: dict[str, Iterator[Problem]] = {}
    for split, source_split in {"train": "train", "test": test_from}.items():
        rows = open_source(source, source_split, columns=COLUMNS)
        notes[split] = {"from": source_split}
        bad_rows = BadRows(max_bad_share, total=len(rows))
        splits[split] = _problems(rows, source_split, numbers_only, bad_rows, notes[split])
    arguments = {
        "seed": seed,
        "source": source,
        "test_from": test_from,
        "numbers_only": numbers_only,
        "max_bad_share": max_bad_share,
    }
    return write_splits(splits, Path(out), recipe="geometry3k", arguments=arguments, notes=notes)


def _problems(
    rows: Source, split: str, numbers_only: bool, bad_rows: BadRows, notes: dict[str, Any]
) -> Iterator[Problem]:
    """The problems of the good rows; at the end `notes` says what was left out. Raises TooManyBadRows."""
    not_numbers = 0
    for index in range(len(rows)):
        id = f"geometry3k-{split}-{index}"
        try:
            problem = problem_from_source(rows.row(index), id, rows.image)
        except ValueError as error:
            bad_rows.record(BadRow(index, id, str(error)))
            continue
        bad_rows.record(None)
        if numbers_only and problem.reward != "number":
            not_numbers += 1
            continue
        yield problem
    notes |= {"bad_rows": bad_rows.bad, "first_bad_rows": bad_rows.first, "not_numbers_left_out": not_numbers}


def problem_from_source(row: Mapping[str, Any], id: str, image: ReadImage = read_image) -> Problem:
    """One row of Geometry3K as a problem. Raises ValueError with the reason if it is bad."""
    for name in ("problem", "answer"):
        if not (row[name] or "").strip():
            raise ValueError(f"{name} is empty")
    cells = row["images"] or []
    texts = row["problem"].split(MARKER)
    if len(texts) - 1 != len(cells):
        raise ValueError(f"the problem has {len(texts) - 1} {MARKER} markers and the row has {len(cells)} images")
    images = []
    for number, cell in enumerate(cells):
        try:
            images.append(image(cell))
        except ValueError as error:
            raise ValueError(f"image {number}: {error}") from error
    answer = row["answer"].strip()
    return Problem(
        id=id,
        task="geometry3k",
        messages=({"role": "user", "content": _content(texts)},),
        images=tuple(images),
        answer=answer,
        reward="word" if parse_number(answer) is None else "number",
    )


def _content(texts: list[str]) -> list[dict[str, str]]:
    """Text parts with an image part at every border between them, then the instruction."""
    parts: list[dict[str, str]] = []
    for number, text in enumerate(texts):
        if number:
            parts.append({"type": "image"})
        if text.strip():
            parts.append({"type": "text", "text": text.strip()})
    return [*parts, {"type": "text", "text": "\n" + INSTRUCTION}]
