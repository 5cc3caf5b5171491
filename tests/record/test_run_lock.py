"""Who may work in a run folder."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from sapo_vl.record import run_lock
from sapo_vl.record.run_lock import LOCK_FILE, SILENT_S, FolderTaken, hold_folder

HOLDER = """
import sys
from pathlib import Path
from sapo_vl.record.run_lock import hold_folder
with hold_folder(Path(sys.argv[1]), "stage train"):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_folder_has_one_holder_until_it_ends_whatever_it_dies_of(tmp_path: Path) -> None:
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        told = f"stage train, process {holder.pid} on {socket.gethostname()} since "
        with pytest.raises(FolderTaken, match=told), hold_folder(tmp_path, "stage sft"):
            pass
    finally:
        holder.kill()
        holder.wait()
    with hold_folder(tmp_path, "stage sft"):
        assert json.loads((tmp_path / LOCK_FILE).read_text())["pid"] == os.getpid()
    assert (tmp_path / LOCK_FILE).read_text() == "", "let go of"


def test_the_holders_own_processes_are_let_in_and_no_others(tmp_path: Path) -> None:
    other = tmp_path / "other"
    with hold_folder(tmp_path, "sapo-vl run"):
        with hold_folder(tmp_path, "stage train"):
            pass
        child = subprocess.run(
            [sys.executable, "-c", HOLDER, str(tmp_path)], stdin=subprocess.DEVNULL, capture_output=True, text=True
        )
        assert child.stdout == "held\n"
        with hold_folder(other, "stage eval"), hold_folder(tmp_path, "stage train"):
            pass
        stranger = subprocess.run(
            [sys.executable, "-c", HOLDER, str(tmp_path)], stdin=subprocess.DEVNULL, capture_output=True, text=True,
            env={k: v for k, v in os.environ.items() if k != "SAPO_VL_HOLDS"}, check=False,
        )  # fmt: skip
        assert "FolderTaken" in stranger.stderr
        assert os.environ["SAPO_VL_HOLDS"] == str(tmp_path), "the folder inside did not take it away"


def elsewhere(tmp_path: Path, ago_s: float) -> None:
    """A lock file as a machine that shares the disk but no locks has left it."""
    holder = {"host": "node-17", "pid": 4711, "what": "stage train", "since": "Mon Jan  5 10:00:00 2026"}
    path = tmp_path / LOCK_FILE
    path.write_text(json.dumps(holder))
    now = path.stat().st_mtime
    os.utime(path, (now - ago_s, now - ago_s))


def test_a_holder_on_another_machine_is_asked_after(tmp_path: Path) -> None:
    elsewhere(tmp_path, 0)
    with pytest.raises(FolderTaken, match="process 4711 on node-17 since Mon Jan"), hold_folder(tmp_path, "stage sft"):
        pass
    elsewhere(tmp_path, SILENT_S + 5)
    with hold_folder(tmp_path, "stage sft"):
        pass


def test_a_disk_without_locks_is_told_by_signs_of_life(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_locks(*_: object) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(run_lock.fcntl, "flock", no_locks)
    with hold_folder(tmp_path, "stage train"):
        monkeypatch.delenv("SAPO_VL_HOLDS")
        with pytest.raises(FolderTaken, match=f"process {os.getpid()} on "), hold_folder(tmp_path, "stage train"):
            pass
        monkeypatch.setenv("SAPO_VL_HOLDS", str(tmp_path))
    with hold_folder(tmp_path, "stage train"):  # let go of: free at once
        pass


def test_a_cut_off_lock_file_holds_nobody(tmp_path: Path) -> None:
    (tmp_path / LOCK_FILE).write_text('{"host": "node-17", "pi')
    with hold_folder(tmp_path, "stage sft"):
        pass
