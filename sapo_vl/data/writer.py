"""Writing a data set folder: all splits and their manifest appear at once or not at all."""

from __future__ import annotations

import collections
import contextlib
import json
import os
import platform
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import PIL
import pyarrow as pa
import yaml

from sapo_vl import __version__
from sapo_vl.data.folder import MANIFEST, split_names
from sapo_vl.data.problem_set import FEATURES, BadRow, ProblemSet, row_from_problem
from sapo_vl.strict import read_mapping
from sapo_vl.types import Problem

ROWS_PER_BATCH = 1000
BYTES_PER_BATCH = 64_000_000  # of images as they are stored; rows of large photographs fill a batch sooner
UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """Where the rows of a data set come from, and on what terms."""

    name: str
    source: str  # id on the hub, or how the rows are made
    licence: str = UNKNOWN  # as the source states it; UNKNOWN where it states none
    url: str = ""
    paper: str = ""
    notes: str = ""  # what a user must know of it

    def _front_matter(self) -> list[str]:
        """What the hub reads of a card."""
        known = {"MIT": "mit", "Apache-2.0": "apache-2.0", "CC BY 4.0": "cc-by-4.0", "CC0": "cc0-1.0"}
        known[UNKNOWN] = "unknown"
        licence = known.get(self.licence.partition(" (")[0], "other")
        front = {"pretty_name": self.name, "license": licence, "task_categories": ["visual-question-answering"]}
        front |= {"tags": ["reinforcement-learning", "sapo_vl"]}
        return ["---", yaml.safe_dump(front, sort_keys=False, allow_unicode=True).strip(), "---", ""]

    def text(self, manifest: Mapping[str, Any]) -> str:
        """The card as a README, with the rows and the filters of `manifest`."""
        terms = f"licence {self.licence}"
        if self.licence == UNKNOWN:
            terms = "licence unknown: the source states none; ask its authors before you pass the data on"
        lines = [*self._front_matter(), f"# {self.name}", "", f"Source: {self.source}, {terms}."]
        lines += [line for line in (self.url, self.paper) if line]
        lines += ["", self.notes] if self.notes else []
        lines += ["", "| split | task | rows |", "|---|---|---|"]
        lines += [
            f"| {split} | {task} | {n} |" for split, tasks in manifest["rows"].items() for task, n in tasks.items()
        ]
        arguments = ", ".join(f"{key}={value}" for key, value in manifest["arguments"].items())
        lines += [
            "",
            f"Made by the recipe {manifest['recipe']} ({arguments}). manifest.json has what was left out, and why.",
        ]
        return "\n".join(lines) + "\n"


def write_splits(
    splits: Mapping[str, Iterable[Problem]],
    out: Path,
    *,
    recipe: str,
    arguments: Mapping[str, Any],
    notes: Mapping[str, Any] | None = None,
    card: Card | None = None,
) -> dict[str, Any]:
    """Saves `splits` as the data set folder `out` (a `datasets.DatasetDict`) and returns its manifest.

    The problems are consumed one at a time, split after split, and none is kept: decoded pictures are large.
    manifest.json holds the recipe's name and arguments (its seed among them), rows per split and task, a digest of the
    rows of each split, the versions that wrote it, and `notes`, which is read when the last split is written, so that a
    generator may still fill it.
    `card` goes into the manifest and becomes README.md.

    Everything is written to a folder beside `out` and renamed at the end. Raises FileExistsError if `out` is
    there already, ValueError for a split without rows or an id that occurs twice in one.
    """
    if out.exists():
        raise FileExistsError(f"{out} exists already; choose another folder or delete this one")
    work = out.parent / f".{out.name}.{os.getpid()}.tmp"
    work.mkdir(parents=True)
    try:
        parts = work / "parts"
        parts.mkdir()
        counts: dict[str, dict[str, int]] = {}
        saved = datasets.DatasetDict()
        for name, problems in splits.items():
            file = parts / f"{name}.arrow"
            counts[name] = _write_arrow(name, problems, file)
            saved[name] = datasets.Dataset.from_file(str(file))
        manifest = {
            "recipe": recipe,
            "arguments": dict(arguments),
            "rows": counts,
            "digests": {},
            "notes": dict(notes or {}),
            "versions": _versions(),
        }
        if card is not None:
            manifest["card"] = asdict(card)
        folder = work / "folder"
        with _no_progress_bars():
            saved.save_to_disk(str(folder))
        manifest["digests"] = {name: ProblemSet(folder, name).digest() for name in counts}
        text = json.dumps(manifest, indent=2, ensure_ascii=False)
        (folder / MANIFEST).write_text(text + "\n", encoding="utf-8")
        if card is not None:
            (folder / "README.md").write_text(card.text(manifest), encoding="utf-8")
        folder.rename(out)
    finally:
        shutil.rmtree(work)
    return manifest


def copy_set(
    source: Path,
    out: Path,
    change: Mapping[str, Callable[[int, Problem], Problem | None]],
    *,
    recipe: str,
    arguments: Mapping[str, Any],
    notes: Mapping[str, Any],
) -> dict[str, Any]:
    """Writes the data set folder `source` anew as `out`, and returns the manifest.

    change: split -> a function of (row, problem) that gives the problem to write, or None to leave it out. Splits
        without one are copied. Rows that cannot be read are left out and counted.

    The manifest keeps the card of `source` and, under "before", what its manifest said. Raises as `write_splits`.
    """
    path = source / MANIFEST
    before = read_mapping(path) if path.is_file() else {}
    card = Card(**before["card"]) if before.get("card") else None
    unreadable: dict[str, int] = {}

    def problems(split: str) -> Iterator[Problem]:
        rows = ProblemSet(source, split)
        for index in range(len(rows)):
            try:
                problem: Problem | None = rows.get(index)
            except BadRow:
                unreadable[split] = unreadable.get(split, 0) + 1
                continue
            if split in change:
                problem = change[split](index, problem)
            if problem is not None:
                yield problem

    all_notes = {**notes, "unreadable": unreadable, "before": before}
    splits = {split: problems(split) for split in split_names(source)}
    return write_splits(splits, out, recipe=recipe, arguments=arguments, notes=all_notes, card=card)


def _write_arrow(split: str, problems: Iterable[Problem], file: Path) -> dict[str, int]:
    """Streams the rows of one split into `file`; the number of rows per task."""
    tasks: collections.Counter[str] = collections.Counter()
    schema = FEATURES.arrow_schema
    with pa.OSFile(str(file), "wb") as sink, pa.ipc.new_stream(sink, schema) as writer:
        for batch in _batches(_rows(split, problems, tasks)):
            writer.write_table(pa.Table.from_pylist(batch, schema=schema))
    if not tasks:
        raise ValueError(f"split {split!r} has no rows; leave it out or ask the recipe for more")
    return dict(sorted(tasks.items()))


def _rows(split: str, problems: Iterable[Problem], tasks: collections.Counter[str]) -> Iterator[dict[str, Any]]:
    """The rows of `problems`, which are counted in `tasks`. Raises ValueError for an id that occurs twice."""
    ids: set[str] = set()
    for problem in problems:
        if problem.id in ids:
            raise ValueError(f"id {problem.id!r} occurs twice in split {split!r}; ids must be unique")
        ids.add(problem.id)
        tasks[problem.task] += 1
        yield row_from_problem(problem)


def _batches(rows: Iterable[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    """`rows` in their order, up to ROWS_PER_BATCH of them together, fewer once they have BYTES_PER_BATCH."""
    batch: list[dict[str, Any]] = []
    size = 0
    for row in rows:
        batch.append(row)
        size += sum(len(image["bytes"]) for image in row["images"])
        if len(batch) >= ROWS_PER_BATCH or size >= BYTES_PER_BATCH:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _versions() -> dict[str, str]:
    return {
        "sapo_vl": __version__,
        "python": platform.python_version(),
        "datasets": datasets.__version__,
        "pillow": PIL.__version__,
        "numpy": np.__version__,
    }


@contextlib.contextmanager
def _no_progress_bars() -> Iterator[None]:
    """One bar a split for a save that takes a second would bury the recipe's own output."""
    shown = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        if shown:
            datasets.enable_progress_bars()
