"""What killed processes leave half done in a run folder."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sapo_vl.record import files
from sapo_vl.record.files import delete, replace, sweep, write_text


def folder_with(path: Path, content: str) -> Path:
    path.mkdir()
    (path / "file").write_text(content)
    return path


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_what_is_half_done_goes_and_all_else_stays(tmp_path: Path) -> None:
    stays = ["final", ".lock", ".begun.train", ".final.writing", "x.12.tmp", "superseded_step_00000001", ".12.tmp"]
    goes = [".final.writing-77", ".summary.json.77.tmp", ".step_00000001.deleting-77", ".writing_step_00000002"]
    for name in (*stays, *goes):
        folder_with(tmp_path / name, name)
    (tmp_path / ".metrics.jsonl.4.tmp").write_text("half")
    sweep(tmp_path)
    assert names(tmp_path) == sorted(stays)
    sweep(tmp_path / "is_not_there")


def test_only_what_is_named_goes(tmp_path: Path) -> None:
    for name in (".final.writing-77", ".mine.writing-77"):
        folder_with(tmp_path / name, name)
    sweep(tmp_path, ["final"])
    assert names(tmp_path) == [".mine.writing-77"], "such as an export of somebody else"


@pytest.mark.parametrize("at", [1, 2, 3])
def test_a_folder_is_never_lost_while_it_is_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    """Killed before the first and the second rename, and before the old one is deleted."""
    final, new = folder_with(tmp_path / "final", "old"), folder_with(tmp_path / "new", "new")
    passed = [0]

    def counted(original):
        def call(*args: object) -> None:
            passed[0] += 1
            if passed[0] == at:
                raise KeyboardInterrupt
            original(*args)

        return call

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(files.os, "rename", counted(os.rename))
        patch.setattr(files.shutil, "rmtree", counted(files.shutil.rmtree))
        replace(new, final)
    sweep(tmp_path)
    assert (final / "file").read_text() == ("new" if at == 3 else "old")
    assert names(tmp_path) == (["final"] if at == 3 else ["final", "new"])


def test_what_is_deleted_is_never_found_with_a_part_of_its_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = folder_with(tmp_path / "step_00000001", "x")

    def half(path: Path) -> None:
        assert not folder.exists() and (path / "file").exists()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(files.shutil, "rmtree", half)
        delete(folder)
    sweep(tmp_path)
    assert names(tmp_path) == []


def test_a_text_is_the_old_or_the_new_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "run.yaml"
    write_text(path, "old")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(files.os, "fsync", lambda _: (_ for _ in ()).throw(KeyboardInterrupt))
        write_text(path, "new")
    assert path.read_text() == "old"
    sweep(tmp_path)
    assert names(tmp_path) == ["run.yaml"]
    write_text(path, "new")
    assert path.read_text() == "new"
