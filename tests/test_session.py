"""What a run says about the code and the packages that it ran with."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import torch

from sapo_vl import session
from sapo_vl.session import versions


def test_versions_name_the_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    root = Path(__file__).parents[1]
    head = subprocess.run(["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    found = versions()
    assert found["torch"] == torch.__version__.split("+")[0] or found["torch"] == torch.__version__
    assert found["commit"].removesuffix("+changes") == head.stdout.strip()  # "" where the tests are no checkout
    monkeypatch.setenv("PATH", "")
    assert versions()["commit"] == "", "a machine without git"


def test_an_installed_package_does_not_take_the_commit_of_what_it_is_installed_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An environment often lies within the repository of its user."""
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    git = ["git", "-C", str(tmp_path), "-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run([*git, "commit", "-q", "--allow-empty", "-m", "theirs"], check=True)
    (tmp_path / "site-packages" / "sapo_vl").mkdir(parents=True)
    monkeypatch.setattr(session, "__file__", str(tmp_path / "site-packages" / "sapo_vl" / "session.py"))
    assert versions()["commit"] == ""
