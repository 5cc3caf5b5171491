"""The launch of a stage: what its ranks find in their environment, and how a failed rank is reported."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from sapo_vl import stages
from sapo_vl.config import load_config


@pytest.fixture
def threads_of_ranks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """OMP_NUM_THREADS as torchrun would hand it to the ranks of two launches, started without processes."""
    seen: list[str] = []
    monkeypatch.setattr(stages.torchrun, "run", lambda args: seen.append(os.environ["OMP_NUM_THREADS"]))
    monkeypatch.setattr(os, "cpu_count", lambda: 13)
    return seen


def test_threads_set_by_the_user_are_kept(threads_of_ranks, tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    stages.launch("train", load_config(None, ["processes=2", "rollout.prompts_per_step=8"]), tmp_path)
    assert threads_of_ranks == ["7"] and os.environ["OMP_NUM_THREADS"] == "7"


def test_cores_are_shared_by_the_ranks(threads_of_ranks, tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "")  # so that the value from before the test is put back
    monkeypatch.delenv("OMP_NUM_THREADS")
    stages.launch("train", load_config(None, ["processes=4", "rollout.prompts_per_step=8"]), tmp_path)
    assert threads_of_ranks == ["3"]  # 13 cores, 4 ranks
    assert list(tmp_path.iterdir()) == [], "the config of the launch is taken away again"
