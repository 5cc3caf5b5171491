"""The data set folder: rows survive the way to disk and back, and whatever is wrong with one is said."""

import json
import weakref

import datasets
import numpy as np
import pytest
from PIL import Image
from pydantic import ValidationError

from sapo_vl.data import writer
from sapo_vl.data.problem_set import (
    FEATURES,
    BadRow,
    BadRows,
    DataConfig,
    DataError,
    ProblemSet,
    TooManyBadRows,
    blank_twin,
    problem_from_row,
    row_from_problem,
)
from sapo_vl.data.writer import write_splits
from sapo_vl.types import Problem


def random_problem(rng: np.random.Generator, id: str = "p", images: int = 2) -> Problem:
    def picture() -> Image.Image:
        height, width = rng.integers(1, 40, 2)
        return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))

    parts = [{"type": "image"} for _ in range(images)]
    return Problem(
        id=id,
        task="über-task",
        messages=(
            {"role": "system", "content": "short\nanswers “only”"},
            {"role": "user", "content": [*parts, {"type": "text", "text": "<image> ∠ABC = ?"}]},
        ),
        images=tuple(picture() for _ in range(images)),
        answer="\\frac{1}{2}",
        solution="<think> </think>",
        reward="number",
        meta={"scene": {"boxes": [[1, 2.5], []], "none": None}, "choices": ["a", "b"]},
    )


def same(a: Problem, b: Problem) -> bool:
    pictures = [(np.asarray(x), np.asarray(y)) for x, y in zip(a.images, b.images, strict=True)]
    names = ("id", "task", "messages", "answer", "solution", "reward", "meta")
    return all(np.array_equal(x, y) for x, y in pictures) and all(getattr(a, n) == getattr(b, n) for n in names)


# --- rows
# -----------------------------------------------------------------------------------------------------------


def test_a_problem_survives_the_way_to_disk_and_back(tmp_path, seed):
    rng = np.random.default_rng(seed)
    problems = [random_problem(rng, f"p{i}", images=i % 3) for i in range(7)]
    write_splits({"train": problems}, tmp_path / "set", recipe="r", arguments={})
    read = ProblemSet(tmp_path / "set", "train")
    assert len(read) == 7 and read.tasks == ["über-task"] * 7
    assert read.rewards == [("über-task", "number")]
    assert all(same(read.get(i), problem) for i, problem in enumerate(problems))
    # and it is an ordinary data set, images included
    plain = datasets.load_from_disk(str(tmp_path / "set"))["train"]
    assert plain.features == FEATURES
    assert np.array_equal(np.asarray(plain[2]["images"][1]), np.asarray(problems[2].images[1]))


def broken(**cells) -> dict:
    return {**row_from_problem(random_problem(np.random.default_rng(0))), **cells}


def turns(content, role="user", **more) -> str:
    return json.dumps([{"role": role, "content": content, **more}])


@pytest.mark.parametrize(
    ("cells", "reason"),
    [
        ({"answer": None}, "answer is missing"),
        ({"id": ""}, "id is empty"),
        ({"messages": "[{"}, "messages is not JSON"),
        ({"messages": "[]"}, "non-empty JSON list"),
        ({"messages": "[" * 100_000}, "messages is not JSON"),
        ({"messages": turns("hi", role="robot")}, "turn 0 needs a role"),
        ({"messages": turns(3)}, "content of turn 0 is neither text nor a list"),
        ({"messages": turns([{"type": "video"}])}, "part that is neither text nor image"),
        ({"messages": turns(["words"])}, "part that is neither text nor image"),
        ({"messages": turns("yes", role="assistant")}, "last turn is the assistant's"),
        ({"messages": turns([{"type": "image"}])}, "1 image parts and the row 2 images"),
        ({"messages": turns(None)}, "content of turn 0 is neither text nor a list"),
        ({"messages": turns(None, tool_calls=[])}, "content of turn 0 is neither text nor a list"),
        ({"messages": turns("hi", tool_calls="look")}, "tool_calls of turn 0 must be a list of"),
        ({"messages": turns("hi", tool_calls={"name": "look"})}, "tool_calls of turn 0 must be a list of"),
        ({"messages": turns("hi", tool_calls=[None])}, "tool_calls of turn 0 must be a list of"),
        ({"messages": turns("hi", tool_calls=[{"function": "look"}])}, '{"function": {"name": ..., "arguments": ...}}'),
        ({"messages": turns("hi", tool_calls=[{"name": "look", "arguments": 3}])}, "tool_calls of turn 0 must be"),
        ({"messages": turns("hi", tool_calls=[{"function": {"arguments": {}}}])}, "tool_calls of turn 0 must be"),
        ({"meta": "3"}, "meta is a JSON int, not an object"),
        ({"images": [None, None]}, "image 0 is missing"),
        ({"images": [{"bytes": None, "path": "a/b.png"}] * 2}, "image 0 has no bytes (path 'a/b.png')"),
        ({"images": [{"bytes": b"GIF8", "path": None}] * 2}, "image 0: not a readable"),
    ],
)
def test_a_bad_row_says_what_is_wrong_with_it(cells, reason):
    with pytest.raises(ValueError) as caught:
        problem_from_row(broken(**cells))
    assert reason in str(caught.value)


def test_the_blank_twin_has_the_same_words_and_nothing_to_see():
    problem = random_problem(np.random.default_rng(1))
    twin = blank_twin(problem)
    assert twin.id == "p#blank"
    assert all(len(np.unique(np.asarray(image).reshape(-1, 3), axis=0)) == 1 for image in twin.images)
    assert [image.size for image in twin.images] == [image.size for image in problem.images]
    assert (twin.messages, twin.answer, twin.meta) == (problem.messages, problem.answer, problem.meta)


# --- folders
# --------------------------------------------------------------------------------------------------------


def save(path, rows: list[dict], features=FEATURES):
    data = datasets.Dataset.from_list(rows, features=features)
    datasets.DatasetDict({"train": data}).save_to_disk(str(path))
    return path


def test_a_bad_row_is_named_and_its_neighbours_are_read(tmp_path):
    rows = [broken(id="good"), broken(id="torn", meta="{"), broken(id="fine")]
    problems = ProblemSet(save(tmp_path / "s", rows), "train")
    assert [problems.get(0).id, problems.get(2).id] == ["good", "fine"]
    with pytest.raises(BadRow, match=r"row 1 \(id 'torn'\): meta is not JSON") as caught:
        problems.get(1)
    assert (caught.value.row, caught.value.id) == (1, "torn")
    for outside in (3, -1):
        with pytest.raises(IndexError):
            problems.get(outside)


def test_opening_says_what_is_wrong_with_a_folder(tmp_path):
    def fails(path, words: str, split: str = "train"):
        with pytest.raises(DataError, match=words):
            ProblemSet(path, split)

    fails("", "data.path is empty.*sapo-vl recipe")
    fails(tmp_path / "nowhere", "nowhere is not a folder")
    fails(tmp_path, "has no dataset_dict.json")
    fails(save(tmp_path / "s", [broken()]), r"no split 'test', only \['train'\]", split="test")
    nothing = datasets.Dataset.from_dict({name: [] for name in FEATURES}, features=FEATURES)
    datasets.DatasetDict({"train": nothing}).save_to_disk(str(tmp_path / "empty"))
    fails(tmp_path / "empty", "has no rows")
    unnamed = save(tmp_path / "unnamed", [broken(), broken(task=None), broken(task="")])
    fails(unnamed, r"2 rows have no task \(first: row 1\)")
    fewer = datasets.Features({k: v for k, v in FEATURES.items() if k not in ("meta", "reward")})
    row = {k: v for k, v in broken().items() if k in fewer}
    fails(save(tmp_path / "fewer", [row], fewer), r"lacks the columns \['reward', 'meta'\]")
    one_image = datasets.Features({**FEATURES, "images": datasets.Image()})
    fails(
        save(tmp_path / "one", [broken(images=broken()["images"][0])], one_image),
        "'images' is struct.*a list of",
    )
    numbers = datasets.Features({**FEATURES, "answer": datasets.Value("int64")})
    fails(save(tmp_path / "int", [broken(answer=3)], numbers), "'answer' is int64, it must be text")


def test_a_folder_appears_whole_or_not_at_all(tmp_path):
    rng = np.random.default_rng(2)
    out = tmp_path / "deep" / "set"

    def stops_half_way():
        for i in range(3):
            assert not out.exists()
            yield random_problem(rng, f"p{i}")
        raise RuntimeError("pulled the plug")

    with pytest.raises(RuntimeError, match="pulled the plug"):
        write_splits({"a": [random_problem(rng)], "b": stops_half_way()}, out, recipe="r", arguments={})
    assert list(out.parent.iterdir()) == []
    write_splits({"a": [random_problem(rng)]}, out, recipe="r", arguments={})
    assert [path.name for path in out.parent.iterdir()] == ["set"]
    with pytest.raises(FileExistsError, match="exists already"):
        write_splits({"a": [random_problem(rng)]}, out, recipe="r", arguments={})
    with pytest.raises(ValueError, match="'p' occurs twice in split 'a'"):
        write_splits({"a": [random_problem(rng)] * 2}, tmp_path / "twice", recipe="r", arguments={})
    with pytest.raises(ValueError, match="'b' has no rows"):
        write_splits({"a": [random_problem(rng)], "b": []}, tmp_path / "none", recipe="r", arguments={})


@pytest.mark.parametrize("limit", [1, 3000, 64_000_000])
def test_a_batch_ends_by_its_bytes_and_no_row_is_lost(limit, tmp_path, seed, monkeypatch):
    rng = np.random.default_rng(seed)
    problems = [random_problem(rng, f"p{i}", images=i % 4) for i in range(23)]
    whole = write_splits({"train": problems}, tmp_path / "whole", recipe="r", arguments={})
    monkeypatch.setattr(writer, "BYTES_PER_BATCH", limit)
    written: list[int] = []  # bytes that are on the disk when a problem is asked for

    def one_by_one():
        for problem in problems:
            written.append(sum(file.stat().st_size for file in tmp_path.rglob("*/parts/train.arrow")))
            yield problem

    manifest = write_splits({"train": one_by_one()}, tmp_path / "cut", recipe="r", arguments={})
    assert manifest["digests"] == whole["digests"] and manifest["rows"] == {"train": {"über-task": 23}}
    read = ProblemSet(tmp_path / "cut", "train")
    assert len(read) == 23 and all(same(read.get(i), problem) for i, problem in enumerate(problems))
    grown = len(set(written)) - 1  # batches before the last problem was asked for
    sizes = [sum(len(image["bytes"]) for image in row_from_problem(p)["images"]) for p in problems[:-1]]
    expected = total = 0
    for size in sizes:
        total += size
        if total >= limit:
            expected, total = expected + 1, 0
    assert grown == expected


def test_no_picture_is_kept_once_it_is_written(tmp_path, seed):
    rng = np.random.default_rng(seed)
    pictures: list[weakref.ref] = []
    alive: list[int] = []

    def problems():
        for i in range(40):
            problem = random_problem(rng, f"p{i}", images=2)
            pictures.extend(weakref.ref(image) for image in problem.images)
            alive.append(sum(picture() is not None for picture in pictures))
            yield problem

    write_splits({"train": problems()}, tmp_path / "set", recipe="r", arguments={})
    assert max(alive) <= 3 * 2, "the problem that is made, the one that was written, and one between"


def test_the_manifest_counts_the_rows_of_every_batch(tmp_path):
    tiny = Problem(id="", task="t", messages=({"role": "user", "content": "hi"},))

    def rows(task: str, count: int):
        return (Problem(id=f"{task}{i}", task=task, messages=tiny.messages) for i in range(count))

    notes: dict = {}

    def with_note():
        yield from rows("v", 3)
        notes["skipped"] = 2

    splits = {"train": (p for part in (rows("u", 1500), rows("t", 700)) for p in part), "test": with_note()}
    manifest = write_splits(splits, tmp_path / "s", recipe="mine", arguments={"seed": 4}, notes=notes)
    assert manifest == json.loads((tmp_path / "s" / "manifest.json").read_text())
    assert manifest["rows"] == {"train": {"t": 700, "u": 1500}, "test": {"v": 3}}
    assert (manifest["recipe"], manifest["arguments"], manifest["notes"]) == (
        "mine",
        {"seed": 4},
        {"skipped": 2},
    )
    assert manifest["versions"]["datasets"] == datasets.__version__
    train = ProblemSet(tmp_path / "s", "train")
    assert [train.get(i).id for i in (0, 999, 1000, 1499, 1500, 2199)] == [
        "u0",
        "u999",
        "u1000",
        "u1499",
        "t0",
        "t699",
    ]


# --- counting bad rows
# ----------------------------------------------------------------------------------------------


def first_stop(pattern: str, max_share: float, total: int | None = None) -> int | None:
    """Rows met when the run stops; pattern: x = bad, . = good."""
    counter = BadRows(max_share, total)
    for met, mark in enumerate(pattern, start=1):
        try:
            counter.record(BadRow(met, f"id{met}", "torn") if mark == "x" else None)
        except TooManyBadRows:
            return met
    return None


@pytest.mark.parametrize(
    ("pattern", "max_share", "stop"),
    [
        ("x.......", 0.01, None),  # one unlucky row
        ("xx......", 0.01, None),
        ("xxx", 0.01, 3),
        ("xx" + "." * 297 + "x", 0.01, None),  # 3 of 300 is not over 1 %
        ("xx" + "." * 296 + "x", 0.01, 299),
        ("....x", 0.0, 5),
        ("x.x.x.x.x.xx", 0.5, 5),  # 3 of 5
        (".x.x.x.xx", 0.5, 9),
    ],
)
def test_when_a_run_stops(pattern, max_share, stop):
    assert first_stop(pattern, max_share) == stop


def test_the_stop_names_the_first_rows_and_counts_survive_a_resume():
    counter = BadRows(0.2)
    for index in range(2):
        counter.record(BadRow(index, f"id{index}", "torn"))
    resumed = BadRows(0.2)
    resumed.load_state_dict(json.loads(json.dumps(counter.state_dict())))
    with pytest.raises(TooManyBadRows) as caught:
        resumed.record(BadRow(9, "id9", "no image"))
    for words in ("3 of 3 rows", "max_bad_share=0.2", "row 0 (id 'id0'): torn", "row 9 (id 'id9'): no image"):
        assert words in str(caught.value)


def test_a_pass_over_a_known_number_of_rows_is_judged_by_that_number():
    assert first_stop("xxxx", 0.4, total=10) is None  # all at the front, and still 4 of 10
    assert first_stop("xxxx.x", 0.4, total=10) == 6
    assert first_stop("x", 0.4, total=2) == 1  # no minimum


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"quotas": {"count": -1}}, "data.quotas.count is -1"),
        ({"quotas": {"count": float("inf")}}, "data.quotas.count is inf"),
        ({"max_bad_share": 1.0}, "max_bad_share"),
        ({"shuffle": True}, "shuffle"),
    ],
)
def test_the_config_refuses_what_makes_no_sense(keys, words):
    with pytest.raises(ValidationError, match=words):
        DataConfig(**keys)
    assert DataConfig().quotas == {}
