"""Signs of trouble on made-up series: each is told where it is, and not where it nearly is."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from sapo_vl.distributed import World
from sapo_vl.record.notices import QUIET, SIGNS, Notices, gate_bound
from sapo_vl.record.run_log import LogConfig, RunLog, read_metrics

USUAL = {
    "groups/dead_share": 0.3, "reward/mean": 0.5, "reward/std": 0.4, "reward/part/format": 0.9,
    "entropy/mean": 0.5, "length/mean": 100.0, "length/truncated_share": 0.02, "mismatch/gap_mean": 0.004,
    "gate/pos/mean": 0.99, "gate/neg/mean": 0.98, "grad_norm/max": 1.0,
    "advantage/share/count": 0.6, "advantage/share/compare": 0.4,
}  # fmt: skip
Series = list[dict[str, Any]]


def steps(*parts: tuple[int, dict[str, Any]]) -> Series:
    """So many training rows with these values where they are not as usual; None = the row has no such value."""
    changes = [change for count, change in parts for _ in range(count)]
    return [
        {"step": i, "phase": "train"} | {k: v for k, v in (USUAL | change).items() if v is not None}
        for i, change in enumerate(changes, start=1)
    ]


def evals(*values: tuple[float, float, float]) -> Series:
    """(accuracy, that without the image, half of its interval) of each evaluation."""
    return [
        {
            "step": 10 * i,
            "phase": "eval",
            "eval/greedy/all": with_image,
            "eval/blank_image/all": blank,
            "eval/blank_image/all/ci95": [blank - half, blank + half],
        }
        for i, (with_image, blank, half) in enumerate(values)
    ]


def on(series: Series, bound: float = 0.9) -> dict[int, list[str]]:
    """Index of a row, from 1 -> the names that it has."""
    notices = Notices(bound)
    found = {i: notices.add(row) for i, row in enumerate(series, start=1)}
    return {i: names for i, names in found.items() if names}


DEAD = {"groups/dead_share": 1.0, "entropy/mean": None, "grad_norm/max": None}
ZERO = {"reward/mean": 0.0, "reward/std": 0.0, "reward/part/format": 0.0}
SPIKE = {"grad_norm/max": 5.1}
ONE = {"advantage/share/count": 0.97, "advantage/share/compare": 0.03}

# name -> (series in which it fires, the row from which on)
FIRES: dict[str, tuple[Series, int]] = {
    "all_groups_dead": (steps((4, {}), (3, DEAD)), 7),
    "zero_reward": (steps((5, ZERO)), 5),
    "entropy_collapse": (steps((20, {}), (6, {"entropy/mean": 0.04})), 26),
    "length_explosion": (steps((10, {}), (3, {"length/mean": 210.0})), 13),
    "truncated": (steps((5, {}), (5, {"length/truncated_share": 0.24})), 10),
    "engine_gap": (steps((20, {}), (6, {"mismatch/gap_mean": 0.013})), 26),
    "gate_low": (steps((10, {}), (5, {"gate/neg/mean": 0.5})), 15),
    "grad_spikes": (steps((20, {}), (1, SPIKE), (3, {}), (1, SPIKE)), 25),
    "one_task": (steps((10, ONE)), 10),
    "blank_image_rises": (evals((0.4, 0.2, 0.03), (0.45, 0.21, 0.03), (0.5, 0.27, 0.03)), 3),
}
NEARLY: dict[str, list[Series]] = {
    "all_groups_dead": [
        steps((2, DEAD)),
        steps((2, DEAD), (1, {}), (2, DEAD)),
        steps((30, {"groups/dead_share": 0.94})),
    ],
    "zero_reward": [
        steps((4, ZERO)),
        steps((9, ZERO | {"reward/part/format": 0.001})),
        steps((9, ZERO | {"reward/part/format": None})),  # nothing asks for a form
        steps((9, ZERO | {"reward/std": 0.1})),
    ],
    "entropy_collapse": [
        steps((20, {}), (5, {"entropy/mean": 0.04})),
        steps((20, {}), (20, {"entropy/mean": 0.051})),
        steps((60, {"entropy/mean": 0.04})),  # it has always been low
        steps((10, {}), (9, {"entropy/mean": 0.0})),  # too soon to tell
        steps((20, {}), (30, {"entropy/mean": None})),
    ],
    "length_explosion": [
        steps((10, {}), (20, {"length/mean": 199.0})),
        steps((10, {}), (2, {"length/mean": 900.0}), (20, {})),
        steps(*((1, {"length/mean": 100.0 + 3 * i}) for i in range(100))),  # fourfold, but slowly
    ],
    "truncated": [
        steps((60, {"length/truncated_share": 0.2})),
        steps((5, {}), (1, {"length/truncated_share": 0.9}), (9, {})),
        steps((4, {"length/truncated_share": 1.0})),
    ],
    "engine_gap": [
        steps((20, {}), (5, {"mismatch/gap_mean": 0.013})),
        steps((20, {}), (20, {"mismatch/gap_mean": 0.0119})),  # 2.98 times
        steps((20, {"mismatch/gap_mean": 0.002}), (20, {"mismatch/gap_mean": 0.0099})),
        steps((60, {"mismatch/gap_mean": 0.05})),
    ],
    "gate_low": [
        steps((10, {}), (4, {"gate/neg/mean": 0.0}), (10, {})),
        steps((60, {"gate/pos/mean": 0.901, "gate/neg/mean": 0.901})),
        steps((9, {"gate/pos/mean": 0.1})),
    ],
    "grad_spikes": [
        steps((20, {}), (1, SPIKE), (20, {})),
        steps((20, {}), (5, {"grad_norm/max": 4.9})),
        steps((20, {}), (1, SPIKE), (9, {}), (1, SPIKE), (9, {})),  # eleven steps apart
        steps((20, {"grad_norm/max": 0.0}), (2, SPIKE)),
        steps((10, {}), (3, SPIKE)),
    ],
    "one_task": [
        steps((9, ONE)),
        steps((30, {"advantage/share/count": 1.0, "advantage/share/compare": None})),  # there is but one
        steps((30, {"advantage/share/count": 0.95, "advantage/share/compare": 0.05})),
    ],
    "blank_image_rises": [
        evals((0.4, 0.2, 0.03), (0.5, 0.24, 0.03)),  # by less than 0.05
        evals((0.4, 0.2, 0.08), (0.5, 0.27, 0.08)),  # by less than the intervals
        evals((0.4, 0.2, 0.03), (0.6, 0.27, 0.03)),  # by less than half
        evals((0.4, 0.2, 0.03), (0.4, 0.27, 0.03)),  # accuracy did not rise
        evals((0.4, 0.2, 0.03)),
        [{k: v for k, v in row.items() if "blank" not in k} for row in evals((0.4, 0.2, 0.03), (0.5, 0.3, 0.03))],
    ],
}


@pytest.mark.parametrize("sign", [sign.name for sign in SIGNS])
def test_each_sign_fires_where_it_is_and_not_where_it_nearly_is(sign: str) -> None:
    series, row = FIRES[sign]
    found = on(series)
    assert min(found) == row and found[row] == [sign]
    for near in NEARLY[sign]:
        assert on(near) == {}


def test_nothing_fires_in_a_usual_run() -> None:
    assert FIRES.keys() == NEARLY.keys() == {sign.name for sign in SIGNS}
    assert on(steps((200, {})) + evals((0.4, 0.2, 0.03), (0.5, 0.2, 0.03))) == {}
    assert on([{"step": 1, "phase": "train"}] * 50) == {}
    assert on([{"step": 1, "phase": "sft", "groups/dead_share": 1.0}] * 50) == {}


def test_tasks_that_are_seldom_drawn_count_as_nothing() -> None:
    """Of three tasks a step draws two; one of them has it all."""
    a = {"advantage/share/count": 0.98, "advantage/share/compare": 0.02}
    b = {"advantage/share/count": 0.98, "advantage/share/compare": None, "advantage/share/chart": 0.02}
    assert min(on(steps(*[(1, a), (1, b)] * 5))) == 10


@pytest.mark.parametrize(
    ("config", "bound"),
    [
        ({}, 0.9),
        ({"loss": {"name": "grpo", "params": {}}}, 0.8),
        ({"loss": {"name": "gspo", "params": {}}}, 0.1),
        ({"loss": {"name": "cispo", "params": {}}}, 0.5),
        ({"loss": {"name": "sapo", "params": {"target_gate": 0.5}}}, 0.45),
        ({"loss": {"name": "sapo", "params": {"target_gate": None}}}, 0.9),
    ],
)
def test_the_bound_of_the_gate_is_that_of_the_loss(config: dict, bound: float) -> None:
    assert gate_bound(config) == pytest.approx(bound)
    low = {"gate/pos/mean": bound - 0.01, "gate/neg/mean": bound + 0.01}
    assert list(on(steps((10, low)), gate_bound(config)).values()) == [["gate_low"]]


def told(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records]


def test_a_sign_is_told_when_it_begins_and_when_it_is_over(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    notices = Notices()
    series = steps((3, DEAD), (2, {}), (3, DEAD), (9, {}), (3, DEAD))
    found = [notices.add(row) for row in series]
    begins, ends = 3, 8 + QUIET
    assert [bool(names) for names in found] == [begins <= i < ends or i == 20 for i in range(1, 21)]
    first, over, again = told(caplog)
    assert first.startswith("step 3: notice all_groups_dead: all of the groups taught nothing in 3 steps")
    assert "rollout.group_size" in first
    assert over == f"step {ends}: notice all_groups_dead is over"
    assert again.startswith("step 20: notice all_groups_dead")
    assert notices.summary() == {"all_groups_dead": {"first": 3, "last": 20, "rows": ends - begins + 1}}


def test_all_but_a_few_dead_groups_are_not_called_all(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING)
    notices = Notices()
    for row in steps((1, DEAD), (1, {"groups/dead_share": 0.96}), (1, DEAD)):
        notices.add(row)
    (message,) = told(caplog)
    assert message.startswith("step 3: notice all_groups_dead: 96% or more of the groups taught nothing in 3 steps")


def test_a_run_that_goes_on_tells_nothing_twice(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """The lines of a log that was opened twice are those of one that was not, and so are the notices."""
    caplog.set_level(logging.WARNING)
    series = steps((25, {}), (12, {"entropy/mean": 0.01}), (4, DEAD), (20, {}))
    values = [{k: v for k, v in row.items() if k not in ("step", "phase")} for row in series]
    whole = RunLog(tmp_path / "whole", LogConfig(trackers=()), {}, World.alone())
    for step, row in enumerate(values, start=1):
        whole.metrics(step, "train", row)
    once, rows = told(caplog), read_metrics(tmp_path / "whole" / "metrics.jsonl")
    assert [row["step"] for row in rows if "notices" in row] == list(range(31, 48))
    assert rows[40]["notices"] == ["all_groups_dead", "entropy_collapse"] and len(once) == 4
    summary = whole.notices.summary()
    whole.close()
    for stop in (5, 33, 41, 45):
        caplog.clear()
        folder = tmp_path / str(stop)
        for steps_of in (range(stop + 2), range(stop, len(values))):  # two steps are lost, and done again
            log = RunLog(folder, LogConfig(trackers=()), {}, World.alone())
            log.truncate_from(steps_of.start + 1)
            for i in steps_of:
                log.metrics(i + 1, "train", values[i])
            log.close()
        drop = [{k: v for k, v in row.items() if k != "time"} for row in rows]
        kept = [{k: v for k, v in row.items() if k != "time"} for row in read_metrics(folder / "metrics.jsonl")]
        assert [row["step"] for row in kept] == [row["step"] for row in drop]
        # A sign that was quiet when the run stopped may be over some rows later than without a stop.
        assert [r for r in kept if r["step"] < 45] == [r for r in drop if r["step"] < 45]
        assert log.notices.summary().keys() == summary.keys()
        assert [m for m in told(caplog) if "over" not in m] == [m for m in once if "over" not in m]


def test_names_that_are_none_are_refused(tmp_path: Path) -> None:
    line = {"step": 1, "phase": "train", "time": 1.0, "notices": "all"}
    (tmp_path / "metrics.jsonl").write_text(json.dumps(line) + "\n")
    with pytest.raises(ValueError, match=r"metrics.jsonl:1"):
        read_metrics(tmp_path / "metrics.jsonl")


def test_the_table_of_the_docs_is_that_of_the_code() -> None:
    text = (Path(__file__).parents[2] / "docs" / "metrics.md").read_text()
    for sign in SIGNS:
        assert f"| `{sign.name}` | {sign.when} | {sign.advice} |" in text
