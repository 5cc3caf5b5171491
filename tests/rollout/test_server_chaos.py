"""Whatever happens to rollout servers in the middle of a sync or a step: no response is lost, none is of other weights.

A few rounds; `bash scripts/chaos.sh --servers` does as many as one likes.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import server_chaos

pytestmark = pytest.mark.slow
ROUNDS = len(server_chaos.FAULTS) * len(server_chaos.PHASES)  # each of them once


def test_every_step_has_all_its_responses_and_made_with_the_right_weights(tmp_path: Path, seed: int) -> None:
    *rounds, end = server_chaos.run(tmp_path, ROUNDS, seed % 10_000)
    assert end["status"] == 0, end["said"]
    assert [found["round"] for found in rounds] == list(range(1, ROUNDS + 1))
    for found in rounds:
        assert found["failed"] == 0, found
        assert found["weights"] == {str(found["round"]): 16}, found
    said = "".join(line for found in rounds for line in found["said"])
    assert "is out of use" in said or "did not take the weights" in said, "nothing has happened to them"
