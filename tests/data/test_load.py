"""Many rows and large pictures: what is held in memory goes with what is looked at, not with what there is."""

from __future__ import annotations

import io
import json
import pickle
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
from PIL import Image

from sapo_vl.data import images as images_module
from sapo_vl.data.images import KEPT_PIXELS, Pictures, blank_like
from sapo_vl.data.problem_set import FEATURES, BadRow, ProblemSet, blank_twin, problem_from_row
from sapo_vl.data.sampler import QuotaSampler


def png(width: int, height: int, colour: tuple[int, int, int] = (1, 2, 3)) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (width, height), colour).save(buffer, "PNG")
    return buffer.getvalue()


def row(*files: bytes, name: str = "a", task: str = "t") -> dict[str, Any]:
    content = [{"type": "image"}] * len(files)
    cells = [{"bytes": file, "path": None} for file in files]
    messages = json.dumps([{"role": "user", "content": content}])
    texts = {"answer": "1", "solution": "", "reward": "", "meta": "{}"}
    return {"id": name, "task": task, "images": cells, "messages": messages, **texts}


LARGE = (2500, 2000)  # 15 MB decoded
assert LARGE[0] * LARGE[1] > KEPT_PIXELS


def test_large_pictures_are_kept_as_their_files() -> None:
    small, large = png(40, 30), png(*LARGE, (9, 8, 7))
    problem = problem_from_row(row(small, large, small))
    assert isinstance(problem.images, Pictures) and len(problem.images) == 3
    assert [image.size for image in problem.images] == [(40, 30), LARGE, (40, 30)]
    assert problem.images[1].getpixel((7, 7)) == (9, 8, 7) and problem.images[-1].size == (40, 30)
    assert [image.size for image in problem.images[1:]] == [LARGE, (40, 30)]
    assert len(pickle.dumps(problem)) < 100_000, "decoded it would be 15 MB"
    assert isinstance(problem_from_row(row(small, small)).images, tuple)


def test_the_blank_twin_of_a_large_picture_is_a_file_too() -> None:
    twin = blank_twin(problem_from_row(row(png(*LARGE, (9, 8, 7)))))
    assert len(pickle.dumps(twin)) < 100_000
    assert (twin.images[0].size, twin.images[0].getpixel((0, 0))) == (LARGE, (9, 8, 7))


def test_pictures_of_a_row_are_bounded_together(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A few kilobytes can hold a hundred pictures of 50 megapixels."""
    monkeypatch.setattr("sapo_vl.data.problem_set.MAX_ROW_PIXELS", 2500)
    split = datasets.Dataset.from_list([row(png(50, 20), png(50, 20)), row(*[png(50, 20)] * 3)], features=FEATURES)
    datasets.DatasetDict({"train": split}).save_to_disk(str(tmp_path / "data"))
    rows = ProblemSet(tmp_path / "data", "train")
    assert len(rows.get(0).images) == 2
    with pytest.raises(BadRow, match=r"image 2: with it the row has 3000 pixels, over the limit of 2500") as bad:
        rows.get(1)
    assert bad.value.kind == "image too many pixels"
    assert images_module.MAX_ROW_PIXELS == 400_000_000


def test_the_blank_colour_is_the_most_frequent_one(seed: int) -> None:
    """Of equally frequent ones the largest, as (red, green, blue): by another way of counting."""
    rng = np.random.default_rng(seed)
    for _ in range(50):
        pixels = rng.choice([0, 1, 255], size=(*rng.integers(1, 6, 2), 3)).astype(np.uint8)
        image = Image.fromarray(pixels)
        colours = image.getcolors(30)
        assert colours is not None
        blank = blank_like(image)
        assert blank.size == image.size and blank.getcolors() == [(image.width * image.height, max(colours)[1])]


def test_a_word_that_many_rows_have_is_in_memory_once(tmp_path: Path) -> None:
    rows = [row(name=f"r{i}", task=("count", "chart")[i % 2]) for i in range(2000)]
    rows[7] |= {"reward": "number"}
    rows[8] |= {"reward": None}
    datasets.DatasetDict({"train": datasets.Dataset.from_list(rows, features=FEATURES)}).save_to_disk(
        str(tmp_path / "d")
    )
    problems = ProblemSet(tmp_path / "d", "train")
    assert problems.tasks == ["count", "chart"] * 1000
    assert len({id(task) for task in problems.tasks}) <= 2 * len(problems._rows.data.column("task").chunks)
    assert problems.rewards == [("chart", ""), ("chart", "number"), ("count", "")]


def test_a_spare_row_is_found_as_it_was_among_few_rows(seed: int) -> None:
    """The rule, written down over lists."""
    rng = np.random.default_rng(seed)
    tasks = [("a", "b")[i] for i in rng.integers(0, 2, 40)] + ["a", "b"] * 4
    sampler = QuotaSampler(tasks, {}, 8, seed)
    batch = next(sampler)
    bad = batch[0]
    others = [i for i, task in enumerate(tasks) if task == tasks[bad] and i != bad]
    found = [sampler.spare(bad, attempt, exclude=batch) for attempt in range(len(others))]
    assert sorted(found) == others, "every other row of the task, once"
    assert {*found[: len(set(others) - set(batch))]} == set(others) - set(batch), "those of the batch come last"
