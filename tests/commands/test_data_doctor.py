"""`sapo-vl data doctor`: a set as a build or an evaluation would meet it, in a screen, with an exit status."""

import json
from pathlib import Path
from typing import Any

import datasets
import pytest
from benchmark_sets import write_set
from recipe_helpers import lines

from data_recipes.doctor import kind_of, spread
from sapo_vl.benchmarks import BENCHMARKS
from sapo_vl.commands import data_doctor
from sapo_vl.commands.cli import main


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


@pytest.fixture
def doctor(capsys: pytest.CaptureFixture[str]) -> Any:
    def look(*words: object) -> tuple[int, str]:
        status = main(["data", "doctor", *map(str, words), "--workers", "1"])
        out, err = capsys.readouterr()
        return status, " ".join((out + err).split())

    return look


def test_rows_of_a_benchmark_by_reason(doctor: Any, tmp_path: Path) -> None:
    rows = [
        {"problem": "Find n.", "answer": "12"},
        {"problem": "Find m.", "answer": "x"},  # no integer: broken
        {"problem": "Find k.", "answer": "70368744177664"},
        {"problem": "", "answer": "5"},
    ]
    status, text = doctor("beyondaime", f"source={lines(tmp_path / 'rows.jsonl', rows)}")
    assert status == 0
    assert "benchmark beyondaime" in text and "rows 4 looked at 4" in text, "no number is expected of a local file"
    assert "columns problem (text), answer (text)" in text
    assert "problems 2" in text and "bad rows 2 malformed row" in text and ": score 1" in text
    assert "for example row 1: " in text and "50.0% of the rows are bad" in text
    assert "verdict a full run would start and end" in text


def test_what_would_not_run(doctor: Any, tmp_path: Path) -> None:
    status, text = doctor("beyondaime", f"source={lines(tmp_path / 'a.jsonl', [{'problem': '?', 'gold': '1'}])}")
    assert status == 1 and "STOPS" in text and "lacks the columns ['answer']; it has ['problem', 'gold']" in text
    status, text = doctor("beyondaime", f"source={lines(tmp_path / 'b.jsonl', [{'problem': '?', 'answer': 'x'}])}")
    assert status == 1 and "STOPS none of these rows can be asked" in text
    status, text = doctor("beyondaime")
    assert (
        status == 1
        and "STOPS source 'ByteDance-Seed/BeyondAIME' cannot be opened: there is no copy in the cache" in text
    )
    for wrong, words in (
        (["chess"], "no recipe or benchmark 'chess' that reads rows of others; recipes: geometry3k"),
        (["MathVison"], "'MathVison' that reads rows of others; did you mean mathvision"),
        (["MMMU/MMMU_Pro"], "; did you mean mmmu_pro_vision or mmmu_pro_standard or mmmu_pro_standard4? recipes: "),
        (["aime25", "folder=x"], "'folder=x'; its arguments are source, split, config"),
        (["aime25", "max_bad_share=lots"], "max_bad_share='lots' must be a number from 0 to 1"),
        (["mmk12", "max_bad_share=nan"], "max_bad_share='nan' must be a number from 0 to 1"),
        (["aime25", "--sample", "-1"], "--sample must be 0 or more"),
    ):
        status, text = doctor(*wrong)
        assert status == 2 and words in text


def test_a_set_without_golds_is_explained_in_a_line(doctor: Any, tmp_path: Path) -> None:
    rows = [{"problem": f"Find n, {i}.", "answer": gold} for i, gold in enumerate(("?", "", None, "?"))]
    source = lines(tmp_path / "test.jsonl", rows)
    status, text = doctor("beyondaime", f"source={source}", "split=validation")
    assert status == 1 and "left out 4 no gold" in text and "STOPS none of these rows can be asked" in text
    assert "note 4 of 4 rows have a blank gold (none, or '', '?', '___'): a split whose answers are kept back" in text
    assert f"{source} is one file: all its rows are read, whatever the split" in text
    rows.append({"problem": "Find m.", "answer": "5"})
    status, text = doctor("beyondaime", f"source={lines(tmp_path / 'most.jsonl', rows)}")
    assert status == 0 and "4 of 5 rows have a blank gold" in text

    rows = [{"question": f"What is {i}?", "final_answer": "?", "topic": "sums"} for i in range(4)]
    source = lines(tmp_path / "recipe.jsonl", rows)
    status, text = doctor("deepmath", f"source={source}", "train_from=other")
    assert status == 1 and "'final_answer' is blank (none, or '', '?', '___') in all 4 rows seen here" in text
    assert f"{source} is one file: all its rows are read, whatever the split, and a build draws its test rows" in text
    rows[2]["final_answer"] = "4"
    status, text = doctor("deepmath", f"source={lines(tmp_path / 'one.jsonl', rows)}")
    assert "is blank" not in text


def test_golds_that_their_own_rule_cannot_take(doctor: Any, tmp_path: Path) -> None:
    (tmp_path / "my_bench.py").write_text(
        "from sapo_vl.benchmarks import Benchmark, LeftOut\n"
        "from sapo_vl.types import Problem\n"
        "def problems(row):\n"
        "    if row.cells['gold'] == '':\n"
        "        raise LeftOut('no gold')\n"
        "    yield Problem(id=f'mine-{row.index}', task='t', messages=({'role': 'user', 'content': 'x'},),\n"
        "                  answer=row.cells['gold'], reward=row.cells['rule'])\n"
        "MINE = Benchmark(name='mine', source='rows.jsonl', split='test', licence='CC0', columns=('gold', 'rule'),\n"
        "                 problems=problems, rows=9)\n"
    )
    rows = [("12", "number"), ("twelve apples", "number"), ("", "number"), ("3", "count"), ("yes", "judge")]
    source = lines(tmp_path / "rows.jsonl", [{"gold": gold, "rule": rule} for gold, rule in rows])
    status, text = doctor(f"{tmp_path / 'my_bench.py'}:MINE", f"source={source}")
    assert status == 0 and "left out 1 no gold" in text
    for words in ("1 number: score 1", "1 number: gold unparsable", "1 count: score 1", "1 judge: not asked"):
        assert words in text, words
    assert "for example mine-1: gold unparsable, 'twelve apples'" in text
    assert "25.0% of the golds fail" in text and "the rule 'judge' cannot be asked without settings" in text


def test_splits_of_a_recipe(doctor: Any, tmp_path: Path) -> None:
    def rows(numbers: range) -> list[dict[str, str]]:
        return [{"question": f"What is {i} + {i}?", "final_answer": str(2 * i), "topic": "sums"} for i in numbers]

    source = lines(tmp_path / "rows.jsonl", [*rows(range(30)), *rows(range(2)), {"question": "?", "topic": "none"}])
    status, text = doctor("deepmath", f"source={source}", "max_bad_share=0.1")
    assert status == 0 and "recipe deepmath, train" in text and "rows 33 looked at 33" in text
    assert "problems 30" in text and "2 duplicate" in text and "bad rows 1 malformed row" in text
    assert "30 score 1" in text
    status, text = doctor("deepmath", f"source={source}")
    assert status == 1 and "STOPS 1 of 33 rows are bad, over max_bad_share=0.01; repair the data" in text
    status, text = doctor("deepmath", f"source={source}", "--sample", "4", "max_bad_share=1.0")
    assert status == 0 and "looked at 4, evenly spread" in text


def test_a_name_that_a_recipe_and_a_benchmark_share(doctor: Any, tmp_path: Path) -> None:
    source = write_set("geometry3k", tmp_path / "set", only_good=True)
    status, text = doctor("geometry3k", f"source={source}", "max_bad_share=0.9")
    assert "recipe geometry3k, train" in text and "benchmark geometry3k" in text
    assert "images (list of image)" in text and status == 0


def test_numbers_that_are_expected_are_of_sets_that_there_are() -> None:
    assert data_doctor.ROWS.keys() <= BENCHMARKS.keys()


def test_samples_and_types() -> None:
    assert spread(10, 0) == spread(10, 20) == list(range(10)) and spread(10, 3) == [0, 3, 6]
    cells = [None, 1, 1.5, True, "a", {"bytes": b"", "path": None}, {"a": 1}, [], [1, "a"], json]
    assert [kind_of(cell) for cell in cells] == [
        "null", "whole number", "number", "yes or no", "text", "image", "object", "empty list",
        "list of text or whole number", "module",
    ]  # fmt: skip
