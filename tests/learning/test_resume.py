"""The real training loop on two ranks: a run that was cut off after step 2 and resumed is the run that was not."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from helpers_launch import run_python
from helpers_runs import digests, rows, steps, write_config, write_inputs

from sapo_vl.distributed import World
from sapo_vl.learning.checkpoint import newest_checkpoint, step_dir

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def setup(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with data, model, reward and config.yaml."""
    folder = tmp_path_factory.mktemp("resume")
    settings = write_inputs(folder, int(request.config.option.seed), "moe") | {
        "steps": 4,
        "processes": 2,
        "rollout.prompts_per_step": 8,
        "rollout.group_size": 3,
        "rollout.max_new_tokens": 8,
        "batch.tokens_per_micro_batch": 200,
        "optim.lr": 0.003,
        "optim.warmup_steps": 3,
        "zero.stage": 3,
        "eval.max_per_task": 1,
        "eval.modes": "[greedy]",
        "checkpoint.every": 2,
        "log.trackers": "[]",
    }
    write_config(settings, folder / "config.yaml")
    return folder


def train(setup: Path, out: Path, *overrides: str) -> str:
    """`sapo-vl train` on two ranks; what they printed."""
    launcher = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2")
    command = ("-m", "sapo_vl", "train", "--config", setup / "config.yaml", "--out", out, *overrides)
    return run_python(*launcher, *command, timeout=600).stdout


@pytest.fixture(scope="module")
def whole(setup: Path) -> Path:
    """The folder of a run of four steps that nothing disturbed."""
    train(setup, setup / "whole")
    return setup / "whole"


def test_resumed_run_is_the_same_run(setup: Path, whole: Path) -> None:
    cut = setup / "cut"
    learned = steps(whole)
    assert [r["step"] for r in learned] == [1, 2, 3, 4]
    assert all(r["updates/dropped"] == 0 and r["grad_norm"] > 0 for r in learned), "every step should learn"
    assert len({r["loss"] for r in learned}) == 4
    # The second of the two updates of a step has moved on from where the old log-probs were taken.
    assert all(r["ratio/mean_abs_dev"] > 1e-6 for r in learned)

    # The run as it lay on disk when it died while writing the row of step 4, its last checkpoint being of step 2.
    shutil.copytree(whole, cut)
    shutil.rmtree(cut / "final")
    shutil.rmtree(cut / "checkpoints" / "step_00000004")
    (cut / "summary.json").unlink()
    lines = (cut / "metrics.jsonl").read_text().splitlines()
    early = [line for line in lines if json.loads(line)["step"] <= 2]
    assert 2 < len(early) < len(lines)
    other = json.dumps(json.loads(early[-1]) | {"step": 3, "loss": 1e9})  # must not survive
    (cut / "metrics.jsonl").write_text("\n".join([*early, other, '{"step": 4, "ph']))
    train(setup, cut)

    assert rows(cut) == rows(whole)
    assert digests(cut / "final") == digests(whole / "final")
    weights = [n for n in digests(whole / "final") if n.endswith(".safetensors")]
    assert weights and all(digests(whole / "final")[n] != digests(setup / "model")[n] for n in weights)
    states = [json.loads((f / "checkpoints/step_00000004/rank_1.json").read_text()) for f in (whole, cut)]
    assert states[0] == states[1], "sampler, counts of bad rows and random state of a rank"
    summaries = [json.loads((f / "summary.json").read_text()) for f in (whole, cut)]
    for key in ("accuracy", "steps", "bad_rows", "loss", "ranks", "seed"):
        assert summaries[0][key] == summaries[1][key]
    assert summaries[0]["accuracy"]["cold_start"] is not None, "measured once, before step 1, and carried along"


def test_a_run_started_anew_keeps_its_own_checkpoints_and_the_old_ones(setup: Path, whole: Path) -> None:
    """With older and newer ones lying there: what it writes stays, and is what resume=auto finds."""
    anew = setup / "anew"
    shutil.copytree(whole, anew)
    printed = train(setup, anew, "resume=no", "steps=2", "checkpoint.keep=1")
    root = anew / "checkpoints"
    old = {2: "superseded_step_00000002", 4: "superseded_step_00000004"}
    assert sorted(p.name for p in root.iterdir()) == ["step_00000002", *old.values()]
    assert newest_checkpoint(root, World.alone()) == step_dir(root, 2)
    for step, name in old.items():
        assert f"step_{step:08d} is not of this run, which starts at step 0; it is kept as {name}" in printed
        assert digests(root / name / "shards") == digests(step_dir(whole / "checkpoints", step) / "shards")
    assert [r for r in rows(anew) if r["phase"] == "train"] == [
        r for r in rows(whole) if r["phase"] == "train" and r["step"] <= 2
    ]
