"""Small sources with the columns of the real sets, and pictures that differ."""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image, ImageDraw

from sapo_vl.data.problem_set import ProblemSet
from sapo_vl.types import Problem

# The arrow schema of the hub's parquet files: an image is a struct of bytes and path.
IMAGE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])


def picture(number: int, size: tuple[int, int] = (40, 30)) -> Image.Image:
    """A drawing that no other number gives."""
    image = Image.new("RGB", size, "white")
    draw = ImageDraw.Draw(image)
    for bit in range(8):
        if (number + 1) >> bit & 1:
            draw.rectangle((4 * bit, 2 * bit, 4 * bit + 6, 2 * bit + 9), fill=(30 * bit, 200 - 20 * bit, 90))
    return image


def encoded(image: Image.Image, format: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def cell(number: int) -> dict[str, Any]:
    return {"bytes": encoded(picture(number)), "path": None}


def parquet(folder: Path, schema: dict[str, Any], **splits: list[dict[str, Any]]) -> str:
    """A folder of parquet files as the hub has it."""
    (folder / "data").mkdir(parents=True)
    for split, rows in splits.items():
        table = pa.Table.from_pylist(rows, schema=pa.schema(list(schema.items())))
        pq.write_table(table, folder / "data" / f"{split}-00000-of-00001.parquet")
    return str(folder)


def lines(path: Path, rows: list[dict[str, Any]]) -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def read(folder: Path, *splits: str) -> list[Problem]:
    """The problems of the splits (default: all of train and test), by the number at the end of their id."""
    return sorted(_read(folder, splits or ("train", "test")), key=lambda p: int(p.id.rpartition("-")[2]))


def _read(folder: Path, splits: tuple[str, ...]) -> Iterator[Problem]:
    for split in splits:
        problems = ProblemSet(folder, split)
        yield from (problems.get(i) for i in range(len(problems)))


def shown(problem: Problem) -> list[str]:
    """The parts of the question without the instruction; IMAGE where a picture is."""
    (turn,) = problem.messages
    return [part.get("text", "IMAGE") for part in turn["content"][:-1]]


def drawing(index: int, rows: int) -> int:
    """A seed with which one test row drawn out of `rows` is row `index`."""
    return next(seed for seed in range(1000) if np.random.default_rng(seed).permutation(rows)[0] == index)
