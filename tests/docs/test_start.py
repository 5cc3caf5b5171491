"""docs/start.md, block by block in an empty folder, as a newcomer would; only sizes are smaller."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from doc_blocks import ROOT, blocks
from helpers_launch import run_python

from sapo_vl.record.run_log import read_metrics

START = ROOT / "docs" / "start.md"
SMALL = {
    "run": "processes=1 steps=1 cold_start.steps=2 cold_start.batch_size=4 cold_start.target_pass_rate=0 "
    "recipe.args.n_cold_start=8 recipe.args.n_train=24 recipe.args.n_test=6 eval.max_per_task=2 "
    "rollout.prompts_per_step=4 eval.before=false eval.modes=[greedy] rewards.workers=1 log.trackers=[]",
    "train": "processes=1 eval.max_per_task=2 rollout.prompts_per_step=4 eval.before=false eval.modes=[greedy] "
    "rewards.workers=1 log.trackers=[]",
    "eval": "processes=1 eval.limit=4",
}
STEPS = {"steps=60": "steps=2", "steps=80": "steps=3"}


def run_line(line: str) -> str:
    """Runs one line of a shell block; returns what it printed."""
    if re.match(r"(bash scripts/setup\.sh|source scripts/env\.sh)$", line):
        assert (ROOT / line.split()[1]).is_file()
        return ""
    out = re.match(r"OUT_DIR=(\S+) ", line)
    if "scripts/train_vl_moe.sh" in line:
        _, _, rest = line.partition("scripts/train_vl_moe.sh")
        line = f"sapo-vl run --config configs/tiny_moe.yaml --out {out[1] if out else 'runs/tiny_moe'} {rest}"
    words = shlex.split(line)
    if words[0] != "sapo-vl":
        line = re.sub(r"^python ", f"{sys.executable} ", line)
        return subprocess.run(line, shell=True, check=True, capture_output=True, text=True).stdout
    words = [STEPS.get(word, word) for word in words[1:]]
    return run_python("-m", "sapo_vl", *words, *SMALL.get(words[0], "").split()).stdout


@pytest.mark.slow
def test_every_block_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    monkeypatch.chdir(tmp_path)
    printed: dict[str, str] = {}
    for block in blocks(START):
        if block.kind == "python":
            name = re.match(r"# (mine/\w+\.py)\n", block.code)
            assert name, block.code
            Path(name[1]).write_text(block.code)
            continue
        assert block.kind == "bash"
        for line in block.code.splitlines():
            printed[line] = run_line(line)
    made = sorted(p.name for p in Path("runs").iterdir())
    assert made == [
        "closeness", "discs", "eval_after", "eval_before", "evaluations.html", "tiny_moe", "tiny_moe.html",
    ]  # fmt: skip
    [checked] = [text for line, text in printed.items() if "recipe check" in line]
    assert re.search(r"data +182 +182 +0 +0 +0 of 182\n", checked), checked
    # 60 and then 80 steps: the second call goes on where the first one ended.
    assert [r["step"] for r in read_metrics(Path("runs/discs/metrics.jsonl")) if r["phase"] == "train"] == [1, 2, 3]
    card = Path("runs/discs/final/README.md").read_text()
    assert "recipe `data`, 182 rows" in card and "| `steps` | `3` |" in card
    summary = json.loads(Path("runs/eval_after/benchmarks/shapes/summary.json").read_text())
    assert (summary["pass@1"]["n"], summary["k"], list(summary["groups"])) == (4, 4, ["level"])
