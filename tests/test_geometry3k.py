"""The geometry3k recipe on a small parquet set with the columns of the real one and broken rows."""

import io
import json

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from data_recipes import geometry3k
from data_recipes.geometry3k import INSTRUCTION, build, problem_from_source
from rewards import REWARDS, RewardInput
from sapo_vl.data import ProblemSet, TooManyBadRows

# The arrow schema of the hub's parquet files: an image is a struct of bytes and path.
IMAGE_TYPE = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
SCHEMA = pa.schema([("images", pa.list_(IMAGE_TYPE)), ("problem", pa.string()), ("answer", pa.string())])


def cell(image: Image.Image, format: str = "PNG", cut: int | None = None) -> dict:
    buffer = io.BytesIO()
    image.save(buffer, format)
    return {"bytes": buffer.getvalue()[:cut], "path": None}


def row(images, problem: str = "<image>Find x.", answer: str = "3.5") -> dict:
    return {"images": images, "problem": problem, "answer": answer}


SIZE = (30, 20)
GOOD = [
    row([cell(Image.new("RGB", SIZE, (10, 20, 30)))]),
    row([cell(Image.new("RGBA", SIZE, (0, 0, 0, 0)))], "Given <image> find y.", "2 \\sqrt { 221 }"),
    row([cell(Image.new("L", SIZE, 9))], answer=" 7 "),
    row([cell(Image.new("P", SIZE, 0))], answer="1,200"),
    row([cell(Image.new("I;16", SIZE, 65_535))], answer="-4"),
    row([cell(Image.new("CMYK", SIZE, (0, 0, 0, 255)), "JPEG")], answer="12"),
    row([cell(Image.new("L", SIZE, 1)), cell(Image.new("L", SIZE, 2))], "<image><image>Which?", "left"),
]
BAD = {
    "truncated": row([cell(Image.effect_noise((50, 50), 60), cut=400)]),
    "missing image": row([None]),
    "no bytes": row([{"bytes": None, "path": "figure.png"}]),
    "two markers": row([cell(Image.new("L", SIZE))], "<image> and <image>"),
    "no marker": row([cell(Image.new("L", SIZE))], "Find x."),
    "no answer": row([cell(Image.new("L", SIZE))], answer=" "),
    "null problem": row([cell(Image.new("L", SIZE))], problem=None),
    "no images": row(None),
}


def parquet_source(folder, train: list[dict], test: list[dict], validation: list[dict] | None = None):
    (folder / "data").mkdir(parents=True)
    for split, rows in {"train": train, "test": test, "validation": validation or test}.items():
        table = pa.Table.from_pylist(rows, schema=SCHEMA)
        pq.write_table(table, folder / "data" / f"{split}-00000-of-00001.parquet")
    return str(folder)


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def test_good_rows_arrive_in_order_and_in_rgb(tmp_path):
    source = parquet_source(tmp_path / "src", GOOD, GOOD[:1])
    manifest = build(tmp_path / "out", source=source)
    train = ProblemSet(tmp_path / "out", "train")
    problems = [train.get(i) for i in range(len(train))]
    assert [p.id for p in problems] == [f"geometry3k-train-{i}" for i in range(7)]
    assert [p.answer for p in problems] == ["3.5", "2 \\sqrt { 221 }", "7", "1,200", "-4", "12", "left"]
    assert [p.reward for p in problems] == ["number", "word"] + ["number"] * 4 + ["word"]
    corners = [p.images[0].getpixel((0, 0)) for p in problems]
    white = (255, 255, 255)
    assert corners[:5] == [(10, 20, 30), white, (9, 9, 9), (0, 0, 0), white]
    assert max(corners[5]) <= 2  # CMYK black, through JPEG
    assert all(image.mode == "RGB" and image.size == SIZE for p in problems for image in p.images)
    assert [problems[6].images[k].getpixel((3, 3)) for k in (0, 1)] == [(1, 1, 1), (2, 2, 2)]
    assert manifest["rows"] == {"train": {"geometry3k": 7}, "test": {"geometry3k": 1}}
    assert manifest["notes"]["train"] == {
        "from": "train",
        "bad_rows": 0,
        "first_bad_rows": [],
        "not_numbers_left_out": 0,
    }


def test_image_parts_stand_where_the_markers_were():
    def parts(index: int) -> list:
        (turn,) = problem_from_source(GOOD[index], "x").messages
        assert turn["role"] == "user" and turn["content"][-1]["text"] == "\n" + INSTRUCTION
        return [part.get("text", "IMAGE") for part in turn["content"][:-1]]

    assert parts(0) == ["IMAGE", "Find x."]
    assert parts(1) == ["Given", "IMAGE", "find y."]
    assert parts(6) == ["IMAGE", "IMAGE", "Which?"]


def test_bad_rows_are_left_out_named_and_counted(tmp_path):
    rows = [*BAD.values(), *GOOD]
    source = parquet_source(tmp_path / "src", rows, GOOD)
    manifest = build(tmp_path / "out", source=source, max_bad_share=0.6)
    notes = manifest["notes"]["train"]
    assert notes["bad_rows"] == len(BAD) and manifest["rows"]["train"]["geometry3k"] == len(GOOD)
    for index, words in enumerate(["damaged PNG", "missing", "missing", "2 <image> markers", "0 <image> markers"]):
        assert notes["first_bad_rows"][index].startswith(f"row {index} (id 'geometry3k-train-{index}')")
        assert words in notes["first_bad_rows"][index]
    assert json.loads((tmp_path / "out" / "manifest.json").read_text()) == manifest
    assert ProblemSet(tmp_path / "out", "train").get(0).id == f"geometry3k-train-{len(BAD)}"


@pytest.mark.parametrize("kind", BAD)
def test_each_kind_of_bad_row_is_refused(kind):
    with pytest.raises(ValueError, match=r"missing|damaged|markers|empty"):
        problem_from_source(BAD[kind], "x")


def test_too_many_bad_rows_stop_the_build(tmp_path):
    source = parquet_source(tmp_path / "src", GOOD * 3, [*GOOD * 3, BAD["truncated"]])
    with pytest.raises(TooManyBadRows, match=r"1 of 22 rows.*\n.*geometry3k-test-21"):
        build(tmp_path / "out", source=source)
    assert not (tmp_path / "out").exists()
    build(tmp_path / "out", source=source, max_bad_share=0.05)


def test_validation_can_be_the_test_split_and_words_can_be_left_out(tmp_path):
    source = parquet_source(tmp_path / "src", GOOD, GOOD[:1], GOOD[2:4])
    manifest = build(tmp_path / "out", source=source, test_from="validation", numbers_only=True)
    assert manifest["rows"] == {"train": {"geometry3k": 5}, "test": {"geometry3k": 2}}
    assert manifest["notes"]["train"]["not_numbers_left_out"] == 2
    test = ProblemSet(tmp_path / "out", "test")
    assert [test.get(i).id for i in range(2)] == ["geometry3k-validation-0", "geometry3k-validation-1"]


def test_a_folder_from_save_to_disk_is_a_source_too(tmp_path):
    features = datasets.Features(
        {
            "images": datasets.List(datasets.Image()),
            "problem": datasets.Value("string"),
            "answer": datasets.Value("string"),
        }
    )
    saved = datasets.Dataset.from_list(GOOD[:3], features=features)
    datasets.DatasetDict({"train": saved, "test": saved}).save_to_disk(str(tmp_path / "src"))
    build(tmp_path / "out", source=str(tmp_path / "src"))
    first = ProblemSet(tmp_path / "out", "train").get(0)
    assert np.array_equal(np.asarray(first.images[0]), np.full((20, 30, 3), (10, 20, 30)))


def test_a_wrong_source_is_explained(tmp_path):
    with pytest.raises(ValueError, match="neither a file, nor a folder, nor the id of a hub set"):
        build(tmp_path / "out", source="geometri3k")
    source = parquet_source(tmp_path / "src", GOOD, GOOD)
    with pytest.raises(ValueError, match=r"no split 'testmini', only \['test', 'train', 'validation'\]"):
        build(tmp_path / "out", source=source, test_from="testmini")
    other = datasets.Dataset.from_dict({"question": ["?"], "answer": ["1"]})
    datasets.DatasetDict({"train": other, "test": other}).save_to_disk(str(tmp_path / "other"))
    with pytest.raises(ValueError, match=r"lacks the columns \['images', 'problem'\]"):
        build(tmp_path / "out", source=str(tmp_path / "other"))


def test_every_answer_scores_with_its_reward_in_the_form_that_is_asked_for():
    assert "<answer>" in geometry3k.INSTRUCTION
    for source in GOOD:
        problem = problem_from_source(source, "x")
        for answer, score in ((problem.answer, 1.0), (problem.answer + "1", 0.0)):
            text = f"<think> so </think> <answer>{answer}</answer>"
            x = RewardInput(text=text, num_tokens=9, max_tokens=99, finish="stop", answer=problem.answer)
            assert REWARDS[problem.reward](x).score == score
