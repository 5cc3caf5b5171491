"""What a run says about the code and the packages that it ran with."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
import torch

from sapo_vl.session import versions


def test_versions_name_the_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    root = Path(__file__).parents[1]
    head = subprocess.run(["git", "-C", str(root), "rev-parse", "HEAD"], capture_output=True, text=True, check=False)
    found = versions()
    assert found["torch"] == torch.__version__.split("+")[0] or found["torch"] == torch.__version__
    assert found["commit"].removesuffix("+changes") == head.stdout.strip()  # "" where the tests are no checkout
    monkeypatch.setenv("PATH", "")
    assert versions()["commit"] == "", "a machine without git"
