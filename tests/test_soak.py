"""A run does not hold more of the machine the longer it goes on: the short form of `scripts/chaos.sh --soak`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from helpers_launch import SUPPORT, run_python

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
STEPS, EVERY = 72, 12  # an evaluation and a checkpoint in each stretch


def test_nothing_grows(tmp_path: Path, request: pytest.FixtureRequest) -> None:
    seed = int(request.config.option.seed)
    printed = run_python(SUPPORT / "soak.py", tmp_path, STEPS, EVERY, seed, "worker", timeout=800).stdout
    held = [json.loads(line.removeprefix("HELD ")) for line in printed.splitlines() if line.startswith("HELD ")]
    assert [row["step"] for row in held] == list(range(EVERY, STEPS + 1, EVERY))
    settled, *later = held[1:]
    assert settled["children"] >= 1, "there should be a worker"
    for row in later:
        assert {k: row[k] for k in ("files", "threads", "children")} == {
            k: settled[k] for k in ("files", "threads", "children")
        }
        # An image of this size is 12 kB: so much more tensors would be some of each step.
        assert row["tensors"] < settled["tensors"] + (row["step"] - settled["step"]), "a tensor a step is kept"
    assert later[-1]["rss_mb"] - settled["rss_mb"] < 24, "half a megabyte a step"
