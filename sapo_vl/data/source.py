"""Opening somebody else's data, for recipes and benchmarks: sets of the hub, folders, files.

Rows come as they are stored. Images are cells, not pictures (`Source.image` reads one), so that one broken picture is
one bad row. Nothing that a row names is fetched, and no code of a data set is run.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
from PIL import Image

from sapo_vl.data.images import read_image
from sapo_vl.data.problem_set import DataError, raw_row

JSON_FILES = (".json", ".jsonl")  # a list of objects, or one object a line
TABLES = {".parquet": "parquet", ".csv": "csv", ".tsv": "csv", ".arrow": "arrow"}


@dataclass(frozen=True, slots=True)
class Source:
    """The rows of one split."""

    where: str  # for messages: "split 'test' of /data/x"
    length: int
    read: Callable[[int], dict[str, Any]] = field(repr=False)  # the row of an index, as stored
    root: Path | None = None  # the folder that paths of images start at; None for a set of the hub

    def __len__(self) -> int:
        return self.length

    def row(self, index: int) -> dict[str, Any]:
        """Row `index` as stored. Raises ValueError with the reason if it is no row."""
        return self.read(index)

    def rows(self) -> Iterator[tuple[int, dict[str, Any] | ValueError]]:
        """(index, row) of all rows in order; in place of a row that cannot be read, why."""
        for index in range(self.length):
            try:
                yield index, self.row(index)
            except ValueError as error:
                yield index, error

    def image(self, cell: Any) -> Image.Image:
        """The picture of an image cell, in RGB. Raises sapo_vl.data.images.ImageRefused."""
        return read_image(cell, self.root)


def open_source(source: str, split: str, *, config: str | None = None, columns: Sequence[str] = ()) -> Source:
    """Opens `split` of `source`.

    Args:
        source: a folder written by `save_to_disk`, a folder of parquet or JSON files by split, one file (JSON, JSON
            lines, parquet, CSV, TSV; it is the split whatever the name), or the id of a set of the hub.
        config: the configuration of a hub set that has several, or a subfolder of a local one.
        columns: must be there. Checked in the first row where rows have no common schema.

    Raises:
        DataError: there is no such source, split or column. The message says what there is.
    """
    path = Path(source)
    if path.is_file():
        return _open_file(path, columns)
    if config and (path / config).is_dir():
        path, config = path / config, None
    loaded = _load(str(path) if path.exists() else source, config)
    if split not in loaded:
        raise DataError(f"{source} has no split {split!r}, only {sorted(map(str, loaded))}")
    where = f"split {split!r} of {source}"
    rows = loaded[split]
    _check(columns, rows.column_names, where)
    raw = rows.with_format("arrow")
    return Source(where, len(rows), lambda index: raw_row(raw, index), path if path.exists() else None)


def _load(source: str, config: str | None) -> datasets.DatasetDict:
    folder = Path(source)
    if (folder / "dataset_dict.json").is_file():
        return datasets.DatasetDict.load_from_disk(source)
    if not folder.exists() and source.strip("./").count("/") != 1:
        raise DataError(f"source {source!r} is neither a file, nor a folder, nor the id of a hub set (owner/name)")
    try:
        return datasets.load_dataset(source, config)
    except (FileNotFoundError, ValueError, ConnectionError) as error:
        raise DataError(f"source {source!r} cannot be opened: {error}") from error


def _open_file(path: Path, columns: Sequence[str]) -> Source:
    if path.suffix in JSON_FILES:
        return _open_json(path, columns)
    if path.suffix not in TABLES:
        raise DataError(f"{path} must end in one of {', '.join((*JSON_FILES, *TABLES))}")
    options: dict[str, Any] = {"delimiter": "\t"} if path.suffix == ".tsv" else {}
    rows = datasets.load_dataset(TABLES[path.suffix], data_files=str(path), split="train", **options)
    _check(columns, rows.column_names, str(path))
    raw = rows.with_format("arrow")
    return Source(str(path), len(rows), lambda index: raw_row(raw, index), path.parent)


def _open_json(path: Path, columns: Sequence[str]) -> Source:
    """Without arrow, which wants one type per column: an image that is a text here and a list there is common."""
    text = path.read_text(encoding="utf-8")
    cells: list[Any]
    if text.lstrip().startswith("["):
        try:
            cells = json.loads(text)
        except (json.JSONDecodeError, RecursionError) as error:
            raise DataError(f"{path} is no JSON list ({error}); write one object a line, and name it .jsonl") from error
    else:
        cells = [line for line in text.split("\n") if line.strip()]

    def read(index: int) -> dict[str, Any]:
        try:
            row = json.loads(cells[index]) if isinstance(cells[index], str) else cells[index]
        except (json.JSONDecodeError, RecursionError) as error:
            raise ValueError(f"not JSON ({error})") from error
        if not isinstance(row, dict):
            raise ValueError(f"not a JSON object but a {type(row).__name__}")
        return row

    source = Source(str(path), len(cells), read, path.parent)
    first = next((row for _, row in source.rows() if isinstance(row, dict)), None)
    if first is None:
        raise DataError(f"{path} has no rows; it needs a list of JSON objects, or one object a line")
    _check(columns, list(first), str(path))
    return source


def _check(columns: Sequence[str], there: Sequence[str], where: str) -> None:
    missing = [name for name in columns if name not in there]
    if missing:
        raise DataError(f"{where} lacks the columns {missing}; it has {list(there)}")
