"""scripts/walkthrough_steps.sh as it stands, and what two ranks give in place of one."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers_launch import SUPPORT, environment, run_python
from zygote import ADDRESS, address

from sapo_vl.record.run_log import read_metrics

ROOT = Path(__file__).resolve().parents[2]
STEPS = ROOT / "scripts" / "walkthrough_steps.sh"
COMMANDS = SUPPORT / "bin"
pytestmark = [pytest.mark.slow, pytest.mark.timeout(1400)]


@pytest.fixture(scope="module")
def walked(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of the walk-through, and what it printed."""
    out = tmp_path_factory.mktemp("walk") / "through"
    env = environment()
    env |= {"PATH": f"{COMMANDS}:{Path(sys.executable).parent}:{env['PATH']}", ADDRESS: address(env)}
    ended = subprocess.run(
        ["bash", str(STEPS), str(out)], env=env, capture_output=True, text=True, timeout=1300, check=False
    )
    assert ended.returncode == 0, ended.stdout[-3000:] + ended.stderr[-6000:]
    return out, ended.stdout


def summary(out: Path, name: str) -> dict[str, Any]:
    return json.loads((out / "benchmarks" / name / "summary.json").read_text())


def test_the_benchmark_of_the_docs_is_the_one_that_runs() -> None:
    [block] = re.findall(
        r"```python\n# mine/(my_bench\.py\n.*?)```", (ROOT / "docs" / "start.md").read_text(), re.DOTALL
    )
    assert f"<<'PYTHON'\n# {block}PYTHON\n" in STEPS.read_text()


LOCAL = {"aime25": 2, "chartqa": 5, "countbench": 2, "mathvista": 8, "mmmu": 11, "realworldqa": 5}  # items


def test_both_models_were_measured(walked: tuple[Path, str]) -> None:
    out, printed = walked
    for model in ("cold_start", "final"):
        shapes = summary(out / f"eval_{model}", "shapes")
        assert (shapes["k"], shapes["pass@1"]["n"], shapes["responses"]["n"]) == (4, 40, 160)
        # The cold start has learned to answer: more often right than without the picture.
        assert shapes["pass@1"]["mean"] > shapes["blank"]["mean"] and shapes["pass@k"]["4"]["mean"] > 0.4
        assert list(shapes["groups"]) == ["level"]
        for name, items in LOCAL.items():
            found = summary(out / f"eval_{model}", name)
            assert (found["k"], found["pass@1"]["n"], found["responses"]["n"]) == (2, items, 2 * items), name
            assert found["items"]["bad rows"] == {} and (found["blank"] is None) == (name == "aime25")
    assert "0 of 200 responses have another verdict" in printed
    assert re.search(r"shapes: 0\.\d+ -> 0\.\d+ on 40 items, difference [+-]0\.\d+ \[", printed)
    assert "not only the models differ" not in printed


def test_the_mixture_was_checked_and_trained_on_by_its_quotas(walked: tuple[Path, str]) -> None:
    out, printed = walked
    for task, rows in (("discs", 30), ("puzzles", 200)):
        assert re.search(rf"{task} +{rows} +{rows} +0 +0 +0 of {rows}\n", printed)
    steps = [row for row in read_metrics(out / "run/metrics.jsonl") if row["phase"] == "train"]
    assert [(row["scored/task/puzzles"], row["scored/task/discs"]) for row in steps] == [(12 * 8, 4 * 8)] * 3


def test_training_measured_the_benchmarks_too(walked: tuple[Path, str]) -> None:
    run = walked[0] / "run"
    rows = [row for row in read_metrics(run / "metrics.jsonl") if row["phase"] == "eval"]
    assert [row["step"] for row in rows] == [0, 3]
    for row in rows:
        assert {"eval/greedy/all", "eval/shapes/pass@1", "eval/shapes/maj@4", "eval/shapes/blank"} <= row.keys()
        assert 0 <= row["eval/shapes/pass@1"] <= 1 and row["eval/shapes/pass@1/ci95"]
    assert {p.name for p in (run / "benchmarks").iterdir()} == {"pictures", "step_00000000", "step_00000003"}


def test_two_ranks_go_on_where_one_was_killed(walked: tuple[Path, str], tmp_path: Path) -> None:
    """Every record is the same to the byte, whichever rank it came from."""
    out, _ = walked
    whole = (out / "eval_final/benchmarks/shapes/records.jsonl").read_bytes()
    mixed = tmp_path / "eval"
    shutil.copytree(out / "eval_final/benchmarks/shapes", mixed / "benchmarks/shapes")
    lines = whole.splitlines(keepends=True)
    (mixed / "benchmarks/shapes/records.jsonl").write_bytes(b"".join(lines[:3]) + lines[3][:40])
    (mixed / "benchmarks/shapes/blank.jsonl").unlink()
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
    given = (
        "recipe.name=",
        "model.tiny=",
        "model.max_prompt_tokens=512",
        f"model.path={out / 'run/final'}",
        f"--benchmark={out / 'my_bench.py'}:SHAPES",
    )
    config = ROOT / "configs" / "tiny_dense.yaml"
    printed = run_python(*launcher, "-m", "sapo_vl", "eval", "--config", config, "--out", mixed, *given).stdout
    assert "a last line of 40 bytes was cut off" in printed and "shapes: 3 items are in" in printed
    for name in ("records.jsonl", "blank.jsonl"):
        assert (mixed / "benchmarks/shapes" / name).read_bytes() == (
            out / "eval_final/benchmarks/shapes" / name
        ).read_bytes()
    assert summary(mixed, "shapes") == summary(out / "eval_final", "shapes")
