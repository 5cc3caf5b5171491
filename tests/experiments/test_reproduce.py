"""A small reproduction for real: start, two arms of figure 4 for two steps, figures, report."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers_launch import run_python

from sapo_vl.record.run_log import read_metrics

CONFIG = Path(__file__).parents[2] / "configs" / "experiments" / "tiny.yaml"
# Without a cold start: what is shown is that everything works, not that anything is learned. An untrained model never
# answers, so another reward gives it something to learn from.
REWARD = """
from rewards import RewardInput, RewardOutput


def length(x: RewardInput) -> RewardOutput:
    return RewardOutput(len(x.text) % 7 / 6)
"""
SMALL = (
    "cold_start=null",
    *("recipe.args.n_train=200", "recipe.args.n_cold_start=60", "recipe.args.n_test=12"),
    *("rollout.prompts_per_step=8", "rollout.group_size=4"),
)


@pytest.mark.slow
@pytest.mark.timeout(1000)
def test_a_small_reproduction(tmp_path):
    arms = "moe.sapo.n4,moe.gspo.n4"
    (tmp_path / "reward.py").write_text(REWARD)
    small = (*SMALL, f"rewards.path={tmp_path / 'reward.py'}:length")
    choice = ("--figures", "4", "--arms", arms, "--seeds", "5", "--steps", "2", "--jobs", "2")
    ended = run_python(
        "-m", "sapo_vl", "reproduce", "--config", CONFIG, "--out", tmp_path, *choice, *small, timeout=900
    )
    assert "[3/3]" in ended.stdout and str(tmp_path / "report.md") in ended.stdout
    text = (tmp_path / "report.md").read_text()
    assert "2 runs are finished, seeds 5, 2 steps each" in text
    assert "one seed, difference" in text and "no test is possible" in text
    assert (tmp_path / "figures" / "figure_4.svg").exists()
    runs = [json.loads(line) for line in (tmp_path / "data" / "runs.jsonl").open()]
    assert [(run["label"], run["k"], run["items"]) for run in runs] == [("moe.sapo.n4", 8, 12), ("moe.gspo.n4", 8, 12)]
    curves = [json.loads(line) for line in (tmp_path / "data" / "curves.jsonl").open()]
    assert all(0 <= line["reward"] <= 1 and line["ratio_max"] > 0 for line in curves)
    # What began alike saw the same rows and sampled the same first responses.
    folders = [tmp_path / "runs" / run["label"] / "seed_5" for run in runs]
    first = [next(r for r in read_metrics(f / "metrics.jsonl") if r["phase"] == "train") for f in folders]
    assert first[0]["reward/mean"] == first[1]["reward/mean"] and first[0]["length/mean"] == first[1]["length/mean"]
    configs = [(f / "config.yaml").read_text() for f in folders]
    differing = [(a, b) for a, b in zip(*(c.splitlines() for c in configs), strict=True) if a != b]
    assert differing == [("  name: sapo", "  name: gspo")]
    assert not list(tmp_path.glob("runs/*/seed_5/final")), "keep_models is false"
