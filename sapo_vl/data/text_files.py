"""JSON, JSON lines, CSV and TSV files as rows, cell by cell as they were written.

Not through arrow or pandas: these want one type a column, take the words None, NA and null for nothing, and write 007
as 7. A byte order mark says the encoding and is no part of the first row.
"""

from __future__ import annotations

import codecs
import csv
import io
import json
from array import array
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from sapo_vl.data.problem_set import DataError

JSON_FILES = (".json", ".jsonl")  # a list of objects, or one object a line
CSV_FILES = {".csv": ",", ".tsv": "\t"}
MAX_CELL = 200_000_000  # characters; a picture in base64 may stand in a cell
_MARKS = (  # the longer ones first: UTF-32's begins like UTF-16's
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)
MARK = "\ufeff"  # a byte order mark in the middle: files that were joined

Rows = tuple[int, Callable[[int], dict[str, Any]]]
"""How many rows there are, and the row of an index, which raises ValueError with the reason if it is none."""


def read_text(path: Path) -> str:
    """The text of a file in UTF-8, or in the encoding that its byte order mark names. Raises DataError."""
    data = path.read_bytes()
    encoding = next((name for mark, name in _MARKS if data.startswith(mark)), None)
    if encoding is None:
        # JSON says its encoding by its first characters, which are ASCII.
        encoding = json.detect_encoding(data[:4]) if path.suffix in JSON_FILES else "utf-8"
    try:
        return data.decode(encoding)
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is not {encoding} text ({error}); save it as UTF-8") from error


def json_rows(path: Path) -> Rows:
    """A list of objects, or one object a line. Raises DataError.

    Of lines in UTF-8 only their places are kept: files of gigabytes are read line by line, twice.
    """
    if (places := _line_places(path)) is not None:
        return len(places), lambda index: _row(_line_at(path, places[index]))
    text = read_text(path).lstrip(MARK)
    cells: list[Any]
    if text.lstrip().startswith("["):
        try:
            cells = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise DataError(f"{path} is no JSON list ({error}); write one object a line, and name it .jsonl") from error
    else:
        cells = [line for line in text.split("\n") if line.strip()]
    return len(cells), lambda index: _row(cells[index])


def _row(cell: Any) -> dict[str, Any]:
    """The object of a line, or of an item of a list. Raises ValueError."""
    try:
        row = json.loads(cell.lstrip(MARK)) if isinstance(cell, str) else cell
    except (ValueError, RecursionError) as error:
        raise ValueError(f"not JSON ({error})") from error
    if not isinstance(row, dict):
        raise ValueError(f"not a JSON object but a {type(row).__name__}")
    return row


def _line_places(path: Path) -> Sequence[int] | None:
    """Where the lines of a file begin that is in UTF-8 and no list; None for other files. Raises DataError."""
    places, at, text = array("q"), 0, ""
    with path.open("rb") as file:
        start = file.read(4)
        if json.detect_encoding(start) not in ("utf-8", "utf-8-sig"):
            return None
        file.seek(0)
        for number, line in enumerate(file, start=1):
            try:
                text = line.decode()
            except UnicodeDecodeError as error:
                raise DataError(f"{path} is not utf-8 text (line {number}: {error}); save it as UTF-8") from error
            written = text.strip() if number > 1 else text.lstrip(MARK).strip()
            if not places and written.startswith("["):
                return None
            if written:
                places.append(at)
            at += len(line)
    return places


def _line_at(path: Path, place: int) -> str:
    with path.open("rb") as file:
        file.seek(place)
        return file.readline().decode(errors="replace")


def csv_rows(path: Path) -> Rows:
    """A line of column names, then a row a line: every cell is the text that was written, an empty one is None.

    A column without a name (an index, say), or with one that was there before, is "column 1" and so on.
    Raises DataError for a file that is no table.
    """
    csv.field_size_limit(max(csv.field_size_limit(), MAX_CELL))
    reader = csv.reader(io.StringIO(read_text(path).lstrip(MARK), newline=""), delimiter=CSV_FILES[path.suffix])
    try:
        lines = [line for line in reader if line]
    except csv.Error as error:
        raise DataError(f"{path}:{reader.line_num} is no line of a table ({error})") from error
    if not lines:
        raise DataError(f"{path} is empty; its first line must be the names of the columns")
    names: list[str] = []
    for number, name in enumerate(lines[0], start=1):
        names.append(f"column {number}" if not name.strip() or name.strip() in names else name.strip())

    def read(index: int) -> dict[str, Any]:
        cells = lines[index + 1]
        if len(cells) != len(names):
            raise ValueError(f"{len(cells)} cells, the columns are {len(names)}")
        return {name: cell if cell.strip() else None for name, cell in zip(names, cells, strict=True)}

    return len(lines) - 1, read
