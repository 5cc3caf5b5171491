"""Folders of runs -> numbers: one row a run, with its curves and its items, and what there is not, with the reason."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from sapo_vl.experiments.arms import Arm
from sapo_vl.experiments.jobs import Job
from sapo_vl.experiments.plan import Plan
from sapo_vl.experiments.schedule import JOB_FILE, Status, outcome_before
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
    "length/mean": "length",
    "sequence/var/mean": "var",
    "routing/flip": "flip",
    "routing/drift": "drift",
    "seconds/step": "seconds",
}
TASK_COUNTS = "scored/task/"  # metrics of these names: scored rollouts of a task
VIOLATIONS = "sequence/bound_violations"
LAST_SHARE = 0.2  # of a run's steps: its end
WINDOW = 10  # steps of a line of curves.jsonl


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRow:
    """What one finished run has left."""

    arm: Arm
    seed: int
    start: str  # the name of what it started from
    folder: Path
    steps: int
    curves: Mapping[str, Sequence[float | None]]  # name -> a value for each step; None: not measured
    held_out: Mapping[int, float]  # step -> Pass@1
    items: Mapping[str, float]  # "benchmark/item" -> mean score of its responses after the last step
    k: int  # responses an item
    greedy: float | None  # held-out accuracy, greedy
    tasks: Mapping[str, tuple[int, int]] = field(default_factory=dict)  # task -> fewest and most rollouts of a step
    violations: int | None = None  # of the bound on D_i; None: not counted
    dropped: int = 0  # updates that were not finite
    seconds: float = 0.0
    versions: Mapping[str, str] = field(default_factory=dict)

    @property
    def pass_at_1(self) -> float | None:
        """After the last step."""
        return self.held_out.get(self.steps)

    def end_mean(self, name: str) -> float | None:
        """Mean over the last fifth of the steps."""
        values = self.curves.get(name, ())
        return mean_of(values[len(values) - last_steps(len(values)) :])


@dataclass(frozen=True, slots=True, kw_only=True)
class StartRow:
    """What the runs began from, before RL."""

    name: str
    pass_at_1: float | None
    cold_start_steps: int | None  # None: there was no cold start


@dataclass(frozen=True, slots=True, kw_only=True)
class Absent:
    """A run that there is no row of."""

    label: str
    seed: int
    status: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Results:
    """Everything that the report is about."""

    rows: tuple[RunRow, ...]
    absent: tuple[Absent, ...]
    starts: tuple[StartRow, ...]

    def of(self, arm: Arm) -> list[RunRow]:
        """The rows of an arm by seed."""
        return sorted((row for row in self.rows if row.arm == arm), key=lambda row: row.seed)

    def start_reward(self, start: str) -> float | None:
        """Mean reward of the first rollout batches, which the start sampled, over all runs from it."""
        return mean_of([row.curves["reward"][0] for row in self.rows if row.start == start])


def last_steps(steps: int) -> int:
    """How many steps are the end of a run of `steps`."""
    return math.ceil(LAST_SHARE * steps)


def mean_of(values: Sequence[float | None]) -> float | None:
    """Of those that were measured; None if none was."""
    known = [v for v in values if v is not None]
    return math.fsum(known) / len(known) if known else None


def collect(plan: Plan) -> Results:
    """What the plan's folders hold."""
    rows: list[RunRow] = []
    absent: list[Absent] = []
    for planned in plan.runs:
        where = {"label": planned.arm.label, "seed": planned.seed}
        if planned.job is None:
            absent.append(Absent(**where, status="not available in this version", reason=planned.refused))
            continue
        before = outcome_before(planned.job)
        if before is not None and before.status is Status.KEPT:
            rows.append(collect_run(planned.job.folder, planned.arm, planned.seed))
        else:
            status = "not run yet" if before is None else str(before.status)
            absent.append(Absent(**where, status=status, reason="" if before is None else before.reason))
    starts = [collect_start(job, rows) for job in plan.starts if job.result.exists()]
    return Results(rows=tuple(rows), absent=tuple(absent), starts=tuple(starts))


def collect_run(folder: Path, arm: Arm, seed: int) -> RunRow:
    """Reads a finished run's folder."""
    job, summary = _read(folder / JOB_FILE), _read(folder / "summary.json")
    lines = read_metrics(folder / "metrics.jsonl")
    steps = list({row["step"]: row for row in lines if row["phase"] == "train"}.values())
    evaluations = [row for row in lines if row["phase"] == "eval"]
    final = summary["accuracy"]["final"] or {}
    counted = [line[VIOLATIONS] for line in steps if VIOLATIONS in line]
    return RunRow(
        arm=arm,
        seed=seed,
        start=job["start"],
        folder=folder,
        steps=len(steps),
        curves={short: [line.get(name) for line in steps] for name, short in CURVES.items()},
        held_out={row["step"]: mean for row in evaluations if (mean := _pass_at_1(row)) is not None},
        items=item_scores(folder / "benchmarks" / f"step_{summary['steps']:08d}"),
        k=max([b["k"] for b in final.get("benchmarks", {}).values()], default=0),
        greedy=(final.get("greedy") or {}).get("mean"),
        tasks=_task_counts(steps),
        violations=int(sum(counted)) if counted else None,
        dropped=int(sum(line.get("updates/dropped") or 0 for line in steps)),
        seconds=job["seconds"],
        versions=job["versions"],
    )


def collect_start(job: Job, rows: Sequence[RunRow]) -> StartRow:
    """Reads the folder of a start; its accuracy is what its runs measured before their first step."""
    measured = [row.held_out[0] for row in rows if row.start == job.name and 0 in row.held_out]
    cold = job.folder / "cold_start.json"
    return StartRow(
        name=job.name,
        pass_at_1=mean_of(measured),
        cold_start_steps=_read(cold)["steps"] if cold.exists() else None,
    )


def _pass_at_1(row: Mapping[str, Any]) -> float | None:
    """Of a line of an evaluation; benchmarks count alike. Without any: sampled accuracy on the held-out split."""
    means = [v for name, v in row.items() if name.startswith("eval/") and name.endswith("/pass@1")]
    return mean_of(means) if means else row.get("eval/sampled/all")


def _task_counts(steps: Sequence[Mapping[str, Any]]) -> dict[str, tuple[int, int]]:
    names = sorted({name for line in steps for name in line if name.startswith(TASK_COUNTS)})
    found = {name: [int(line.get(name, 0)) for line in steps] for name in names}
    return {name.removeprefix(TASK_COUNTS): (min(counts), max(counts)) for name, counts in found.items()}


def item_scores(folder: Path) -> dict[str, float]:
    """Mean score of the responses by "benchmark/item", from the records of an evaluation; {} if there was none."""
    found: dict[str, float] = {}
    for path in sorted(folder.glob("*/records.jsonl")):
        for record in _lines(path):
            own = [r["score"] for r in record["responses"] if r["score"] is not None]
            if own:
                found[f"{path.parent.name}/{record['id']}"] = math.fsum(own) / len(own)
    return dict(sorted(found.items()))


def write_data(results: Results, folder: Path) -> list[Path]:
    """runs.jsonl, a line a run; curves.jsonl, a line for WINDOW steps of a run; items.jsonl, a line a run."""
    folder.mkdir(parents=True, exist_ok=True)
    files = {
        "runs.jsonl": [_run_line(row) for row in results.rows],
        "curves.jsonl": [line for row in results.rows for line in _curve_lines(row)],
        "items.jsonl": [_item_line(row) for row in results.rows if row.items],
        "absent.jsonl": [asdict(a) for a in results.absent],
        "starts.jsonl": [asdict(s) for s in results.starts],
    }
    for name, lines in files.items():
        (folder / name).write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    return [folder / name for name in files]


def _run_line(row: RunRow) -> dict[str, Any]:
    ends = {f"end_{name}": _rounded(row.end_mean(name)) for name in CURVES.values()}
    about = {"label": row.arm.label, "seed": row.seed, "arm": asdict(row.arm), "start": row.start, "steps": row.steps}
    measured = {"held_out": dict(row.held_out), "k": row.k, "items": len(row.items), "greedy": row.greedy}
    counted = {"tasks": dict(row.tasks), "violations": row.violations, "dropped": row.dropped}
    return about | measured | ends | counted | {"seconds": round(row.seconds, 1), "commit": row.versions.get("commit")}


def _curve_lines(row: RunRow) -> Iterator[dict[str, Any]]:
    for first in range(0, row.steps, WINDOW):
        means = {name: _rounded(mean_of(values[first : first + WINDOW])) for name, values in row.curves.items()}
        last = min(first + WINDOW, row.steps)
        known = {name: mean for name, mean in means.items() if mean is not None}
        yield {"label": row.arm.label, "seed": row.seed, "first_step": first + 1, "last_step": last, **known}


def _item_line(row: RunRow) -> dict[str, Any]:
    """Scores in the order of the items' names."""
    return {
        "label": row.arm.label,
        "seed": row.seed,
        "k": row.k,
        "scores": [_rounded(s, 4) for s in row.items.values()],
    }


def _rounded(value: float | None, digits: int = 6) -> float | None:
    return None if value is None else float(f"{value:.{digits}g}")


def _read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    with path.open(encoding="utf-8") as file:
        yield from map(json.loads, file)
