"""Folders of runs -> numbers: one row a run, with its curves and its items."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sapo_vl.experiments.arms import Arm
from sapo_vl.record.run_log import read_metrics

# Metric of a training step -> its name in curves.jsonl.
CURVES = {
    "reward/mean": "reward",
    "accuracy/mean": "accuracy",
    "gate/mean": "gate",
    "ratio/mean_abs_dev": "ratio_dev",
    "ratio/max": "ratio_max",
    "entropy/mean": "entropy",
    "grad_norm": "grad_norm",
    "groups/dead_share": "dead",
    "kl/old_new_k3": "kl",
    "seconds/step": "seconds",
}
ROUTING = "routing/"  # metrics of these names are taken as they are
LAST_SHARE = 0.2  # of a run's steps: its end


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRow:
    """What one finished run has left."""

    arm: Arm
    seed: int
    start: str  # the name of what it started from
    steps: int
    curves: Mapping[str, Sequence[float | None]]  # name -> a value for each step; None: not measured
    items: Mapping[str, Mapping[str, float]]  # benchmark -> item id -> mean score of its responses
    k: int  # responses an item
    greedy: float | None  # held-out accuracy, greedy
    seconds: float
    commit: str = ""
    dropped: int = 0  # updates that were not finite
    extra: Mapping[str, float] = field(default_factory=dict)  # means over the steps of metrics named routing/...

    @property
    def pass_at_1(self) -> float | None:
        """Mean over items of the mean score of an item's responses, benchmarks alike."""
        means = [sum(items.values()) / len(items) for items in self.items.values() if items]
        return sum(means) / len(means) if means else None

    def end_mean(self, name: str) -> float | None:
        """Mean over the last fifth of the steps."""
        values = self.curves.get(name, ())
        return mean_of(values[len(values) - last_steps(len(values)) :])


def last_steps(steps: int) -> int:
    return max(1, math.ceil(LAST_SHARE * steps)) if steps else 0


def mean_of(values: Sequence[float | None]) -> float | None:
    known = [v for v in values if v is not None]
    return math.fsum(known) / len(known) if known else None


def collect_run(folder: Path, arm: Arm, seed: int) -> RunRow:
    """Reads a finished run's folder."""
    job = json.loads((folder / "job.json").read_text(encoding="utf-8"))
    summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
    lines = {row["step"]: row for row in read_metrics(folder / "metrics.jsonl") if row["phase"] == "train"}
    steps = [lines[step] for step in sorted(lines)]
    final = summary["accuracy"]["final"] or {}
    names = sorted({name for line in steps for name in line if name.startswith(ROUTING)})
    return RunRow(
        arm=arm,
        seed=seed,
        start=job["start"],
        steps=len(steps),
        curves={short: [line.get(name) for line in steps] for name, short in CURVES.items()},
        items=item_scores(folder / "benchmarks" / f"step_{summary['steps']:08d}"),
        k=max([b["k"] for b in final.get("benchmarks", {}).values()], default=0),
        greedy=(final.get("greedy") or {}).get("mean"),
        seconds=job["seconds"],
        commit=job["versions"].get("commit", ""),
        dropped=int(sum(line.get("updates/dropped", 0) for line in steps)),
        extra={name: mean for name in names if (mean := _scalar_mean(steps, name)) is not None},
    )


def _scalar_mean(steps: Sequence[Mapping[str, Any]], name: str) -> float | None:
    values = [line.get(name) for line in steps]
    return None if any(isinstance(v, list) for v in values) else mean_of(values)


def item_scores(folder: Path) -> dict[str, dict[str, float]]:
    """Benchmark -> item -> mean score, from the records of an evaluation; {} if there was none."""
    found: dict[str, dict[str, float]] = {}
    for path in sorted(folder.glob("*/records.jsonl")):
        scores: dict[str, float] = {}
        for record in _lines(path):
            own = [r["score"] for r in record["responses"] if r["score"] is not None]
            if own:
                scores[record["id"]] = sum(own) / len(own)
        found[path.parent.name] = dict(sorted(scores.items()))
    return found


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8") as file:
        yield from map(json.loads, file)
