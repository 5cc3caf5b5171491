"""mixture: several built data sets as one, for a run on math, code, logic, pictures and grounding.

    sapo-vl recipe mixture --out DIR sets=math=/data/dapo,math=/data/deepmath,code=/data/code,logic=/data/gym

Every row gets the name before its folder as its task, and what it was before as meta["task_of_set"]. The shares are
those of the training config: data.quotas holds in every batch, whatever the sizes, as in
configs/mixture_qwen3_vl_30b_a3b.yaml.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from data_recipes.filters import Seen
from sapo_vl.data.folder import MANIFEST, DataError, split_names
from sapo_vl.data.problem_set import BadRow, BadRows, ProblemSet
from sapo_vl.data.writer import Card, write_splits
from sapo_vl.strict import read_mapping
from sapo_vl.types import Problem

CARD = Card(name="Mixture", source="the data sets named below", licence="that of each set, see `sets` in manifest.json")
SPLITS = ("test", "train")  # test first, so that training rows that repeat it are found


def build(
    out: Path,
    *,
    seed: int = 0,
    sets: str = "",
    max_train: int = 0,
    max_test: int = 0,
    max_bad_share: float = 0.01,
) -> dict[str, Any]:
    """Writes the data set folder `out` with the splits test and train, and returns its manifest.

    seed: which rows are drawn, where max_train or max_test draw any.
    sets: "task=DIR" with commas; folders that recipes wrote, a task may have several.
    max_train, max_test: at most so many rows of each folder; 0 = all.
    max_bad_share: more rows of a split than this that cannot be read stop the build.

    Training rows that repeat a test row of any of the sets, or show its image, are left out and counted.
    Raises DataError for a folder that is no such set, or lacks one of the splits.
    """
    folders = _folders(sets)
    for _, folder in folders:
        if missing := set(SPLITS) - set(split_names(folder)):
            raise DataError(f"{folder} has no split {min(missing)!r}")
    notes: dict[str, Any] = {"sets": [{"task": task, **_about(folder)} for task, folder in folders]}
    seen = Seen()
    limits = {"train": max_train, "test": max_test}
    splits = {
        split: _problems(folders, split, limits[split], seed, seen, max_bad_share, notes.setdefault(split, {}))
        for split in SPLITS
    }
    arguments = {
        "seed": seed, "sets": sets, "max_train": max_train, "max_test": max_test, "max_bad_share": max_bad_share
    }  # fmt: skip
    return write_splits(splits, Path(out), recipe="mixture", arguments=arguments, notes=notes, card=CARD)


def _folders(sets: str) -> list[tuple[str, Path]]:
    found = []
    for text in sets.split(","):
        task, sep, folder = text.strip().partition("=")
        if not (task and sep and folder):
            raise DataError(f"sets={sets!r}; write sets=math=/data/dapo,code=/data/code")
        found.append((task, Path(folder)))
    return found


def _about(folder: Path) -> dict[str, Any]:
    """What the set's own manifest says of it."""
    path = folder / MANIFEST
    if not path.is_file():
        return {"recipe": "", "card": {}}
    manifest = read_mapping(path)
    return {key: manifest.get(key, "") for key in ("recipe", "arguments", "rows", "card")}


def _problems(
    folders: list[tuple[str, Path]],
    split: str,
    limit: int,
    seed: int,
    seen: Seen,
    max_bad_share: float,
    notes: dict[str, Any],
) -> Iterator[Problem]:
    left_out: dict[str, int] = {}
    rows = [ProblemSet(folder, split) for _, folder in folders]
    drawn = [sorted(np.random.default_rng([seed, i]).permutation(len(r))[: limit or None]) for i, r in enumerate(rows)]
    bad_rows = BadRows(max_bad_share, total=sum(map(len, drawn)))
    for place, (problems, indices) in enumerate(zip(rows, drawn, strict=True)):
        for index in indices:
            try:
                problem = problems.get(int(index))
            except BadRow as bad:
                bad_rows.record(bad)
                continue
            bad_rows.record(None)
            if reason := seen.reason(problem, split):
                left_out[reason] = left_out.get(reason, 0) + 1
                continue
            yield dataclasses.replace(
                problem,
                id=f"{place}/{problem.id}",
                task=folders[place][0],
                meta={**problem.meta, "task_of_set": problem.task},
            )
    notes |= {"left_out": left_out, "bad_rows": bad_rows.bad, "first_bad_rows": bad_rows.first}
