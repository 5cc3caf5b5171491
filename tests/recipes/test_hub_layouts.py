"""Recipes on sets that lie on the hub in a way of their own: columns, archives and configs of the real ones."""

import json
import zipfile
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa
import pytest
from recipe_helpers import drawing, encoded, lines, parquet, picture, read, shown

from data_recipes import RECIPES

TEXT = pa.string()


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")


def left_out(manifest: dict[str, Any]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for notes in manifest["notes"].values():
        for reason, count in notes["left_out"].items():
            counts[reason] = counts.get(reason, 0) + count
    return counts


@pytest.mark.parametrize("form", ["zip", "folder", "hub"])
def test_virl39k_as_its_authors_publish_it(form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "ViRL39K"
    folder.mkdir()
    rows = [
        {"question": "<image>What is x?", "answer": r"\boxed{2}", "image": ["images/a-0.png"]},
        {"question": "<image>\nCompare both.", "answer": r"\boxed{7}", "image": ["images/a-1.png", "images/b-2.png"]},
        {"question": "<image> and <image>?", "answer": r"\boxed{5}", "image": ["images/b-2.png", "images/c-3.png"]},
        {"question": "<image><image>Three?", "answer": r"\boxed{9}", "image": ["images/a-0.png"] * 3},
    ]
    more = [{"qid": f"q{i}", "category": "Math", "PassRate_7BBase": 0.5, **row} for i, row in enumerate(rows)]
    datasets.Dataset.from_list(more).to_parquet(str(folder / "39Krelease.parquet"))
    pictures = {f"images/{name}.png": encoded(picture(i)) for i, name in enumerate(["a-0", "a-1", "b-2", "c-3"])}
    if form == "folder":
        (folder / "images").mkdir()
        for name, data in pictures.items():
            (folder / name).write_bytes(data)
    else:
        with zipfile.ZipFile(folder / "images.zip", "w") as file:
            for name, data in pictures.items():
                file.writestr(name, data)
    if form == "hub":
        monkeypatch.setattr("sapo_vl.data.hub.hf_hub_download", lambda repo, name, repo_type: str(folder / name))
    source = {} if form == "hub" else {"source": str(folder)}
    manifest = RECIPES["virl39k"](tmp_path / "out", test_rows=1, max_bad_share=0.5, seed=drawing(0, 4), **source)
    assert [(p.answer, shown(p)) for p in read(tmp_path / "out")] == [
        ("2", ["IMAGE", "What is x?"]),
        ("7", ["IMAGE", "IMAGE", "Compare both."]),  # both pictures where the one marker stands
        ("5", ["IMAGE", "and", "IMAGE", "?"]),
    ]
    assert left_out(manifest) == {"malformed row": 1}, "two markers for three pictures"


def test_code_problems_in_the_columns_of_open_r1(tmp_path: Path) -> None:
    cases = [{"fn_name": None, "input": "1 2\n", "output": "3\n", "type": "stdin_stdout"}]
    case = pa.struct([(name, TEXT) for name in ("fn_name", "input", "output", "type")])
    schema = {
        "source": TEXT, "task_type": TEXT, "in_source_id": TEXT, "problem_statement": TEXT,
        "gold_standard_solution": TEXT, "problem_id": TEXT, "metadata": pa.struct([("difficulty", TEXT)]),
        "verification_info": pa.struct([("language", TEXT), ("test_cases", pa.list_(case))]),
    }  # fmt: skip
    rows = [
        {"source": "s", "task_type": "verifiable_code", "in_source_id": str(i), "problem_statement": f"Add, case {i}.",
         "gold_standard_solution": f"```python\nprint(sum(map(int, input().split())))  # {i}\n```",
         "problem_id": f"vcp_{i}", "metadata": {"difficulty": "easy"},
         "verification_info": {"language": "python", "test_cases": cases}}
        for i in range(3)
    ]  # fmt: skip
    manifest = RECIPES["code_problems"](
        tmp_path / "out", source=parquet(tmp_path / "s", schema, train=rows), test_rows=1
    )
    problems = read(tmp_path / "out")
    assert [shown(p) for p in problems] == [[f"Add, case {i}."] for i in range(3)] and left_out(manifest) == {}
    assert problems[0].meta["tests"] == [{"input": "1 2\n", "output": "3\n"}]


def test_dapo_math_takes_a_config(tmp_path: Path) -> None:
    folder = tmp_path / "set"
    for config, number in (("all", 3), ("en", 2)):
        rows = [
            {"prompt": f"What is {i} + {i}?", "solution": str(2 * i), "source_prompt": "x"}
            for i in range(1, number + 1)
        ]
        (folder / config).mkdir(parents=True)
        datasets.Dataset.from_list(rows).to_parquet(str(folder / config / "train-00000-of-00001.parquet"))
    listed = "".join(f"- config_name: {c}\n  data_files: {c}/train-*\n" for c in ("all", "en"))
    (folder / "README.md").write_text(f"---\nconfigs:\n{listed}---\n")
    for config, answers in (("all", ["2", "4", "6"]), ("en", ["2", "4"])):
        out = tmp_path / f"out-{config}"
        manifest = RECIPES["dapo_math"](out, source=str(folder), config=config, test_rows=1)
        assert sorted(p.answer for p in read(out)) == answers
        assert (
            manifest["arguments"]["config"]
            == config
            == json.loads((out / "manifest.json").read_text())["arguments"]["config"]
        )


def test_a_rule_of_many_cases_keeps_the_first_hundred(tmp_path: Path) -> None:
    """All of them share total_s in training; a benchmark may have more."""
    given = {"inputs": ["1\n"] * 150, "outputs": ["1\n"] * 150}
    rows = [{"problem": f"Echo {i}.", "solution": "print(input())", "tests": json.dumps(given)} for i in range(2)]
    RECIPES["code_problems"](
        tmp_path / "out", source=lines(tmp_path / "r.jsonl", rows), test_rows=1, check_golds=False
    )  # fmt: skip
    assert {len(p.meta["tests"]) for p in read(tmp_path / "out")} == {100}
