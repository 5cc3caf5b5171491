"""JSON and CSV files of other people: encodings, byte order marks, words that look like nothing, cells as written."""

from __future__ import annotations

import codecs
import csv
import io
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sapo_vl.data.problem_set import DataError
from sapo_vl.data.source import open_source
from sapo_vl.data.text_files import csv_rows, json_rows

ROWS = [{"question": "q\u00e9?", "answer": "1"}, {"question": "r", "answer": "2"}]
ENCODINGS = {
    "utf-8": b"",
    "utf-8-sig": b"",  # writes its own mark
    "utf-16": b"",
    "utf-32": b"",
    "utf-16-le": codecs.BOM_UTF16_LE,
    "utf-16-be": codecs.BOM_UTF16_BE,
}


def rows(source: Any) -> list[Any]:
    return [row for _, row in open_source(str(source), "train").rows()]


def text_of(suffix: str) -> str:
    if suffix == ".json":
        return json.dumps(ROWS, ensure_ascii=False)
    if suffix == ".jsonl":
        return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in ROWS)
    sep = "," if suffix == ".csv" else "\t"
    return "".join(sep.join(line) + "\r\n" for line in [("question", "answer"), *(r.values() for r in ROWS)])


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".csv", ".tsv"])
@pytest.mark.parametrize("encoding", ENCODINGS)
def test_a_byte_order_mark_says_the_encoding(suffix: str, encoding: str, tmp_path: Path) -> None:
    path = tmp_path / f"rows{suffix}"
    path.write_bytes(ENCODINGS[encoding] + text_of(suffix).encode(encoding))
    assert rows(path) == ROWS


def test_files_that_were_joined(tmp_path: Path) -> None:
    lines = [codecs.BOM_UTF8 + json.dumps(row).encode() + b"\n" for row in ROWS]
    (tmp_path / "rows.jsonl").write_bytes(b"".join(lines))
    assert rows(tmp_path / "rows.jsonl") == ROWS


def test_lines_are_read_when_they_are_asked_for(tmp_path: Path) -> None:
    """Files of gigabytes: only the places of the lines are kept."""
    path = tmp_path / "rows.jsonl"
    text = ('{"a": "\u00e9"}\n  \n' + '{"a": 2}\r\n' + '{"a": 3}').encode()
    path.write_bytes(text)
    count, read = json_rows(path)
    assert count == 3 and [read(i)["a"] for i in (2, 0, 1)] == [3, "\u00e9", 2]
    path.write_bytes(text.replace(b"3", b"4"))
    assert read(2) == {"a": 4}, "it was not kept"
    path.write_bytes(text + b"\n\xff\xfe")
    with pytest.raises(DataError, match=r"is not utf-8 text \(line 5: .*save it as UTF-8"):
        json_rows(path)


def test_json_without_a_mark_in_utf_16(tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_bytes(text_of(".jsonl").encode("utf-16-le"))
    assert rows(tmp_path / "rows.jsonl") == ROWS


@pytest.mark.parametrize("name", ["rows.csv", "rows.jsonl"])
def test_what_is_no_text_is_told(name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(text_of(name[4:]).encode("latin-1"))
    with pytest.raises(DataError, match=r"is not utf-8 text .*save it as UTF-8"):
        rows(tmp_path / name)


WORDS = ["None", "NA", "N/A", "null", "nan", "NaN", "n/a", "True", "007", "1.50", "1e3", "-inf", " "]


def test_words_of_a_table_stay_words_and_empty_cells_are_missing(tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_text("question,answer,more\n" + "".join(f"q{i},{w},\n" for i, w in enumerate(WORDS)))
    found = rows(tmp_path / "t.csv")
    assert [row["answer"] for row in found] == [*WORDS[:-1], None]
    assert {row["more"] for row in found} == {None}


def test_a_table_as_pandas_and_excel_write_it(tmp_path: Path) -> None:
    text = ',q,a,a\n0,"two\nlines, ""quoted""",1,x\n\n1,only two\n2,b,2,y\n'
    (tmp_path / "t.csv").write_text(text)
    first, short, last = rows(tmp_path / "t.csv")
    assert first == {"column 1": "0", "q": 'two\nlines, "quoted"', "a": "1", "column 4": "x"}
    assert str(short) == "2 cells, the columns are 4" and last["q"] == "b"
    (tmp_path / "long.tsv").write_text("image\ta\n" + "A" * 300_000 + "\t1\n")  # a picture in base64
    assert len(rows(tmp_path / "long.tsv")[0]["image"]) == 300_000
    (tmp_path / "none.csv").write_text("")
    with pytest.raises(DataError, match="is empty; its first line must be the names"):
        rows(tmp_path / "none.csv")


def test_folders_of_text_files_are_read_the_same_way(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    (tmp_path / "data/train.csv").write_text("question,answer\nq,None\n")
    (tmp_path / "data/test.jsonl").write_bytes(codecs.BOM_UTF8 + b'{"question": "r", "answer": NaN}\n')
    assert rows(tmp_path) == [{"question": "q", "answer": "None"}]
    ((_, row),) = open_source(str(tmp_path), "test", columns=["question"]).rows()
    assert isinstance(row, dict) and row["answer"] != row["answer"]
    with pytest.raises(DataError, match=r"no split 'validation', only \['test', 'train'\]"):
        open_source(str(tmp_path), "validation")
    (tmp_path / "two").mkdir()
    for i in range(2):
        (tmp_path / f"two/train-0000{i}-of-00002.csv").write_text(f"a\n{i}\nNA\n")
    assert [row["a"] for row in rows(tmp_path / "two")] == ["0", "NA", "1", "NA"]


def test_numbers_of_too_many_digits_are_no_crash(tmp_path: Path) -> None:
    (tmp_path / "r.jsonl").write_text('{"a": 1}\n{"a": ' + "9" * 5000 + "}\n")
    first, second = rows(tmp_path / "r.jsonl")
    assert first == {"a": 1} and isinstance(second, ValueError)


CELL = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0\r\n\ufeff"), max_size=8)


@settings(max_examples=50)
@given(table=st.lists(st.lists(CELL, min_size=2, max_size=2), min_size=1, max_size=6))
def test_any_table_comes_back_as_written(table: list[list[str]], tmp_path_factory: pytest.TempPathFactory) -> None:
    buffer = io.StringIO()
    csv.writer(buffer).writerows([["first", "second"], *table])
    path = tmp_path_factory.getbasetemp() / "any.csv"
    path.write_text(buffer.getvalue(), encoding="utf-8", newline="")
    count, read = csv_rows(path)
    assert count == len(table)
    for index, cells in enumerate(table):
        assert list(read(index).values()) == [cell if cell.strip() else None for cell in cells]


@settings(max_examples=50)
@given(data=st.one_of(st.binary(max_size=60), st.text(max_size=60).map(lambda t: t.encode("utf-8", "replace"))))
def test_any_bytes_are_rows_or_a_named_error(data: bytes, tmp_path_factory: pytest.TempPathFactory) -> None:
    base = tmp_path_factory.getbasetemp()
    for suffix, reader in ((".jsonl", json_rows), (".json", json_rows), (".csv", csv_rows), (".tsv", csv_rows)):
        path = base / f"any{suffix}"
        path.write_bytes(data)
        try:
            count, read = reader(path)
        except DataError:
            continue
        for index in range(count):
            try:
                assert isinstance(read(index), dict)
            except ValueError:
                continue
