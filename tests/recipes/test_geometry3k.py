"""The geometry3k recipe on a small parquet set with the columns of the real one and broken rows."""

import json

import datasets
import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from recipe_helpers import IMAGE, encoded, parquet, picture, read, shown

from data_recipes.geometry3k import INSTRUCTION
from data_recipes.geometry3k import build as build_any
from sapo_vl.data.problem_set import TooManyBadRows

SCHEMA = {"images": pa.list_(IMAGE), "problem": pa.string(), "answer": pa.string()}
SIZE = (30, 20)


def cell(image: Image.Image, format: str = "PNG", cut: int | None = None) -> dict:
    return {"bytes": encoded(image, format)[:cut], "path": None}


def row(images, problem: str | None = "<image>Find x.", answer: str = "3.5") -> dict:
    return {"images": images, "problem": problem, "answer": answer}


def build(out, **arguments):
    return build_any(out, **{"check_golds": False} | arguments)


GOOD = [
    row([cell(Image.new("RGB", SIZE, (10, 20, 30)))]),
    row([cell(Image.new("RGBA", SIZE, (0, 0, 0, 0)))], "Given <image> find y.", "2 \\sqrt { 221 }"),
    row([cell(Image.new("L", SIZE, 9))], answer=" 7 "),
    row([cell(Image.new("P", SIZE, 0))], answer="1,200"),
    row([cell(Image.new("I;16", SIZE, 65_535))], answer="-4"),
    row([cell(Image.new("CMYK", SIZE, (0, 0, 0, 255)), "JPEG")], "<image>Find w.", "12"),
    row([cell(Image.new("L", SIZE, 1)), cell(Image.new("L", SIZE, 2))], "<image><image>Which?", "left"),
]
TEST = [row([cell(picture(0))], "<image>Find z.", "9")]
BAD = {
    "truncated": (row([cell(Image.effect_noise((50, 50), 60), cut=400)]), "image damaged"),
    "missing image": (row([None]), "image missing"),
    "no bytes": (row([{"bytes": None, "path": "figure.png"}]), "image missing"),
    "two markers": (row([cell(Image.new("L", SIZE))], "<image> and <image>"), "malformed row"),
    "no answer": (row([cell(Image.new("L", SIZE))], answer=" "), "malformed row"),
    "null problem": (row([cell(Image.new("L", SIZE))], problem=None), "malformed row"),
    "no images": (row(None), "image missing"),
}


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def test_good_rows_arrive_in_order_and_in_rgb(tmp_path):
    source = parquet(tmp_path / "src", SCHEMA, train=GOOD, test=TEST)
    manifest = build(tmp_path / "out", source=source)
    problems = read(tmp_path / "out", "train")
    assert [p.id for p in problems] == [f"geometry3k-train-{i}" for i in range(7)]
    assert [p.answer for p in problems] == ["3.5", "2 \\sqrt { 221 }", "7", "1,200", "-4", "12", "left"]
    assert [p.reward for p in problems] == ["math"] * 6 + ["word"]
    corners = [p.images[0].getpixel((0, 0)) for p in problems]
    white = (255, 255, 255)
    assert corners[:5] == [(10, 20, 30), white, (9, 9, 9), (0, 0, 0), white]
    assert max(corners[5]) <= 2  # type: ignore[type-var]  # CMYK black, through JPEG
    assert all(image.mode == "RGB" and image.size == SIZE for p in problems for image in p.images)
    assert [problems[6].images[k].getpixel((3, 3)) for k in (0, 1)] == [(1, 1, 1), (2, 2, 2)]
    assert manifest["rows"] == {"train": {"geometry3k": 7}, "test": {"geometry3k": 1}}
    assert manifest["notes"]["train"] == {
        "from": "train", "rows": 7, "kept": 7, "left_out": {}, "first_left_out": {}, "without_image": 0, "bad_rows": 0,
        "first_bad_rows": [], "golds_unchecked": 0,
    }  # fmt: skip
    assert [shown(problems[i]) for i in (0, 1, 6)] == [
        ["IMAGE", "Find x."], ["Given", "IMAGE", "find y."], ["IMAGE", "IMAGE", "Which?"],
    ]  # fmt: skip
    assert problems[0].messages[0]["content"][-1]["text"] == "\n" + INSTRUCTION


def test_bad_rows_are_left_out_named_and_counted(tmp_path):
    rows = [*(bad for bad, _ in BAD.values()), *GOOD]
    source = parquet(tmp_path / "src", SCHEMA, train=rows, test=TEST)
    manifest = build(tmp_path / "out", source=source, max_bad_share=0.6)
    notes = manifest["notes"]["train"]
    assert notes["left_out"] == {"image damaged": 1, "image missing": 3, "malformed row": 3}
    assert notes["bad_rows"] == len(BAD) and manifest["rows"]["train"]["geometry3k"] == len(GOOD)
    for index, words in enumerate(["damaged PNG", "missing", "missing", "2 <image> markers", "answer is empty"]):
        assert notes["first_bad_rows"][index].startswith(f"row {index} (id 'geometry3k-train-{index}')")
        assert words in notes["first_bad_rows"][index]
    assert json.loads((tmp_path / "out" / "manifest.json").read_text()) == manifest
    assert read(tmp_path / "out", "train")[0].id == f"geometry3k-train-{len(BAD)}"


def test_too_many_bad_rows_stop_the_build(tmp_path):
    source = parquet(tmp_path / "src", SCHEMA, train=[*GOOD * 3, BAD["truncated"][0]], test=TEST)
    with pytest.raises(TooManyBadRows, match=r"1 of 22 rows.*\n.*geometry3k-train-21"):
        build(tmp_path / "out", source=source)
    assert not (tmp_path / "out").exists()
    build(tmp_path / "out", source=source, max_bad_share=0.05)


def test_validation_can_be_the_test_split(tmp_path):
    source = parquet(tmp_path / "src", SCHEMA, train=GOOD[:2], test=TEST, validation=GOOD[2:4])
    build(tmp_path / "out", source=source, test_from="validation")
    assert [p.id for p in read(tmp_path / "out", "test")] == ["geometry3k-validation-0", "geometry3k-validation-1"]


def test_a_folder_from_save_to_disk_is_a_source_too(tmp_path):
    features = datasets.Features(
        {
            "images": datasets.List(datasets.Image()),
            "problem": datasets.Value("string"),
            "answer": datasets.Value("string"),
        }
    )
    saved = {name: datasets.Dataset.from_list(rows, features=features) for name, rows in
             {"train": GOOD[:3], "test": TEST}.items()}  # fmt: skip
    datasets.DatasetDict(saved).save_to_disk(str(tmp_path / "src"))
    build(tmp_path / "out", source=str(tmp_path / "src"))
    first = read(tmp_path / "out", "train")[0]
    assert np.array_equal(np.asarray(first.images[0]), np.full((20, 30, 3), (10, 20, 30)))


def test_a_wrong_source_is_explained(tmp_path):
    with pytest.raises(ValueError, match="neither a file, nor a folder, nor the id of a hub set"):
        build(tmp_path / "out", source="geometri3k")
    source = parquet(tmp_path / "src", SCHEMA, train=GOOD, test=TEST)
    with pytest.raises(ValueError, match=r"no split 'testmini', only \['test', 'train'\]"):
        build(tmp_path / "out", source=source, test_from="testmini")
    other = datasets.Dataset.from_dict({"question": ["?"], "answer": ["1"]})
    datasets.DatasetDict({"train": other, "test": other}).save_to_disk(str(tmp_path / "other"))
    with pytest.raises(ValueError, match=r"lacks the columns \['images', 'problem'\]"):
        build(tmp_path / "out", source=str(tmp_path / "other"))
