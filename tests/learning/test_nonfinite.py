"""Updates that were dropped in the cold start and in training, on two ranks: counted, saved, and not for ever."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from helpers_launch import run_ranks
from helpers_runs import write_config, write_inputs

from sapo_vl.record.rollout_log import read_rollouts
from sapo_vl.record.run_log import read_metrics

pytestmark = pytest.mark.slow
# Lines of an earlier attempt that was killed, and of another stage.
LEFT_BEHIND = [{"step": n, "phase": phase, "time": 1.0, "loss": 1e9} for phase in ("sft", "eval") for n in (1, 2, 7)]


@pytest.fixture(scope="module")
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What the two ranks left."""
    out = tmp_path_factory.mktemp("nonfinite")
    settings = write_inputs(out, int(request.config.option.seed), n_cold_start=30) | {
        "steps": 3,
        "rollout.prompts_per_step": 8,
        "rollout.group_size": 3,
        "rollout.max_new_tokens": 8,
        "cold_start.steps": 5,
        "cold_start.batch_size": 6,
        "cold_start.optim.max_dropped_updates": 2,
        "optim.max_dropped_updates": 2,
        "eval.max_per_task": 1,
        "eval.modes": "[greedy]",
        "log.trackers": "[]",
    }
    write_config(settings, out / "config.yaml")
    (out / "sft-one").mkdir()
    (out / "sft-one" / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in LEFT_BEHIND))
    run_ranks(2, "nonfinite_worker.py", out)
    return out


def seen(folder: Path, name: str) -> list[dict[str, Any]]:
    return json.loads((folder / f"{name}.json").read_text())


def metrics(folder: Path, name: str, phase: str) -> list[dict[str, Any]]:
    return [row for row in read_metrics(folder / name / "metrics.jsonl") if row["phase"] == phase]


def saved(run: Path) -> dict[str, list[str]]:
    """Path inside nonfinite/ -> ids of the problems in that file."""
    root = run / "nonfinite"
    return {str(f.relative_to(root)): [r["id"] for r in read_rollouts(f)] for f in sorted(root.glob("*/*.jsonl"))}


def test_a_dropped_update_of_the_cold_start_is_counted_and_saved(folder: Path) -> None:
    first, second = seen(folder, "sft-one")
    rows = metrics(folder, "sft-one", "sft")
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5]
    assert [row["updates/dropped"] for row in rows] == [0, 1, 0, 0, 0]
    assert [row["loss"] is None for row in rows] == [False, True, False, False, False]
    assert first["result"]["dropped"] == second["result"]["dropped"] == 1
    assert first["poisoned"] == [] and len(second["poisoned"]) == 1
    # The problem it was, and none of the rank where nothing was wrong.
    assert saved(folder / "sft-one") == {
        "cold_start.optim_update_000002/step_000002.rank1.jsonl": second["poisoned"],
    }
    assert (folder / "sft-one" / "cold_start" / "config.json").exists(), "the cold start went on to its end"


def test_a_cold_start_that_is_done_again_replaces_its_lines(folder: Path) -> None:
    assert metrics(folder, "sft-one", "eval") == [row for row in LEFT_BEHIND if row["phase"] == "eval"]
    rows = metrics(folder, "sft-one", "sft")
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5] and all(row["loss"] != 1e9 for row in rows)


def test_a_cold_start_that_only_drops_updates_is_stopped(folder: Path) -> None:
    first, second = seen(folder, "sft-all")
    assert first["result"] is None and first["error"] == second["error"]
    assert first["error"].startswith("step 3: 3 updates in a row had a non-finite loss or gradient and were dropped")
    assert "(cold_start.optim.max_dropped_updates=2)" in first["error"]
    assert f"the samples are in {folder / 'sft-all' / 'nonfinite'}" in first["error"]
    assert [row["updates/dropped"] for row in metrics(folder, "sft-all", "sft")] == [1, 1]
    assert saved(folder / "sft-all") == {
        f"cold_start.optim_update_{n:06d}/step_{n:06d}.rank{rank}.jsonl": [record["poisoned"][n - 1]]
        for n in (1, 2, 3)
        for rank, record in enumerate((first, second))
    }
    assert not (folder / "sft-all" / "cold_start").exists(), "no model that learned nothing"


def test_dropped_updates_of_one_training_step_are_saved_each(folder: Path) -> None:
    first, second = seen(folder, "train-step")
    assert [row["updates/dropped"] for row in metrics(folder, "train-step", "train")] == [0, 2, 0]
    assert saved(folder / "train-step") == {
        "optim_update_000003/step_000002.rank0.jsonl": first["poisoned"],
        "optim_update_000004/step_000002.rank1.jsonl": second["poisoned"],
    }
    assert len(first["poisoned"]) == len(second["poisoned"]) == 1
