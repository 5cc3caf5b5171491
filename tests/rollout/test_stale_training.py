"""The real training loop one step stale, the trainer's own model sampling in turn; and the same after a crash."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers_runs import digests, prepare, rows, run_all, steps

from sapo_vl.record.rollout_log import read_rollouts

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]
STEPS = 4


@pytest.fixture(scope="module")
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs, all one step stale: `whole`; `cut`, the same cut off after step 2 and resumed; `trainer`."""
    folder = tmp_path_factory.mktemp("stale")
    stale = prepare(folder, int(request.config.option.seed)) | {
        "steps": STEPS,
        "rollout.staleness": 1,
        "batch.mini_batches": 1,
        "checkpoint.every": 2,
    }
    runs = {"whole": stale, "cut": stale, "trainer": stale | {"steps": 2, "rollout.old_logprobs": "trainer"}}
    printed = run_all(folder, runs, cut={"cut": "whole"})
    assert printed.count("resuming from") == 1 and "sampled ahead" not in printed
    return folder


def test_rollouts_are_of_the_weights_before_and_so_is_pi_old(folder: Path) -> None:
    lines = list(read_rollouts(folder / "whole" / "rollouts"))
    versions = {n: {line["weight_version"] for line in lines if line["step"] == n} for n in range(1, STEPS + 1)}
    assert versions == {1: {0}, 2: {0}, 3: {1}, 4: {2}}
    # One update a step: the recorded law differs from the trained one by the update before, but for the first step.
    first, *later = (row["ratio/mean_abs_dev"] for row in steps(folder / "whole"))
    assert first < 1e-5 and all(moved > 1e-4 for moved in later)


def test_pi_old_of_the_trainer_is_the_current_policy(folder: Path) -> None:
    """The step that the rollouts are late by is then outside of the gate, and measured as a gap."""
    one, two = steps(folder / "trainer")
    assert one["ratio/mean_abs_dev"] < 1e-5 and two["ratio/mean_abs_dev"] < 1e-5
    assert one["mismatch/k3"] < 1e-6 < 1e-5 < two["mismatch/k3"]
    assert two["reward/mean"] == steps(folder / "whole")[1]["reward/mean"], "the second batch is of the first weights"


def test_resumed_run_is_the_same_run(folder: Path) -> None:
    whole, cut = folder / "whole", folder / "cut"
    assert rows(cut) == rows(whole)
    for part in ("final", "rollouts"):
        assert digests(cut / part) == digests(whole / part)
    weights = "model.safetensors"
    assert digests(cut / "final")[weights] != digests(folder / "model")[weights]
    state = f"checkpoints/step_{STEPS:08d}/rank_0.json"
    assert json.loads((cut / state).read_text()) == json.loads((whole / state).read_text())
