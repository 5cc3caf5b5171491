"""`--out` that cannot be written: one line and status 2 from every command, before any of its work."""

from __future__ import annotations

import errno
import os
import re
import tempfile
from pathlib import Path
from typing import Any

import pytest

from sapo_vl import __version__
from sapo_vl.commands.cli import main

NEEDS = {
    "run": ["run", "--out", "OUT"],
    "train": ["train", "--out", "OUT"],
    "sft": ["sft", "--out", "OUT"],
    "eval": ["eval", "--out", "OUT"],
    "reproduce": ["reproduce", "--config", "none.yaml", "--out", "OUT"],
    "recipe": ["recipe", "visual_puzzles", "--out", "OUT"],
    "init-tiny": ["init-tiny", "--data", "none", "--out", "OUT"],
    "difficulty": ["data", "difficulty", "none", "--out", "OUT"],
    "fetch-images": ["data", "fetch-images", "none", "--hosts", "a.b", "--out", "OUT"],
    "contamination": ["data", "contamination", "none", "--against", "aime25", "--out", "OUT"],
    "list": ["data", "contamination", "none", "--against", "aime25", "--list", "OUT"],
    "reward": ["reward", "score", "word", "none.jsonl", "--out", "OUT"],
}
FILES = ("list", "reward")  # these write a file, the others a folder


@pytest.fixture(autouse=True)
def no_launcher(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "OUT_DIR"):
        monkeypatch.delenv(name, raising=False)


def refusal(name: str, out: Path | str, capsys: pytest.CaptureFixture[str]) -> str:
    assert main([str(out) if word == "OUT" else word for word in NEEDS[name]]) == 2
    printed = capsys.readouterr()
    (line,) = printed.err.splitlines()
    assert printed.out == "" and re.match(rf"sapo-vl [a-z-]+: UsageError: --(out|list) {re.escape(str(out))}\b", line)
    return line


@pytest.mark.parametrize("name", NEEDS)
def test_a_place_below_a_file(name, tmp_path, capsys):
    file = tmp_path / "notes.txt"
    file.write_text("mine")
    for out in (file / "run", file / "deeper" / "run"):
        assert f"{file} is a file, not a folder" in refusal(name, out, capsys)
    assert file.read_text() == "mine" and list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("name", NEEDS)
def test_a_file_where_a_folder_is_wanted_and_the_other_way_round(name, tmp_path, capsys):
    file = tmp_path / "notes.txt"
    file.write_text("mine")
    if name in FILES:
        assert f"{tmp_path} is a folder; name a file" in refusal(name, tmp_path, capsys)
    else:
        assert re.search("is a file, not a folder|exists already", refusal(name, file, capsys))
    assert file.read_text() == "mine" and list(tmp_path.iterdir()) == [file]


@pytest.mark.parametrize("name", NEEDS)
def test_a_folder_that_cannot_be_written(name, tmp_path, capsys, monkeypatch):
    """Refused by the disk itself: root, whom permissions do not stop, may run the tests."""

    def mkdtemp(*_: Any, dir: Any = None, **__: Any) -> str:
        raise OSError(errno.EROFS, os.strerror(errno.EROFS), str(dir))

    monkeypatch.setattr(tempfile, "mkdtemp", mkdtemp)
    line = refusal(name, tmp_path / "a" / "b", capsys)
    assert f"nothing can be written to {tmp_path} (Read-only file system)" in line


def test_scores_go_to_a_folder_that_is_made_for_them(tmp_path, capsys):
    lines = tmp_path / "responses.jsonl"
    lines.write_text('{"id": "a", "response": "<answer>red</answer>", "answer": "red"}\n')
    out = tmp_path / "new" / "scores.jsonl"
    assert main(["reward", "score", "word", str(lines), "--out", str(out), "--workers", "1"]) == 0
    assert '"score": 1.0' in out.read_text()


def test_the_version_is_printed(capsys):
    with pytest.raises(SystemExit) as stop:
        main(["--version"])
    assert stop.value.code == 0
    assert capsys.readouterr().out == f"sapo-vl {__version__}\n"
