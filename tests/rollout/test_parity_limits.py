"""When a gap between engine and trainer stops a run, is mended, or is only told."""

from __future__ import annotations

import logging
import math
from typing import Any

import pytest

from sapo_vl.distributed import World
from sapo_vl.rollout.base import ParityConfig
from sapo_vl.rollout.parity import Gap, ParityError, ParityGate, ParityReport
from sapo_vl.rollout.vllm.v0_32 import sync_methods


class Engine:
    """Has so many surer ways of syncing."""

    def __init__(self, ways: int = 0) -> None:
        self.ways, self.synced = ways, 0

    def surer_sync(self) -> str | None:
        self.ways -= 1
        return "repack" if self.ways >= 0 else None

    def sync(self, version: int) -> None:
        self.synced += 1


class Given(ParityGate):
    """Measures what it is given, one report after the other."""

    reports: list[ParityReport]

    def _measure(self, version: int) -> ParityReport:
        return self.reports.pop(0)


def gate(dtype: str, *gaps: tuple[float, float], limit: float = 0.0, engine: Engine | None = None) -> Given:
    """(mean, quantile) of text prompts, check after check."""
    unused: Any = None
    made = Given(ParityConfig(limit=limit), unused, unused, engine or Engine(), [unused], World.alone(), dtype)  # type: ignore[arg-type]
    made.reports = [report(Gap(tokens=9, mean=mean, quantile=quantile, largest=9.0)) for mean, quantile in gaps]
    return made


def report(gap: Gap) -> ParityReport:
    """Of text prompts, none of them near a tie."""
    return ParityReport(gaps={"text": gap}, settled={"text": gap}, refused=())


def test_a_bfloat16_tail_is_a_metric_and_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        values = gate("bfloat16", (0.02, 0.4)).after_sync(3)
    assert values == {
        "parity/text/mean": 0.02, "parity/text/p95": 0.4, "parity/text/largest": 9.0, "parity/text/near_tie_share": 0.0,
    }  # fmt: skip
    assert "within 0.15" in caplog.text and "The run goes on" in caplog.text
    caplog.clear()
    gate("bfloat16", (0.02, 0.1)).after_sync(3)
    assert not caplog.text


@pytest.mark.parametrize(
    ("dtype", "gap", "limit"),
    [
        ("bfloat16", (0.2, 0.4), 0.0),
        ("bfloat16", (math.nan, 0.01), 0.0),
        ("bfloat16", (0.01, 0.02), 0.015),  # the user's own limit is for the tail
        ("float32", (1e-6, 2e-4), 0.0),
    ],
)
def test_what_stops_a_run(dtype: str, gap: tuple[float, float], limit: float) -> None:
    with pytest.raises(ParityError, match="after the sync of version 1"):
        gate(dtype, gap, limit=limit).after_sync(1)


def test_what_can_be_mended_is(caplog: pytest.LogCaptureFixture) -> None:
    engine = Engine(ways=1)
    assert gate("float32", (0.1, 0.5), (1e-7, 1e-6), engine=engine).after_sync(1)["parity/text/p95"] == 1e-6
    assert engine.synced == 1 and "'repack'" in caplog.text


def test_beside_gpus_nothing_is_written_to_the_disk_to_mend_a_gap() -> None:
    assert sync_methods(on_cpu=True) == ("reload", "repack", "fresh")
    assert sync_methods(on_cpu=False) == ("reload",)


@pytest.mark.parametrize(
    ("everything", "settled", "limit", "passes"),
    [
        (0.02, 1e-6, 1e-4, True),  # one prompt is routed near a tie, and the engine went through another expert
        (0.02, 2e-4, 1e-4, False),  # those that are not near one must agree all the same
        (0.20, 1e-6, 1e-4, False),  # another expert moves no response by so much
        (0.02, None, 1e-4, True),  # all are near one
        (0.20, None, 1e-4, False),
        (0.20, 1e-6, 0.3, True),  # the user's own limit is wider
    ],
)
def test_near_a_tie_of_the_router_the_limit_is_that_of_bfloat16(
    everything: float, settled: float | None, limit: float, passes: bool
) -> None:
    whole = Gap(tokens=9, mean=1e-3, quantile=everything, largest=9.0)
    part = {} if settled is None else {"text": Gap(tokens=6, mean=1e-3, quantile=settled, largest=9.0)}
    found = ParityReport(gaps={"text": whole}, settled=part, refused=())
    assert found.bad(limit) == (() if passes else ("text",))
    assert found.values("text")["near_tie_share"] == pytest.approx(1.0 if settled is None else 1 / 3)


def test_where_no_prompt_is_near_a_tie_the_limit_is_for_all() -> None:
    gap = Gap(tokens=9, mean=1e-3, quantile=0.02, largest=9.0)
    assert report(gap).bad(1e-4) == ("text",)
