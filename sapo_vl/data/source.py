"""Opening somebody else's data, for recipes and benchmarks: sets of the hub, folders, files.

Rows come as they are stored. Images are cells, not pictures (`Source.image` reads one), so that one broken picture is
one bad row. Nothing that a row names is fetched, and no code of a data set is run.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from pathlib import Path
from typing import Any

import datasets
from datasets.data_files import DataFilesDict, get_data_patterns
from PIL import Image

from sapo_vl.data.archive import PictureArchive
from sapo_vl.data.folder import DataError, open_rows, split_names
from sapo_vl.data.hub import Layout, attempt
from sapo_vl.data.images import read_image
from sapo_vl.data.problem_set import raw_row
from sapo_vl.data.text_files import CSV_FILES, JSON_FILES, csv_rows, json_rows

LFS_POINTER = b"version https://git-lfs"
TABLES = {".parquet": "parquet", ".arrow": "arrow"}


@dataclass(frozen=True, slots=True)
class Source:
    """The rows of one split."""

    where: str  # for messages: "split 'test' of /data/x"
    length: int
    read: Callable[[int], dict[str, Any]] = field(repr=False)  # the row of an index, as stored
    root: Path | None = None  # the folder that paths of images start at; None for a set of the hub
    archive: PictureArchive | None = field(default=None, repr=False)  # where pictures are that are not under `root`

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
        if self.archive is not None and isinstance(cell, str) and cell in self.archive:
            return self.archive.image(cell)
        return read_image(cell, self.root)


def open_source(
    source: str, split: str, *, config: str | None = None, columns: Sequence[str] = (), layout: Layout | None = None
) -> Source:
    """Opens `split` of `source`.

    Args:
        source: a folder written by `save_to_disk`, a folder of parquet, JSON or CSV files by split, one file (JSON,
            JSON lines, parquet, CSV, TSV; it is the split whatever the name), or the id of a set of the hub.
        config: the configuration of a hub set that has several, or a subfolder of a local one.
        columns: must be there. Checked in the first row where rows have no common schema.
        layout: which files hold the rows, if `source` is its set or a local copy with these files.

    Raises:
        DataError: there is no such source, split or column. The message says what there is.
    """
    path = Path(source)
    if path.is_file():
        return _open_file(path, columns, layout)
    if layout is not None and (layout.repo == source or any((path / name).is_file() for name in layout.files)):
        return _open_layout(source, split, columns, layout)
    if config and (path / config).is_dir():
        path, config = path / config, None
    if (files := _text_files(path)) is not None:
        if split not in files:
            raise DataError(f"{source} has no split {split!r}, only {sorted(files)}")
        return _open_text(f"split {split!r} of {source}", files[split], path, columns)
    loaded = _load(str(path) if path.exists() else source, config)
    if split not in loaded:
        raise DataError(f"{source} has no split {split!r}, only {sorted(map(str, loaded))}")
    where = f"split {split!r} of {source}"
    rows = loaded[split]
    _check(columns, rows.column_names, where)
    raw = rows.with_format("arrow")
    return Source(where, len(rows), lambda index: raw_row(raw, index), path if path.exists() else None)


def _text_files(folder: Path) -> dict[str, list[Path]] | None:
    """split -> JSON and CSV files of a folder that has no other rows, by the rules of `datasets`; None for others."""
    if not folder.is_dir() or (folder / "dataset_dict.json").is_file() or (folder / "README.md").is_file():
        return None  # a card may say which files are which split
    try:
        patterns = get_data_patterns(str(folder.resolve()))
    except (FileNotFoundError, ValueError):  # nothing that looks like data: `datasets` says so in its own words
        return None
    found = DataFilesDict.from_patterns(patterns, base_path=str(folder.resolve()))
    files = {str(split): [Path(name) for name in names] for split, names in found.items()}
    suffixes = {path.suffix for paths in files.values() for path in paths}
    return files if suffixes and suffixes <= {*JSON_FILES, *CSV_FILES} else None


def _load(source: str, config: str | None) -> datasets.DatasetDict:
    folder = Path(source)
    if (folder / "dataset_dict.json").is_file():
        return datasets.DatasetDict({split: open_rows(folder, split) for split in split_names(folder)})
    if not folder.exists() and source.strip("./").count("/") != 1:
        raise DataError(f"source {source!r} is neither a file, nor a folder, nor the id of a hub set (owner/name)")
    return attempt(lambda: datasets.load_dataset(source, config), repr(source), config)


def _open_file(path: Path, columns: Sequence[str], layout: Layout | None = None) -> Source:
    """One file; the archive of pictures of `layout` may lie beside it."""
    _refuse_pointer(path)
    if path.suffix in JSON_FILES or path.suffix in CSV_FILES:
        return _open_text(str(path), [path], path.parent, columns)
    if path.suffix not in TABLES:
        raise DataError(f"{path} must end in one of {', '.join((*JSON_FILES, *CSV_FILES, *TABLES))}")
    kind = TABLES[path.suffix]
    rows = attempt(lambda: datasets.load_dataset(kind, data_files=str(path), split="train"), repr(str(path)))
    _check(columns, rows.column_names, str(path))
    raw = rows.with_format("arrow")
    beside = path.parent / layout.archive if layout is not None and layout.archive else None
    archive = PictureArchive(beside) if beside is not None and beside.is_file() else None
    return Source(str(path), len(rows), lambda index: raw_row(raw, index), path.parent, archive)


def _open_layout(source: str, split: str, columns: Sequence[str], layout: Layout) -> Source:
    """The files of `layout`, from the hub or from the folder `source`. Their rows are the split, whatever its name."""
    folder = Path(source)
    local = folder.is_dir()
    if local and (missing := [name for name in layout.files if not (folder / name).is_file()]):
        raise DataError(f"{source} lacks {', '.join(missing)}, which have rows of split {split!r}")
    paths = [folder / name if local else layout.path(name) for name in layout.files]
    where = f"split {split!r} of {source} ({', '.join(layout.files)})"
    if all(path.suffix in JSON_FILES for path in paths):
        return _open_text(where, paths, folder if local else None, columns)
    (path,) = paths
    opened = _open_file(path, columns, layout)
    if local or not layout.archive:
        return replace(opened, where=where, root=folder if local else None)
    return replace(opened, where=where, root=None, archive=PictureArchive(layout.path(layout.archive)))


def _open_text(where: str, paths: Sequence[Path], root: Path | None, columns: Sequence[str]) -> Source:
    """The rows of JSON and CSV files, one file after another."""
    for path in paths:
        _refuse_pointer(path)
    files = [json_rows(path) if path.suffix in JSON_FILES else csv_rows(path) for path in paths]
    starts = list(accumulate((length for length, _ in files), initial=0))

    def read(index: int) -> dict[str, Any]:
        file = bisect_right(starts, index) - 1
        return files[file][1](index - starts[file])

    source = Source(where, starts[-1], read, root)
    first = next((row for _, row in source.rows() if isinstance(row, dict)), None)
    if first is None:
        raise DataError(f"{where} has no rows; it needs a list of JSON objects, one object a line, or a table")
    _check(columns, list(first), where)
    return source


def _refuse_pointer(path: Path) -> None:
    """Raises DataError for what a clone without its large files has in their place."""
    with path.open("rb") as file:
        if file.read(len(LFS_POINTER)) == LFS_POINTER:
            raise DataError(f"{path} is a pointer of Git LFS, not the file: `git lfs pull` in its folder fetches it")


def _check(columns: Sequence[str], there: Sequence[str], where: str) -> None:
    missing = [name for name in columns if name not in there]
    if missing:
        raise DataError(f"{where} lacks the columns {missing}; it has {list(there)}")
