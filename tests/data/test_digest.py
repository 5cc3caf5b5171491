"""The digest of a split: the same for the same rows however they lie on the disk, another for any change in them."""

from __future__ import annotations

import io
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from sapo_vl.data.digest import table_digest
from sapo_vl.data.problem_set import FEATURES, DataError, ProblemSet, row_from_problem
from sapo_vl.data.sampler import QuotaSampler
from sapo_vl.types import Problem

Row = dict[str, Any]


@pytest.fixture
def rows(seed: int) -> list[Row]:
    """Rows with no, one and three images, of which some are larger than the pieces that are read."""
    rng = np.random.default_rng(seed)
    out = []
    for i in range(12):
        images = tuple(
            Image.fromarray(rng.integers(0, 256, (16 << k, 24, 3), dtype=np.uint8)) for k in range((0, 1, 3)[i % 3])
        )
        content = [{"type": "image"}] * len(images) + [{"type": "text", "text": f"how many? {i} é"}]
        problem = Problem(
            id=f"p{i}", task="ab"[i % 2], messages=({"role": "user", "content": content},), images=images,
            answer=str(int(rng.integers(100))), solution="", meta={"i": i},
        )  # fmt: skip
        out.append(row_from_problem(problem))
    return out


def digest_of(rows: list[Row], *sizes: int) -> str:
    """Of a table in chunks of these sizes (over and over)."""
    cuts = [0, *itertools.takewhile(lambda n: n < len(rows), itertools.accumulate(itertools.cycle(sizes or (99,))))]
    schema = FEATURES.arrow_schema
    parts = [pa.Table.from_pylist(rows[a:b], schema=schema) for a, b in itertools.pairwise([*cuts, len(rows)])]
    return table_digest(pa.concat_tables(parts), tuple(FEATURES))


def test_chunks_and_slices_make_no_difference(rows):
    whole = digest_of(rows)
    assert digest_of(rows, 1) == digest_of(rows, 5, 2) == whole
    padded = pa.Table.from_pylist([rows[3], *rows, rows[5]], schema=FEATURES.arrow_schema)
    assert table_digest(padded.slice(1, len(rows)), tuple(FEATURES)) == whole
    large = pa.schema([f.with_type(pa.large_string()) if f.type == pa.string() else f for f in FEATURES.arrow_schema])
    assert table_digest(pa.Table.from_pylist(rows, schema=large), tuple(FEATURES)) == whole


CHANGES: dict[str, Callable[[list[Row]], object]] = {
    "answer": lambda rows: rows[4].update(answer="x"),
    "solution": lambda rows: rows[0].update(solution="because"),
    "meta": lambda rows: rows[0].update(meta='{"i":1}'),
    "nothing for a text": lambda rows: rows[0].update(reward=None),
    "order": lambda rows: rows.reverse(),
    "a row less": lambda rows: rows.pop(),
    "letters moved over a border of cells": lambda rows: (rows[0].update(answer="12"), rows[1].update(answer="3")),
    "images dealt otherwise": lambda rows: rows[0]["images"].append(rows[1]["images"].pop()),
    "order of images": lambda rows: rows[2]["images"].reverse(),
    "no image for an image": lambda rows: rows[1]["images"].__setitem__(0, None),
    "no bytes for an image": lambda rows: rows[1]["images"][0].update(bytes=None),
    "a byte of a small file": lambda rows: rows[1]["images"][0].update(bytes=b"abc"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_any_change_of_the_rows_is_seen(change, rows):
    rows[0]["answer"], rows[1]["answer"] = "1", "23"
    before = digest_of(rows)
    CHANGES[change](rows)
    assert digest_of(rows) != before


def test_one_pixel_of_an_image_of_the_same_length_is_seen(rows, seed):
    """Stored without compression, so that the length cannot tell."""
    rng = np.random.default_rng(seed)
    pixels = rng.integers(0, 256, (200, 300, 3), dtype=np.uint8)
    files = []
    for value in (3, 4):
        pixels[17, 250, 1] = value
        out = io.BytesIO()
        Image.fromarray(pixels).save(out, "PNG", compress_level=0)
        files.append(out.getvalue())
    assert len(files[0]) == len(files[1])
    digests = []
    for data in files:
        rows[1]["images"][0] = {"bytes": data, "path": None}
        digests.append(digest_of(rows))
    assert digests[0] != digests[1]


def test_a_split_on_the_disk_has_the_digest_of_its_rows(rows, tmp_path):
    def saved(name: str, content: list[Row], **options: Any) -> ProblemSet:
        split = datasets.Dataset.from_list(content, features=FEATURES)
        datasets.DatasetDict(train=split).save_to_disk(str(tmp_path / name), **options)
        return ProblemSet(tmp_path / name, "train")

    first, second = saved("a", rows), saved("b", rows, num_shards={"train": 3})
    assert first.digest() == second.digest() == digest_of(rows)
    rows[7]["answer"] = "changed"
    assert saved("c", rows).digest() != first.digest()


def test_a_sampler_goes_on_over_the_same_rows_only(rows, tmp_path: Path):
    tasks = [row["task"] for row in rows]
    state = QuotaSampler(tasks, {}, 4, 1, digest_of(rows)).state_dict()
    QuotaSampler(tasks, {}, 4, 1, digest_of(rows)).load_state_dict(state)
    rows[7]["answer"] += "0"
    changed = QuotaSampler(tasks, {}, 4, 1, digest_of(rows))
    with pytest.raises(DataError, match="over other rows than the training split has now; resume with the data set"):
        changed.load_state_dict(state)
    # A checkpoint from before there was a digest knows of the tasks only.
    changed.load_state_dict({key: value for key, value in state.items() if key != "content"})
