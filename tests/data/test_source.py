"""Somebody else's data: files of every kind, and pictures that try to be more than a picture."""

import base64
import json
import math
import os
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from sapo_vl.data.images import MAX_IMAGE_BYTES, ImageRefused, encode_png, read_image
from sapo_vl.data.problem_set import DataError
from sapo_vl.data.source import open_source

PNG = encode_png(Image.new("RGB", (4, 3), (1, 2, 3)))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A data folder with a good picture, a neighbour whose name begins alike, and traps."""
    data = tmp_path / "data"
    (data / "in").mkdir(parents=True)
    (tmp_path / "data_secret").mkdir()
    for place in (data / "in/a.png", tmp_path / "data_secret/s.png"):
        place.write_bytes(PNG)
    (data / "in/inner.png").symlink_to(data / "in/a.png")
    (data / "outer.png").symlink_to(tmp_path / "data_secret/s.png")
    (data / "way").symlink_to(tmp_path / "data_secret")
    (data / "circle").symlink_to(data / "circle")
    os.mkfifo(data / "pipe.png")
    (data / "cut.png").write_bytes(PNG[:-20])
    (data / "text.png").write_text("no picture")
    (data / "vector.svg").write_text('<svg xmlns="http://www.w3.org/2000/svg"/>')
    with (data / "huge.png").open("wb") as file:
        file.truncate(MAX_IMAGE_BYTES + 1)
    return data


@pytest.mark.parametrize(
    "cell", ["in/a.png", "in/inner.png", "./in/../in/a.png", {"bytes": None, "path": "in/a.png"}, {"bytes": PNG}, PNG]
)
def test_pictures_of_the_folder_are_read(cell, folder: Path) -> None:
    assert read_image(cell, folder).getpixel((3, 2)) == (1, 2, 3)


def test_paths_as_other_kits_write_them(folder: Path) -> None:
    assert read_image(f"file://{folder}/in/a.png", folder).size == (4, 3)
    assert read_image("data:image/png;base64," + base64.b64encode(PNG).decode()).size == (4, 3)


@pytest.mark.parametrize(
    ("cell", "kind"),
    [
        (None, "missing"), ("", "missing"), ({}, "missing"), ("in/b.png", "missing"), ("circle", "missing"),
        ("https://example.org/a.png", "url"), ("HTTP://127.0.0.1/a.png", "url"), ("s3://bucket/a.png", "url"),
        ("../data_secret/s.png", "outside"), ("in/../../data_secret/s.png", "outside"), ("/etc/passwd", "outside"),
        ("file:///etc/passwd", "outside"), ("in/a.png\0.txt", "outside"),
        ("outer.png", "link"), ("way/s.png", "link"),
        ("in", "not a file"), ("pipe.png", "not a file"),
        ("huge.png", "too many bytes"),
        ("text.png", "wrong type"), ("vector.svg", "wrong type"), (7, "wrong type"), (["in/a.png"], "wrong type"),
        ("cut.png", "damaged"), ("data:image/png;base64,@@", "damaged"),
    ],
)  # fmt: skip
def test_pictures_that_are_refused(cell, kind: str, folder: Path) -> None:
    with pytest.raises(ImageRefused) as error:
        read_image(cell, folder)
    assert error.value.kind == kind


def test_without_a_folder_no_file_is_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(folder)
    for cell in ("in/a.png", {"path": "in/a.png"}):
        with pytest.raises(ImageRefused, match="no folder of its own"):
            read_image(cell)


ROWS = [{"image": "in/a.png", "answer": "1"}, {"image": ["in/a.png"], "answer": "2"}]


@pytest.mark.parametrize("name", ["rows.jsonl", "rows.json"])
def test_json_files_with_mixed_types(name: str, folder: Path) -> None:
    text = json.dumps(ROWS) if name.endswith(".json") else "\n".join(map(json.dumps, ROWS)) + "\n\n{broken\n[1]\n"
    (folder / name).write_text(text)
    source = open_source(str(folder / name), "train", columns=["image", "answer"])
    found = [row for _, row in source.rows()]
    assert found[:2] == ROWS
    assert [str(error).split(" (")[0] for error in found[2:]] == (
        ["not JSON", "not a JSON object but a list"] if name.endswith("l") else []
    )
    assert source.image(found[0]["image"]).size == (4, 3)  # type: ignore[index]


def test_tables_and_saved_folders(tmp_path: Path) -> None:
    rows = datasets.Dataset.from_list([{"question": "q\u00e9", "n": 3}, {"question": "r", "n": 4}])
    rows.to_parquet(str(tmp_path / "rows.parquet"))
    rows.to_csv(str(tmp_path / "rows.tsv"), sep="\t", index=False)
    datasets.DatasetDict({"test": rows}).save_to_disk(str(tmp_path / "saved"))
    (tmp_path / "hub/grid/").mkdir(parents=True)
    rows.to_parquet(str(tmp_path / "hub/grid/test-00000-of-00001.parquet"))
    for source, config in (("rows.parquet", None), ("rows.tsv", None), ("saved", None), ("hub", "grid")):
        opened = open_source(str(tmp_path / source), "test", config=config, columns=["question"])
        numbers = ["3", "4"] if source.endswith(".tsv") else [3, 4]  # a table of text has texts
        assert [row for _, row in opened.rows()] == [
            {"question": "q\u00e9", "n": numbers[0]},
            {"question": "r", "n": numbers[1]},
        ]


NARROW = [0.1, 33.3, -2.5, 0.0, 1e-30, 3e30, None]


@pytest.mark.parametrize(
    ("kind", "numbers"),
    [
        (pa.float32(), NARROW),
        (pa.float16(), [0.1, 33.3, -2.5, 0.0, 6.104e-05, 1000.0, None]),
        (pa.float64(), [*NARROW, 0.10000000149011612, 0.1 + 0.2]),
        (pa.int64(), [1, -3, 2**62 + 1, None]),
    ],
)
def test_a_number_is_as_short_as_it_was_written(kind: pa.DataType, numbers: list, tmp_path: Path) -> None:
    columns = {
        "plain": (kind, numbers),
        "list": (pa.list_(kind), [numbers, [], None, *([n] for n in numbers[3:])]),
        "large": (pa.large_list(kind), [numbers] * len(numbers)),
        "pair": (pa.list_(kind, 2), [[n, n] for n in numbers]),
        "struct": (
            pa.struct([("n", kind), ("word", pa.string()), ("deep", pa.list_(pa.struct([("n", kind)])))]),
            [{"n": n, "word": "0.1", "deep": [{"n": n}, None]} for n in numbers[:-1]] + [None],
        ),
    }
    schema = pa.schema([(name, of) for name, (of, _) in columns.items()])
    table = pa.table({name: pa.array(values, of) for name, (of, values) in columns.items()}, schema=schema)
    pq.write_table(table, tmp_path / "rows.parquet")
    rows = [row for _, row in open_source(str(tmp_path / "rows.parquet"), "train").rows()]
    assert rows == [dict(zip(columns, row, strict=True)) for row in zip(*(v for _, v in columns.values()), strict=True)]
    assert {type(row["plain"]) for row in rows} == {type(n) for n in numbers}


def test_what_is_no_number_stays_none(tmp_path: Path) -> None:
    table = pa.table({"n": pa.array([math.nan, math.inf, -math.inf], pa.float32())})
    pq.write_table(table, tmp_path / "rows.parquet")
    nan, *infinite = (row["n"] for _, row in open_source(str(tmp_path / "rows.parquet"), "train").rows())
    assert math.isnan(nan) and infinite == [math.inf, -math.inf]


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    datasets.DatasetDict({"test": datasets.Dataset.from_list([{"a": 1}])}).save_to_disk(str(tmp_path / "saved"))
    (tmp_path / "empty.jsonl").write_text("\n")
    (tmp_path / "rows.xlsx").write_text("")
    for source, match in (
        (str(tmp_path / "none"), "neither a file"),
        (str(tmp_path / "empty.jsonl"), "no rows"),
        (str(tmp_path / "rows.xlsx"), "must end in"),
        ("nobody", "neither a file"),
    ):
        with pytest.raises(DataError, match=match):
            open_source(source, "test")
    with pytest.raises(DataError, match=r"no split 'train', only \['test'\]"):
        open_source(str(tmp_path / "saved"), "train")
    with pytest.raises(DataError, match=r"lacks the columns \['b'\]; it has \['a'\]"):
        open_source(str(tmp_path / "saved"), "test", columns=["a", "b"])
