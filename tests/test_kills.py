"""A run that is killed anywhere and started again ends as one that nothing happened to, byte for byte.

A fixed selection; scripts/chaos.sh draws others for as long as one likes.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from helpers_launch import SUPPORT, run_python

pytestmark = pytest.mark.slow


def at(point: str, when: str = "before", **more: Any) -> dict[str, Any]:
    return {"point": point, "when": when, **more}


# One after the other, each in the start that follows the last one.
THROUGH_A_STEP = [
    at("setting aside", "in", calls=5),
    at("sampling", "in", calls=5000),
    at("scoring", "after"),
    at("update", "in", nth=2, calls=3000),
    at("sync", nth=2),
    at("metrics", "torn", nth=3),
    at("rollouts", "in", nth=1, calls=100),
]
THROUGH_THE_END = [
    at("save", "in", nth=2, calls=4000),
    at("load", "in", calls=3000),
    at("prune", "in", nth=2, calls=60),
    at("final", "in", calls=4000),
    at("rename of final", "after"),
    at("result", nth=2),
]
# Each start has less to do than the one before, so the shares add up to less than a whole run.
CHANGES = [at("file", share=s) for s in (0.3, 0.25, 0.2)]
THROUGHOUT = [at("file", share=s) for s in (0.03, 0.3)]
PLAN: list[tuple[dict[str, Any], list[dict[str, Any]]]] = [
    ({"zero": 1}, THROUGH_A_STEP),
    ({"zero": 1}, THROUGH_THE_END),
    ({"zero": 1}, CHANGES),
    ({"zero": 1, "stage": "run"}, THROUGHOUT),
    ({"zero": 1, "engine": "vllm"}, [at("sampling", "in", calls=3000), at("sync", nth=2)]),
    (
        {"stage": "sft", "kind": "moe", "zero": 2},
        [at("update", nth=3), at("save", "after"), at("final", "after")],
    ),
    (
        {"kind": "moe", "zero": 3, "ranks": 2, "staleness": 1},
        [at("update", "in", nth=4, calls=2000, rank=1, alone=True), at("file", share=0.5, rank=1)],
    ),
]


def test_killed_runs_end_as_whole_ones(request: pytest.FixtureRequest, tmp_path: Path) -> None:
    seed = int(request.config.option.seed) % 10_000
    plan = tmp_path / "plan.json"
    plan.write_text(json.dumps([[setting | {"seed": seed}, kills] for setting, kills in PLAN]))
    run_python(SUPPORT / "chaos.py", tmp_path, "--plan", plan, timeout=800, check=False)
    results = [json.loads(line) for line in (tmp_path / "results.jsonl").read_text().splitlines()]
    assert len(results) == len(PLAN)
    for result in results:
        assert not result["differ"] and not any(result["statuses"]), result
        missed = [kind for kind, died in zip(result["kinds"], result["died"], strict=True) if not died]
        assert not missed, f"{result['name']} was never killed there"
