"""Bytes that somebody else wrote, or that a disk has lost: every reader takes them, or says which file is no good."""

from __future__ import annotations

import base64
import io
import json
import shutil
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from evaluation_helpers import record, response
from fuzzing import bounded, changed, damaged, examples, texts, values
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import save_file

from sapo_vl.benchmarks.packed_text import unpack_text
from sapo_vl.data.archive import PictureArchive
from sapo_vl.data.images import MAX_IMAGE_PIXELS, REFUSALS, ImageRefused, decode_image, read_image
from sapo_vl.data.problem_set import FEATURES, BadRow, DataError, ProblemSet, problem_from_row
from sapo_vl.data.text_files import csv_rows, json_rows
from sapo_vl.evaluation.errors import EvaluationError
from sapo_vl.evaluation.records import RECORDS, RecordFile, check_whole, read_records
from sapo_vl.learning.checkpoint import MANIFEST, CheckpointError, read_manifest, seal
from sapo_vl.model.folder import INDEX, SINGLE, ModelError, read_headers
from sapo_vl.model.identity import model_digest
from sapo_vl.record.identity import IDENTITY_FILE, identity_of, read_identity, write_identity
from sapo_vl.record.run_log import read_metrics


def picture(kind: str) -> bytes:
    rng = np.random.default_rng(0)
    image = Image.fromarray(rng.integers(0, 255, (24, 32, 3), np.uint8))
    buffer = io.BytesIO()
    if kind == "gif":
        image.save(buffer, kind, save_all=True, append_images=[image.rotate(90)])
    else:
        image.save(buffer, kind)
    return buffer.getvalue()


PICTURES = {kind: picture(kind) for kind in ("png", "jpeg", "webp", "bmp", "gif")}


def is_fine(image: Image.Image) -> None:
    assert image.mode == "RGB" and 0 < image.width * image.height <= MAX_IMAGE_PIXELS


# --- pictures and rows ----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", PICTURES)
@given(data=st.data())
@examples(80)
def test_a_damaged_picture_is_refused_or_decoded(kind: str, data: st.DataObject) -> None:
    content = data.draw(damaged(PICTURES[kind], PICTURES["png"]))
    with bounded():
        try:
            is_fine(decode_image(content))
        except ImageRefused as refused:
            assert refused.kind in REFUSALS


CELL_WORDS = (
    "data:image/png;base64,", "iVBORw0KGgo", "/9j/", "Qk", "file://", "../", "/etc/passwd", "http://x", "=", "\0", "b'",
    "A",
)  # fmt: skip


CELLS = st.one_of(values, texts(CELL_WORDS), st.binary(max_size=99))


@given(cell=st.one_of(CELLS, st.dictionaries(st.sampled_from(["bytes", "path", "url"]), CELLS)))
@examples(200)
def test_an_image_cell_is_refused_or_read(cell: Any, tmp_path: Path) -> None:
    with bounded():
        try:
            is_fine(read_image(cell, tmp_path))
        except ImageRefused as refused:
            assert refused.kind in REFUSALS


TURNS = [{"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "?"}]}]
ROW = {
    "id": "a", "task": "t", "images": [{"bytes": PICTURES["png"], "path": None}], "answer": "1", "solution": "",
    "reward": "", "messages": json.dumps(TURNS), "meta": "{}",
}  # fmt: skip


@given(row=changed(ROW), turns=changed(TURNS), meta=values)
@examples(150)
def test_a_row_becomes_a_problem_or_an_error(row: Any, turns: Any, meta: Any) -> None:
    rows = [row if isinstance(row, dict) else {}]
    rows += [{**ROW, "messages": json.dumps(turns)}, {**ROW, "meta": json.dumps(meta)}]
    for one in rows:
        with bounded():
            try:
                problem = problem_from_row(one)
            except ValueError:
                continue
        assert problem.id and problem.task and len(problem.images) == 1


JSON_LINES = b'{"a": 1, "b": "x"}\n{"a": 2}\n\n[1]\n'


@given(content=damaged(JSON_LINES, b'[{"a": 1}, 3]'), bom=st.sampled_from([b"", b"\xef\xbb\xbf", b"\xff\xfe"]))
@examples(150)
def test_lines_of_json_are_rows_or_errors(content: bytes, bom: bytes, tmp_path: Path) -> None:
    for name in ("a.jsonl", "a.json"):
        (tmp_path / name).write_bytes(bom + content)
        read_rows(json_rows, tmp_path / name)


@given(content=damaged(b'a,b,"c"\n1,"x\ny",3\n,,\n4,5\n'))
@examples(150)
def test_lines_of_a_table_are_rows_or_errors(content: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_bytes(content)
    read_rows(csv_rows, tmp_path / "a.csv")


def read_rows(read: Callable[[Path], Any], path: Path) -> None:
    with bounded():
        try:
            number, row = read(path)
        except DataError as error:
            assert str(path) in str(error)
            return
        for index in range(min(number, 20)):
            try:
                assert isinstance(row(index), dict)
            except ValueError:
                continue


@given(data=st.data())
@examples(100)
def test_a_damaged_archive_gives_pictures_or_refusals(data: st.DataObject, tmp_path: Path) -> None:
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w", data.draw(st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED]))) as archive:
        for kind, content in PICTURES.items():
            archive.writestr(f"images/{kind}", content)
    path.write_bytes(data.draw(damaged(path.read_bytes())))
    with bounded():
        try:
            opened = PictureArchive(path)
        except DataError:
            return
        for kind in PICTURES:
            try:
                is_fine(opened.image(f"images/{kind}"))
            except ImageRefused as refused:
                assert refused.kind in REFUSALS


def packed(content: bytes) -> str:
    return base64.b64encode(zlib.compress(content)).decode()


@given(text=st.one_of(texts(("eJx", "AAAA", "=", "gASV", "+", "/"), longest=50), st.binary(max_size=60).map(packed)))
@examples(200)
def test_a_packed_text_is_unpacked_or_refused(text: str) -> None:
    with bounded():
        try:
            assert isinstance(unpack_text(text, max_bytes=10_000), str)
        except ValueError:
            return


# --- folders --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set folder without a manifest, a tiny folder of weights, records."""
    root = tmp_path_factory.mktemp("made")
    rows = [{**ROW, "id": f"r{i}", "answer": str(i)} for i in range(8)]
    split = datasets.Dataset.from_list(rows, features=FEATURES)
    datasets.DatasetDict({"train": split}).save_to_disk(str(root / "data"))
    (root / "model").mkdir()
    save_file({"a": torch.ones(3, 2), "b": torch.zeros(4, dtype=torch.bfloat16)}, root / "model" / SINGLE)
    (root / "sharded").mkdir()
    shutil.copy(root / "model" / SINGLE, root / "sharded" / "one.safetensors")
    (root / "sharded" / INDEX).write_text(json.dumps({"weight_map": {"a": "one.safetensors", "b": "one.safetensors"}}))
    for name in ("model", "sharded"):
        (root / name / "config.json").write_text('{"model_type": "qwen3_vl"}')
    (root / "records").mkdir()
    RecordFile(root / "records" / RECORDS).append([record(f"i{i}", response(1.0, "3")) for i in range(3)])
    return root


def spoilt(data: st.DataObject, folder: Path, names: tuple[str, ...], out: Path) -> Path:
    """A copy of a folder in which one of these files is damaged, or gone."""
    shutil.rmtree(out, ignore_errors=True)
    shutil.copytree(folder, out)
    name = data.draw(st.sampled_from(names))
    other = data.draw(st.sampled_from(names))
    content = data.draw(st.one_of(st.none(), damaged((folder / name).read_bytes(), (folder / other).read_bytes())))
    (out / name).unlink()
    if content is not None:
        (out / name).write_bytes(content)
    return out


SHARD = "train/data-00000-of-00001.arrow"
DATA_FILES = ("dataset_dict.json", "train/dataset_info.json", "train/state.json", SHARD, SHARD, SHARD)


@given(data=st.data())
@examples(120)
def test_a_damaged_data_set_is_refused_or_read(data: st.DataObject, made: Path, tmp_path: Path) -> None:
    folder = spoilt(data, made / "data", DATA_FILES, tmp_path / "data")
    with bounded():
        try:
            rows = ProblemSet(folder, "train")
            rows.digest()
        except DataError as error:
            assert str(folder) in str(error) and "\n" not in str(error)
            return
        for index in range(len(rows)):
            try:
                assert rows.get(index).task
            except BadRow as bad:
                assert bad.row == index


@pytest.mark.parametrize("name", ["model", "sharded"])
@given(data=st.data())
@examples(80)
def test_damaged_weights_are_refused_or_read(name: str, data: st.DataObject, made: Path, tmp_path: Path) -> None:
    names = {"model": (SINGLE, "config.json"), "sharded": (INDEX, "one.safetensors", "config.json")}[name]
    folder = spoilt(data, made / name, names, tmp_path / name)
    for read in (lambda: read_headers(folder), lambda: model_digest(str(folder))):
        with bounded():
            try:
                read()
            except ModelError as error:
                assert str(folder) in str(error)


@given(data=st.data())
@examples(80)
def test_damaged_records_are_named_and_never_changed(data: st.DataObject, made: Path, tmp_path: Path) -> None:
    whole = list(read_records(made / "records" / RECORDS))
    folder = spoilt(data, made / "records", (RECORDS,), tmp_path / "records")
    with bounded():
        try:
            found = list(read_records(folder / RECORDS))
            check_whole(folder, "b")
        except EvaluationError as error:
            assert str(folder) in str(error)
            return
    assert all(one in whole for one in found)


MANIFEST_OF_A_RUN = {
    "step": 3, "world_size": 1, "zero_stage": 1, "learning": "x", "updates": 3, "dropped_in_a_row": 0,
    "state": {"accuracy": None}, "files": {"rank_0.json": "0" * 32, "shards/a.pt": "1" * 32},
}  # fmt: skip


@given(raw=damaged(seal(MANIFEST_OF_A_RUN).encode()), resealed=changed(MANIFEST_OF_A_RUN))
@examples(150)
def test_a_manifest_is_whole_or_refused(raw: bytes, resealed: Any, tmp_path: Path) -> None:
    (tmp_path / MANIFEST).write_bytes(raw)
    with bounded():
        try:
            assert read_manifest(tmp_path) == MANIFEST_OF_A_RUN
        except CheckpointError as error:
            assert str(tmp_path / MANIFEST) in str(error)
    (tmp_path / MANIFEST).write_text(seal(resealed))  # by somebody who knows how
    with bounded():
        try:
            files = read_manifest(tmp_path)["files"]
            assert all((tmp_path / name).resolve().is_relative_to(tmp_path.resolve()) for name in files)
        except CheckpointError as error:
            assert str(tmp_path / MANIFEST) in str(error)


LINE = b'{"step": 1, "phase": "train", "time": 2.5, "loss": 0.5, "ci95": [0.1, null]}\n'


@given(lines=damaged(LINE * 3), identity=st.data())
@examples(120)
def test_files_of_a_run_are_read_or_named(lines: bytes, identity: st.DataObject, tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(lines)
    with bounded():
        try:
            rows = read_metrics(path)
            assert all(row["step"] < 10**9 or row["phase"] for row in rows)
        except ValueError as error:
            assert str(path) in str(error)
    (tmp_path / IDENTITY_FILE).unlink(missing_ok=True)
    write_identity(tmp_path, "train", identity_of("train", {"seed": 1}, {}))
    whole = (tmp_path / IDENTITY_FILE).read_bytes()
    (tmp_path / IDENTITY_FILE).write_bytes(identity.draw(damaged(whole)))
    with bounded():
        try:
            found = read_identity(tmp_path, "train")
            assert found is None or isinstance(found.settings, dict)
        except ValueError as error:
            assert str(tmp_path) in str(error)


def test_the_inputs_that_are_damaged_are_fine(made: Path) -> None:
    assert [ProblemSet(made / "data", "train").get(i).answer for i in range(8)] == list("01234567")
    assert set(read_headers(made / "model")) == set(read_headers(made / "sharded")) == {"a", "b"}
    assert len(list(read_records(made / "records" / RECORDS))) == 3
    assert decode_image(PICTURES["webp"]).size == (32, 24)
