"""The launch of a stage: what its ranks find in their environment, and what is checked before they begin."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from helpers_launch import run_python

from data_recipes import RECIPES
from sapo_vl import launching
from sapo_vl.config import load_config
from sapo_vl.lengths import single_rows_over_budget
from sapo_vl.pipeline import build_tiny_model


@pytest.fixture
def threads_of_ranks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """OMP_NUM_THREADS as torchrun would hand it to the ranks of two launches, started without processes."""
    seen: list[str] = []
    monkeypatch.setattr(launching.torchrun, "run", lambda args: seen.append(os.environ["OMP_NUM_THREADS"]))
    monkeypatch.setattr(os, "cpu_count", lambda: 13)
    return seen


def test_threads_set_by_the_user_are_kept(threads_of_ranks, tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "7")
    launching.launch("train", load_config(None, ["processes=2", "rollout.prompts_per_step=8"]), tmp_path)
    assert threads_of_ranks == ["7"] and os.environ["OMP_NUM_THREADS"] == "7"


def test_cores_are_shared_by_the_ranks(threads_of_ranks, tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "")  # so that the value from before the test is put back
    monkeypatch.delenv("OMP_NUM_THREADS")
    launching.launch("train", load_config(None, ["processes=4", "rollout.prompts_per_step=8"]), tmp_path)
    assert threads_of_ranks == ["3"]  # 13 cores, 4 ranks
    assert [p.name for p in tmp_path.iterdir()] == [".lock"], "the config of the launch is taken away again"


@pytest.mark.slow
def test_under_a_launcher_of_the_users_own_the_input_is_checked_too(tmp_path):
    """Once, with the launcher's number of ranks, before anything is written."""
    RECIPES["visual_puzzles"](tmp_path / "data", seed=1, n_cold_start=6, n_train=6, n_test=3, image_size=32)
    build_tiny_model("dense", tmp_path / "data", tmp_path / "model", 0)
    out = tmp_path / "run"
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
    given = (f"data.path={tmp_path / 'data'}", f"model.path={tmp_path / 'model'}", "processes=1")
    command = ("-m", "sapo_vl", "sft", "--out", out, *given, "cold_start.batch_size=3")
    ended = run_python(*launcher, *command, timeout=120, check=False)
    assert ended.returncode != 0
    message = "sapo-vl sft: DataError: cold_start.batch_size=3 must be a multiple of the 2 ranks"
    assert ended.stdout.count(message) == 1
    assert not out.exists()


def test_a_response_that_no_split_fits_into_the_budget_is_told_with_the_fix():
    """10 tokens of 32 x 32 pixels are 40 patches: 100 + 50 + 40."""
    vision = SimpleNamespace(patch_size=16, spatial_merge_size=2)
    folder: Any = SimpleNamespace(config=SimpleNamespace(vision_config=vision))
    limits = ["model.max_prompt_tokens=100", "rollout.max_new_tokens=50", f"model.max_pixels={10 * 32 * 32}"]
    limits.append("model.min_pixels=1024")
    enough, short = (load_config(None, [*limits, f"batch.tokens_per_micro_batch={n}"]) for n in (190, 189))
    assert single_rows_over_budget(enough, folder) == ""
    told = single_rows_over_budget(short, folder)
    assert "batch.tokens_per_micro_batch=189" in told and "= 190." in told and "rollout.max_new_tokens=50" in told


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ("model.max_prompt_tokens=4096", False),
        ("model.max_prompt_tokens=2048", False),
        ("batch.tokens_per_micro_batch=8191", True),
        ("model.max_prompt_tokens=4097", True),
        ("rollout.max_new_tokens=2049", True),
        ("model.max_pixels=8388608", True),
    ],
)
def test_the_default_limits_are_not_told_of(setting: str, told: bool):
    """By default 4096 tokens of a prompt, 2048 of a response and as many patches as fit are over 8192."""
    vision = SimpleNamespace(patch_size=16, spatial_merge_size=2)
    folder: Any = SimpleNamespace(config=SimpleNamespace(vision_config=vision))
    assert bool(single_rows_over_budget(load_config(None, [setting]), folder)) is told
