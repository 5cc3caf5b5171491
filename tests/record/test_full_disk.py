"""What a run writes down, on a disk that takes no more: here the kernel's limit on the size of a file."""

from __future__ import annotations

import contextlib
import json
import logging
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from sapo_vl.distributed import World
from sapo_vl.record.files import Unwritten
from sapo_vl.record.rollout_log import write_step
from sapo_vl.record.run_log import METRICS_FILE, LogConfig, RunLog, read_metrics

ALONE = World(rank=0, size=1, device=torch.device("cpu"))


@contextlib.contextmanager
def no_file_larger_than(limit: int) -> Iterator[None]:
    """A write across it is cut short, the next one fails: as on a disk that becomes full."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_lines_of_metrics_wait_for_room(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = tmp_path / METRICS_FILE
    with RunLog(tmp_path, LogConfig(trackers=()), {}, ALONE) as log:
        log.metrics(1, "train", {"loss": 0.5})
        whole = path.read_bytes()
        with no_file_larger_than(len(whole) + 20), caplog.at_level(logging.WARNING):
            log.metrics(2, "train", {"loss": 0.25})
            log.metrics(3, "train", {"loss": 0.125})
            assert path.read_bytes() == whole, "no part of a line is left"
        assert [r.getMessage().count("its lines are kept for later") for r in caplog.records] == [1, 1]
        log.metrics(4, "eval", {"loss": 2.0})
        found = [(row["step"], row["phase"], row["loss"]) for row in read_metrics(path)]
        assert found == [(1, "train", 0.5), (2, "train", 0.25), (3, "train", 0.125), (4, "eval", 2.0)]


def test_lines_that_never_find_room_are_told_at_the_end(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    log = RunLog(tmp_path, LogConfig(trackers=()), {}, ALONE)
    with no_file_larger_than(10):
        log.metrics(1, "train", {"loss": 0.5})
        log.close()
    assert "lacks its last 1 lines" in caplog.text
    assert (tmp_path / METRICS_FILE).read_bytes() == b""


def test_rollouts_are_counted_and_leave_no_part(tmp_path: Path) -> None:
    lines = [{"step": 3, "response": "x" * 300}]
    unwritten = Unwritten()
    with no_file_larger_than(100):
        assert not unwritten.attempt("rollouts", write_step, tmp_path, 3, 0, lines)
        assert not unwritten.attempt("rollouts", write_step, tmp_path, 4, 0, lines)
    assert unwritten.counts == {"rollouts": 2}
    assert list(tmp_path.iterdir()) == []
    assert unwritten.attempt("rollouts", write_step, tmp_path, 5, 0, lines)
    assert [json.loads(line) for line in (tmp_path / "step_000005.rank0.jsonl").read_text().splitlines()] == lines


def test_what_is_no_fault_of_the_disk_is_raised() -> None:
    with pytest.raises(KeyError):
        Unwritten().attempt("rollouts", {}.__getitem__, "absent")
