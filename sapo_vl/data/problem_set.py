"""The data set folder: its one schema, rows to problems and back, reading with bad rows named and counted."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import datasets
import numpy as np
import pyarrow as pa
from PIL import Image
from pydantic import Field, field_validator

from sapo_vl.data.digest import table_digest
from sapo_vl.data.folder import MANIFEST, DataError, open_rows, written_digest
from sapo_vl.data.images import MAX_ROW_PIXELS, ImageRefused, Pictures, blank_like, decode_image, encode_png
from sapo_vl.strict import Strict
from sapo_vl.types import Problem

FEATURES = datasets.Features(
    {
        "id": datasets.Value("string"),
        "task": datasets.Value("string"),
        "images": datasets.List(datasets.Image()),  # in the order of the image parts of the messages
        "messages": datasets.Value("string"),  # JSON: arrow would force one struct type on all content parts
        "answer": datasets.Value("string"),
        "solution": datasets.Value("string"),
        "reward": datasets.Value("string"),
        "meta": datasets.Value("string"),  # JSON object
    }
)
ROLES = ("system", "user", "assistant", "tool")
FIRST_BAD_ROWS_SHOWN = 5
MIN_BAD_ROWS = 3


class DataConfig(Strict):
    """Which rows a run reads and how a batch is shared between the tasks."""

    path: str = ""  # data set folder in this package's schema (a recipe writes one); "" = none given
    train_split: str = "train"  # split the reinforcement learning draws from
    eval_split: str = "test"  # split that is measured and never trained on
    quotas: dict[str, float] = Field(default_factory=dict)  # ratio per task; {} = equal shares
    max_bad_share: float = Field(default=0.01, ge=0, lt=1)  # more unreadable rows than this stop the run

    @field_validator("quotas")
    @classmethod
    def _check_quotas(cls, quotas: dict[str, float]) -> dict[str, float]:
        for task, quota in quotas.items():
            if not math.isfinite(quota) or quota < 0:
                raise ValueError(f"data.quotas.{task} is {quota}; give a number >= 0 (0 leaves the task out)")
        return quotas


class BadRow(Exception):
    """One row that cannot become a problem or a prompt; `kind` is the reason in fixed words, as it is counted."""

    def __init__(self, row: int, id: str, reason: str, kind: str = "malformed row") -> None:
        super().__init__(f"row {row} (id {id!r}): {reason}")
        self.row, self.id, self.reason, self.kind = row, id, reason, kind


class TooManyBadRows(Exception):
    """The share of bad rows went over the limit."""


# --- rows -----------------------------------------------------------------------------------------


def row_from_problem(problem: Problem) -> dict[str, Any]:
    """The row of `problem` under FEATURES; its images become PNG bytes."""
    return {
        "id": problem.id,
        "task": problem.task,
        "images": [{"bytes": encode_png(image), "path": None} for image in problem.images],
        "messages": json.dumps(list(problem.messages), ensure_ascii=False),
        "answer": problem.answer,
        "solution": problem.solution,
        "reward": problem.reward,
        "meta": json.dumps(dict(problem.meta), ensure_ascii=False, allow_nan=False),
    }


def problem_from_row(row: Mapping[str, Any]) -> Problem:
    """The problem in `row`, whose image cells are {"bytes", "path"} (`datasets.Image(decode=False)`).

    Raises ValueError with the reason if a cell is missing or malformed, or images and messages disagree.
    """
    for name in FEATURES:
        if row.get(name) is None:
            raise ValueError(f"{name} is missing")
        if not isinstance(row[name], list if name == "images" else str):
            raise ValueError(f"{name} is a {type(row[name]).__name__}")
    for name in ("id", "task"):
        if not row[name]:
            raise ValueError(f"{name} is empty")
    messages = _messages_from_json(row["messages"])
    wanted = sum(part["type"] == "image" for turn in messages for part in _parts(turn))
    if wanted != len(row["images"]):
        raise ValueError(f"messages has {wanted} image parts and the row {len(row['images'])} images")
    meta = _json("meta", row["meta"])
    if not isinstance(meta, dict):
        raise ValueError(f"meta is a JSON {type(meta).__name__}, not an object")
    return Problem(
        id=row["id"],
        task=row["task"],
        messages=messages,
        images=Pictures.of(_pictures(row["images"])),
        answer=row["answer"],
        solution=row["solution"],
        reward=row["reward"],
        meta=meta,
    )


BLANK_SUFFIX = "#blank"  # of the id of an item's twin


def blank_twin(problem: Problem) -> Problem:
    """The same item with uniform images of the same size: what can be had without looking."""
    blanks = (blank_like(image) for image in problem.images)
    images = Pictures.of((blank, functools.partial(encode_png, blank)) for blank in blanks)
    return dataclasses.replace(problem, id=problem.id + BLANK_SUFFIX, images=images)


def _pictures(cells: Sequence[Any]) -> Iterator[tuple[Image.Image, Callable[[], bytes]]]:
    """The pictures of a row, one decoded at a time: a small file can hold a large one, and a row many of them."""
    pixels = 0
    for index, cell in enumerate(cells):
        image = _image_from_cell(index, cell)
        pixels += image.width * image.height
        if pixels > MAX_ROW_PIXELS:
            message = f"image {index}: with it the row has {pixels} pixels, over the limit of {MAX_ROW_PIXELS}"
            raise ImageRefused("too many pixels", message)
        yield image, functools.partial(cell.get, "bytes")


def _image_from_cell(index: int, cell: Any) -> Any:
    if cell is None:
        raise ImageRefused("missing", f"image {index} is missing")
    if not isinstance(cell, Mapping):
        raise ImageRefused("wrong type", f"image {index} is a {type(cell).__name__}")
    data = cell.get("bytes")
    if not data:
        path = cell.get("path")
        message = f"image {index} has no bytes (path {path!r}); save the set with its images inside"
        raise ImageRefused("missing", message)
    if not isinstance(data, bytes):
        raise ImageRefused("wrong type", f"image {index} is a {type(data).__name__}, not bytes")
    try:
        return decode_image(data)
    except ImageRefused as error:
        raise ImageRefused(error.kind, f"image {index}: {error}") from error


def _json(name: str, text: str) -> Any:
    try:
        return json.loads(text, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{name} is not JSON ({error}): {text[:80]!r}") from error


def _no_number(text: str) -> float:
    raise ValueError(f"{text} is no JSON")


def _parts(turn: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    content = turn["content"]
    return [{"type": "text", "text": content}] if isinstance(content, str) else content


def _messages_from_json(text: str) -> tuple[Mapping[str, Any], ...]:
    turns = _json("messages", text)
    if not isinstance(turns, list) or not turns:
        raise ValueError("messages is not a non-empty JSON list of chat turns")
    for index, turn in enumerate(turns):
        if isinstance(turn, dict) and _calls_tools(index, turn) and turn.get("content") is None:
            turn["content"] = ""  # as it is usual beside tool_calls
        if not isinstance(turn, dict) or turn.get("role") not in ROLES or "content" not in turn:
            raise ValueError(f"turn {index} needs a role out of {ROLES} and a content: {str(turn)[:80]}")
        if not isinstance(turn["content"], str | list):
            raise ValueError(f"the content of turn {index} is neither text nor a list of parts")
        for part in _parts(turn):
            kind = part.get("type") if isinstance(part, dict) else None
            if kind != "image" and not (kind == "text" and isinstance(part.get("text"), str)):
                raise ValueError(f"turn {index} has a part that is neither text nor image: {str(part)[:80]}")
    if turns[-1]["role"] == "assistant":
        raise ValueError("the last turn is the assistant's: there is nothing left to answer")
    return tuple(turns)


def _calls_tools(index: int, turn: Mapping[str, Any]) -> bool:
    """Whether turn `index` has tool_calls. Raises ValueError if they are not in OpenAI's form, which templates read:
    they would write an empty name for another one, and say nothing."""
    calls = turn.get("tool_calls") or []
    for call in calls if isinstance(calls, list) else [calls]:
        called = call.get("function", call) if isinstance(call, dict) else {}
        said = (called.get("name"), called.get("arguments")) if isinstance(called, dict) else (None, None)
        if not isinstance(said[0], str) or not isinstance(said[1], str | dict):
            raise ValueError(
                f"tool_calls of turn {index} must be a list of "
                f'{{"function": {{"name": ..., "arguments": ...}}}}: {str(call)[:80]}'
            )
    return bool(calls)


# --- reading --------------------------------------------------------------------------------------


class ProblemSet:
    """A split of a data set folder: the rows stay on disk (memory-mapped) until `get` decodes one.

    tasks: the task of every row, in row order. rewards: the different (task, reward) pairs of the rows.
    """

    def __init__(self, path: str | Path, split: str) -> None:
        """Opens `split` of folder `path`. Raises DataError if folder, split or columns are not as needed."""
        self.path, self.split = Path(path), split
        rows = open_rows(path, split)
        _check_columns(rows, self._where)
        self._rows = rows.with_format("arrow")
        self.tasks: list[str] = _names(rows.data.column("task"))
        nameless = [row for row, task in enumerate(self.tasks) if not task]
        if nameless:
            raise DataError(
                f"{self._where}: {len(nameless)} rows have no task (first: row {nameless[0]}); "
                "give every row one, quotas and results are counted by it"
            )
        named = set(zip(self.tasks, _names(rows.data.column("reward")), strict=True))
        self.rewards: list[tuple[str, str]] = sorted(named)

    @property
    def _where(self) -> str:
        return f"split {self.split!r} of {self.path}"

    def __len__(self) -> int:
        return len(self.tasks)

    def digest(self) -> str:
        """32 hex digits of the rows and their order: two splits with the same ones hold the same problems.

        Raises DataError if they are not those that the manifest of the folder says were written.
        """
        found, written = table_digest(self._rows.data, tuple(FEATURES)), written_digest(self.path, self.split)
        if written and found != written:
            raise DataError(
                f"{self._where} has other rows than were written ({MANIFEST} has their digest): a file is damaged or "
                f'of another set; get it again, or take "digests" out of {MANIFEST} if you changed the rows'
            )
        return found

    def get(self, index: int) -> Problem:
        """Row `index`, decoded. Raises BadRow if it cannot be, IndexError if there is no such row."""
        if not 0 <= index < len(self):
            raise IndexError(f"row {index} of {self._where}, which has {len(self)} rows")
        row = raw_row(self._rows, index)
        try:
            return problem_from_row(row)
        except ValueError as error:
            kind = f"image {error.kind}" if isinstance(error, ImageRefused) else "malformed row"
            raise BadRow(index, str(row.get("id") or ""), str(error), kind) from error


def _names(column: pa.ChunkedArray) -> list[str]:
    """The words of a column that has few different ones, each word once in memory; "" where there is none."""
    names: list[str] = []
    for chunk in column.chunks:
        encoded = chunk.dictionary_encode()
        words = [*(word or "" for word in encoded.dictionary.to_pylist()), ""]
        places = encoded.indices.fill_null(len(words) - 1).to_numpy(zero_copy_only=False)
        names += map(words.__getitem__, places.tolist())
    return names


def raw_row(rows: datasets.Dataset, index: int) -> dict[str, Any]:
    """Row `index` of a data set in format "arrow" as stored: images are {"bytes", "path"}, not decoded.

    A number of 16 or 32 bits is the shortest decimal that is stored as it: 0.1 and not 0.10000000149011612, which
    would become a gold that nobody gives.
    """
    table = cast(pa.Table, rows[index : index + 1])
    row = table.to_pylist()[0]
    for column in table.schema:
        if shorten := _shortener(column.type):
            row[column.name] = shorten(row[column.name])
    return row


@functools.cache
def _shortener(kind: pa.DataType) -> Callable[[Any], Any] | None:
    """What makes the numbers in a value of type `kind` short; None if none in it has less than 64 bits."""
    if pa.types.is_float16(kind) or pa.types.is_float32(kind):
        width = np.float16 if pa.types.is_float16(kind) else np.float32
        return lambda value: None if value is None else float(str(width(value)))
    if pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind):
        item = _shortener(kind.value_type)
        return item and (lambda values: values and [item(value) for value in values])
    if pa.types.is_struct(kind):
        fields = {field.name: shorten for field in kind if (shorten := _shortener(field.type))}
        if fields:
            return lambda value: value and value | {name: shorten(value[name]) for name, shorten in fields.items()}
    return None


def _check_columns(rows: datasets.Dataset, where: str) -> None:
    missing = [name for name in FEATURES if name not in rows.column_names]
    if missing:
        raise DataError(
            f"{where} lacks the columns {missing} (it has {rows.column_names}); "
            f"a recipe brings rows into the columns {list(FEATURES)}"
        )
    for name in FEATURES:
        kind = rows.data.schema.field(name).type
        wanted, good = ("a list of images", _is_images) if name == "images" else ("text", _is_text)
        if not good(kind):
            raise DataError(
                f"{where}: column {name!r} is {kind}, it must be {wanted}; "
                "images is a list of datasets.Image, messages and meta are JSON text, the rest is text"
            )


def _is_text(kind: pa.DataType) -> bool:
    return pa.types.is_string(kind) or pa.types.is_large_string(kind)


def _is_images(kind: pa.DataType) -> bool:
    if not (pa.types.is_list(kind) or pa.types.is_large_list(kind)):
        return False
    cell = kind.value_type
    return pa.types.is_struct(cell) and cell.get_field_index("bytes") >= 0


class BadRows:
    """Counts the rows that were met and those that were bad, and stops a run that would go on with the rest.

    The rule where rows are drawn without end (training, after each batch): stop at MIN_BAD_ROWS (3) or more bad
    ones with bad > max_share * seen. The minimum keeps one unlucky row early in a run from ending it; with
    max_share 0 the first bad row does. A row counts each time it is met.

    The rule for one pass over `total` rows (a build): stop as soon as bad > max_share * total.
    """

    def __init__(self, max_share: float, total: int | None = None) -> None:
        self.max_share = max_share
        self.total = total
        self.seen = 0
        self.bad = 0
        self.first: list[str] = []  # the first few, in words

    def record(self, bad: BadRow | None) -> None:
        """Counts one row: `bad` says what was wrong with it, None that it was fine. Raises TooManyBadRows."""
        self.add(1, [] if bad is None else [str(bad)])
        if bad is not None:
            self.check()

    def add(self, seen: int, bad: Sequence[str]) -> None:
        """Counts `seen` rows at once; `bad` says in words what was wrong with the bad ones among them."""
        self.seen += seen
        self.bad += len(bad)
        self.first += bad[: FIRST_BAD_ROWS_SHOWN - len(self.first)]

    def too_many(self, seen: int = 0, bad: int = 0) -> bool:
        """Whether the rule says stop, with so many more rows met and bad ones among them."""
        seen, bad = self.seen + seen, self.bad + bad
        enough = self.total is not None or self.max_share == 0 or bad >= MIN_BAD_ROWS
        return enough and bad > self.max_share * (self.total or seen)

    def check(self) -> None:
        """Raises TooManyBadRows if the rule says stop."""
        if self.too_many():
            raise TooManyBadRows(self._message())

    def _message(self) -> str:
        listed = "\n  ".join(self.first)
        return (
            f"{self.bad} of {self.total or self.seen} rows are bad, over max_bad_share={self.max_share}; "
            f"repair the data or raise the limit. The first ones:\n  {listed}"
        )

    def state_dict(self) -> dict[str, Any]:
        """JSON-serialisable."""
        return {"seen": self.seen, "bad": self.bad, "first": list(self.first)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes up the counts of a run that is resumed."""
        self.seen, self.bad, self.first = int(state["seen"]), int(state["bad"]), list(state["first"])
