"""The files of a data set folder: what `datasets` and our own writer left there, checked before a row is used.

`datasets` maps shards into memory as they are, and arrow takes their offsets on trust: a damaged one gives parts of
other rows, an error of any class, or ends the process. So every file is looked at first. What arrow cannot know, that a
value is another one than was written, is told by the digests in manifest.json of a folder that `write_splits` wrote.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa

from sapo_vl.strict import Unreadable, read_json

BUILD_ONE = "`sapo-vl recipe NAME --out DIR` builds one"
MANIFEST = "manifest.json"
END_OF_STREAM = b"\xff\xff\xff\xff\0\0\0\0"  # how arrow ends a stream; one that was cut between two batches lacks it
# What `datasets` and arrow raise for files that are not what was written.
_FAULTS = (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError, pa.ArrowException)


class DataError(ValueError):
    """A data set folder that cannot be used as it is. The message says what, where, and what to do."""


def split_names(path: str | Path) -> list[str]:
    """The splits of a data set folder. Raises DataError if it is none."""
    if not str(path):
        raise DataError(f"data.path is empty; give the folder of a data set, {BUILD_ONE}")
    path = Path(path)
    if not path.is_dir():
        raise DataError(f"data.path {path} is not a folder; give the folder of a data set, {BUILD_ONE}")
    listing = path / "dataset_dict.json"
    if not listing.is_file():
        raise DataError(f"{path} has no dataset_dict.json, so it is no saved data set with splits; {BUILD_ONE}")
    found = _json(listing)
    splits = found.get("splits") if isinstance(found, dict) else None
    if not isinstance(splits, list) or not all(map(_is_name, splits)):
        raise DataError(f"{listing} is not what `datasets` writes (it has no list of splits); {BUILD_ONE}")
    return splits


def open_rows(path: str | Path, split: str) -> datasets.Dataset:
    """A split of a data set folder, mapped into memory. Raises DataError naming the file that is not as was written."""
    splits, path = split_names(path), Path(path)
    if split not in splits:
        raise DataError(f"{path} has no split {split!r}, only {splits}; name one of these in the data section")
    folder = path / split
    if not any(folder.glob("*.arrow")):  # `datasets` fails on this with an index error
        raise DataError(f"split {split!r} of {path} has no rows; {BUILD_ONE}")
    shards = [_shard(folder, entry) for entry in _entries(folder / "state.json")]
    try:
        rows = datasets.Dataset.load_from_disk(str(folder))
    except _FAULTS as error:
        raise DataError(
            f"{folder} cannot be opened ({type(error).__name__}: {_one_line(error)}): state.json, dataset_info.json or "
            f"{', '.join(p.name for p in shards[:3])} is damaged or of another set; get the folder again"
        ) from error
    wanted = _of_split(path, "rows", split)
    if isinstance(wanted, Mapping) and (total := sum(wanted.values())) != len(rows):
        raise DataError(
            f"split {split!r} of {path} has {len(rows)} rows, {MANIFEST} says that {total} were written; get it again"
        )
    return rows


def written_digest(path: Path, split: str) -> str:
    """What the digest of the rows was when they were written; "" if nothing says so. Raises DataError."""
    found = _of_split(path, "digests", split)
    return found if isinstance(found, str) else ""


def _of_split(path: Path, key: str, split: str) -> Any:
    """An entry of manifest.json; None in a folder without one, or with one that is not ours."""
    manifest = _json(path / MANIFEST) if (path / MANIFEST).is_file() else None
    part = manifest.get(key) if isinstance(manifest, dict) and "recipe" in manifest else None
    return part.get(split) if isinstance(part, dict) else None


def _entries(state: Path) -> list[str]:
    """The names of the shards. They lie beside the file that names them."""
    found = _json(state)
    entries = found.get("_data_files") if isinstance(found, dict) else None
    names: list[Any] = []
    if isinstance(entries, list):
        names = [entry.get("filename") if isinstance(entry, dict) else None for entry in entries]
    if not names or not all(map(_is_name, names)):
        raise DataError(
            f"{state} is not what `datasets` writes (names of arrow files beside it: {str(names)[:80]}); get the "
            "folder again"
        )
    return names


def _shard(folder: Path, name: str) -> Path:
    """A shard that has been checked: whole, and with offsets that stay inside of it."""
    path = folder / name
    try:
        with path.open("rb") as file:
            file.seek(-min(len(END_OF_STREAM), path.stat().st_size), 2)
            if file.read() != END_OF_STREAM:
                raise ValueError("it is cut off, or no arrow stream")
        with pa.memory_map(str(path)) as source, pa.ipc.open_stream(source) as stream:
            stream.read_all().validate(full=True)
    except _FAULTS as error:
        raise DataError(f"{path} cannot be read ({_one_line(error)}); get it again") from error
    return path


def _json(path: Path) -> Any:
    try:
        return read_json(path)
    except Unreadable as error:
        raise DataError(f"{error}; get it again, or {BUILD_ONE}") from error


def _is_name(text: Any) -> bool:
    return isinstance(text, str) and text not in ("", ".", "..") and Path(text).name == text


def _one_line(error: BaseException) -> str:
    return " ".join(str(error).split())[:300]
