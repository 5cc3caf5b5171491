"""A recipe in a file of the user's own, as docs/data.md has it, in an empty folder."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from recipe_helpers import encoded, lines, picture, read, shown

from data_recipes.arguments import UsageError
from data_recipes.custom import load_recipe
from sapo_vl.commands.cli import main

ROOT = Path(__file__).resolve().parents[2]


def example() -> tuple[str, str]:
    """The file and the command of docs/data.md."""
    text = (ROOT / "docs" / "data.md").read_text()
    code = re.search(r"```python\n(# my_recipe\.py\n.*?)```", text, re.S)
    command = re.search(r"^ +sapo-vl (recipe my_recipe\.py:build .*)$", text, re.M)
    assert code and command
    return code[1], command[1]


@pytest.mark.slow
def test_the_example_of_the_docs_in_an_empty_folder(tmp_path: Path) -> None:
    code, command = example()
    (tmp_path / "my_recipe.py").write_text(code)
    for i in range(5):
        (tmp_path / f"scan{i}.png").write_bytes(encoded(picture(i)))
    rows = [{"photo": f"scan{i}.png", "total": f"{i}.50"} for i in range(5)]
    rows += [{"photo": "../secret.png", "total": "1"}, {"photo": "scan1.png", "total": ""}]
    lines(tmp_path / "receipts.jsonl", rows)
    (tmp_path.parent / "secret.png").write_bytes(encoded(picture(9)))
    done = subprocess.run(
        [sys.executable, "-m", "sapo_vl", *command.split()],
        cwd=tmp_path, capture_output=True, text=True, timeout=300, check=False,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (out,) = [p for p in tmp_path.iterdir() if (p / "dataset_dict.json").exists()]
    assert f"wrote {out.name}" in done.stdout
    problems = read(out)
    assert {(p.task, p.reward) for p in problems} == {("receipts", "number")} and shown(problems[0])[0] == "IMAGE"
    notes = json.loads((out / "manifest.json").read_text())["notes"]
    left_out = {reason for split in ("train", "test") for reason in notes[split]["left_out"]}
    assert len(problems) == 5 and left_out == {"image outside", "malformed row"}


def test_a_recipe_file_that_cannot_be_used_is_explained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text("LIST = [1]\ndef make(out, *, seed: int = 0):\n    pass\n")
    with pytest.raises(UsageError, match=r"no recipe file 'other\.py'; write path/to/my_recipe\.py:build"):
        load_recipe("other.py:build")
    with pytest.raises(UsageError, match=r"mine\.py has no function 'build' \(it has: make\)"):
        load_recipe("mine.py:build")
    with pytest.raises(UsageError, match=r"no function 'LIST'"):
        load_recipe("mine.py:LIST")
    with pytest.raises(UsageError, match="no recipe file"):
        load_recipe("mine.py:")


def test_a_recipe_that_writes_nothing_is_told_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "idle.py").write_text("def build(out, *, seed: int = 0):\n    return {}\n")
    assert main(["recipe", f"{tmp_path}/idle.py:build", "--out", str(tmp_path / "o"), "seed=4"]) == 2
    assert "wrote no data set" in capsys.readouterr().err
