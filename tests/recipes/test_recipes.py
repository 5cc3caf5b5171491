"""The splits of visual_puzzles: no leaks, equal shares, same seed same bytes. And what all recipes share."""

import hashlib
import inspect
import json
import re
from pathlib import Path

import datasets
import numpy as np
import pytest

from data_recipes import RECIPES
from data_recipes.visual_puzzles.recipe import build, generate, parse_tasks
from sapo_vl.data.problem_set import ProblemSet
from sapo_vl.types import Problem

PAIRED = ("count", "compare", "ground", "spatial")
COLOUR_WORDS = ("red", "green", "blue", "yellow", "cyan", "purple")
SMALL = {"n_cold_start": 60, "n_train": 240, "n_test": 48}
MIXED = "count,compare:1,ground:1,spatial,chart,grid,arith,text_compare,text_arith:2"


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("puzzles") / "set"
    build(out, seed=11, tasks=MIXED, **SMALL)
    return out


def rows(folder: Path, split: str) -> list[Problem]:
    problems = ProblemSet(folder, split)
    return [problems.get(i) for i in range(len(problems))]


def hash_of(problem: Problem) -> int:
    text = json.dumps(problem.meta["scene"], sort_keys=True, separators=(",", ":"))
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "big")


def test_no_test_scene_is_trained_on(folder):
    test = {hash_of(p) for p in rows(folder, "test")}
    trained = {hash_of(p) for split in ("cold_start", "train") for p in rows(folder, split)}
    assert len(test) == SMALL["n_test"]  # and none comes twice
    assert {h % 10 for h in test} == {0}
    assert {h % 10 for h in trained} == set(range(1, 10))
    # Another seed trains on other scenes, and still on none of these.
    other = {hash_of(p) for p in generate(parse_tasks(MIXED, 0), "train", 200, seed=12, image_size=64)}
    assert not other & test and len(other - trained) > 150


def pairs_in(problems: list[Problem]) -> set[tuple[str, str]]:
    return {(item["colour"], item["shape"]) for p in problems for item in p.meta["scene"].get("objects", [])}


def test_composition_asks_about_pairs_that_are_nowhere_else(folder):
    usual = {split: pairs_in(rows(folder, split)) for split in ("cold_start", "train", "test")}
    unseen = pairs_in(rows(folder, "test_composition"))
    assert not unseen & set().union(*usual.values())
    assert len(unseen) == 6 and {colour for colour, _ in unseen} == set(COLOUR_WORDS)
    assert len(usual["train"]) == 12 and {shape for _, shape in unseen} == {"disc", "square", "triangle"}
    assert {p.task for p in rows(folder, "test_composition")} == set(PAIRED)
    for name in ("count", "ground"):  # level 2 asks for a pair and shows usual pairs beside it
        for problem in generate({name: 2}, "test_composition", 40, seed=3, image_size=64):
            assert tuple(problem.meta["scene"]["target"]) in unseen
            assert pairs_in([problem]) - {tuple(problem.meta["scene"]["target"])} <= usual["train"]


def test_blank_rows_are_the_test_rows_without_a_picture(folder):
    test = {p.id: p for p in rows(folder, "test") if p.images}
    blank = rows(folder, "test_blank")
    assert [p.id for p in blank] == [f"{id}#blank" for id in test]
    for twin in blank:
        original = test[twin.id.removesuffix("#blank")]
        assert (twin.messages, twin.answer, twin.meta) == (original.messages, original.answer, original.meta)
        assert len(np.unique(np.asarray(twin.images[0]).reshape(-1, 3), axis=0)) == 1
    assert {p.task for p in rows(folder, "test")} - {p.task for p in blank} == {"text_compare", "text_arith"}


def test_tasks_share_a_split_equally(folder):
    manifest = json.loads((folder / "manifest.json").read_text())
    for split, size in (("cold_start", 60), ("train", 240), ("test", 48)):
        counts = manifest["rows"][split]
        assert sum(counts.values()) == size and len(counts) == 9
        assert max(counts.values()) - min(counts.values()) <= 1
    assert manifest["arguments"]["tasks"] == MIXED and manifest["arguments"]["seed"] == 11
    assert {p.meta["scene"]["level"] for p in rows(folder, "train") if p.task == "compare"} == {1}
    assert len({p.id for p in rows(folder, "train")}) == 240


def digest(folder: Path) -> dict[str, str]:
    """A digest of all cells of every split."""
    found = {}
    for split in ("cold_start", "train", "test", "test_blank", "test_composition"):
        table = datasets.load_from_disk(str(folder / split)).with_format("arrow")[:]
        found[split] = hashlib.sha256(repr(table.to_pylist()).encode()).hexdigest()
    return found


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(folder, tmp_path):
    build(tmp_path / "again", seed=11, tasks=MIXED, **SMALL)
    build(tmp_path / "other", seed=12, tasks=MIXED, **SMALL)
    first, again, other = map(digest, (folder, tmp_path / "again", tmp_path / "other"))
    assert first == again
    assert all(first[split] != other[split] for split in first)


def test_a_task_has_the_same_rows_whatever_is_built_beside_it():
    together = generate({"ground": 1, "count": 0}, "train", 20, seed=4, image_size=64)
    alone = generate({"count": 0}, "train", 10, seed=4, image_size=64)
    assert [p.meta for p in together if p.task == "count"] == [p.meta for p in alone]


def test_text_tasks_alone_make_a_set_without_pictures(tmp_path):
    manifest = build(tmp_path / "s", tasks="text_compare,text_arith:1", n_cold_start=4, n_train=4, n_test=4)
    assert set(manifest["rows"]) == {"cold_start", "train", "test"}
    assert all(not p.images and len(p.messages[0]["content"]) == 1 for p in rows(tmp_path / "s", "train"))


# --- arguments
# ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"tasks": "count,chess"}, "'chess'; the tasks are count, compare"),
        ({"tasks": "count,count:1"}, "names 'count' twice"),
        ({"tasks": "count:hard"}, "level of 'count' is 'hard'"),
        ({"tasks": "count:3"}, "'count' has no level 3; its levels are 0 to 2"),
        ({"level": -1}, "no level -1"),
        ({"image_size": 50}, "image_size is 50"),
        ({"image_size": 16}, "image_size is 16"),
        ({"n_train": 2}, "n_train is 2; every one of the 3 tasks"),
        (
            {"tasks": "text_compare", "n_train": 9, "n_cold_start": 9, "n_test": 1500},
            "too few scenes for 1500",
        ),
    ],
)
def test_arguments_that_make_no_sense_are_explained(arguments, words, tmp_path):
    with pytest.raises(ValueError, match=re.escape(words)):
        build(tmp_path / "s", **arguments)
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_can_be_called_from_the_command_line(name):
    out, *options = inspect.signature(RECIPES[name], eval_str=True).parameters.values()
    assert out.annotation is Path
    assert {option.kind for option in options} == {inspect.Parameter.KEYWORD_ONLY}
    assert all(option.annotation in (int, float, str, bool) for option in options)
    assert all(type(option.default) is option.annotation for option in options)
    assert options[0].name == "seed"
