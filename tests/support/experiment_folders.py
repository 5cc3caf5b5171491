"""Folders as finished runs of an experiment leave them, with numbers of the test's choice."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sapo_vl.experiments.jobs import Job
from sapo_vl.experiments.plan import Plan, PlannedRun

ITEMS = 5


def finish(job: Job, status: str = "finished", reason: str = "") -> None:
    """Writes job.json as the schedule does."""
    job.folder.mkdir(parents=True, exist_ok=True)
    about = {**job.about, "hash": job.hash, "status": status, "seconds": 10.0, "reason": reason}
    (job.folder / "job.json").write_text(json.dumps(about | {"commands": [], "versions": {"commit": "c0ffee"}}))


def finish_start(job: Job) -> None:
    finish(job)
    job.result.write_text("")
    (job.folder / "cold_start.json").write_text('{"steps": 90}')


def finish_run(
    job: Job,
    rewards: Sequence[float],
    scores: Sequence[Sequence[float]],
    *,
    held_out: Mapping[int, float] | None = None,
    **metrics: Any,
) -> None:
    """`rewards` of the steps; `scores`: of the responses to each item after the last one; `metrics` of every step."""
    finish(job)
    steps = len(rewards)
    lines: list[dict[str, Any]] = [
        {"step": i, "phase": "train", "time": i, "reward/mean": r, "ratio/max": 1.5, "gate/mean": 0.9, **metrics}
        for i, r in enumerate(rewards, 1)
    ]
    mean = sum(sum(own) / len(own) for own in scores) / len(scores)
    for step, value in {**(held_out or {}), steps: mean}.items():
        lines.append({"step": step, "phase": "eval", "time": 0, "eval/b/pass@1": value, "eval/b/pass@1/ci95": [0, 1]})
    (job.folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    folder = job.folder / "benchmarks" / f"step_{steps:08d}" / "b"
    folder.mkdir(parents=True)
    records = [{"id": f"i{n}", "responses": [{"score": s} for s in own]} for n, own in enumerate(scores)]
    (folder / "records.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    final = {"greedy": {"mean": 0.75}, "benchmarks": {"b": {"k": len(scores[0]), "pass@1": {"mean": mean}}}}
    (job.folder / "summary.json").write_text(json.dumps({"steps": steps, "accuracy": {"final": final}}))


def sequence_line(update: int, var: float | None, d: float, bound: float, bins: Mapping[int, int]) -> dict[str, Any]:
    """As log.save_sequences_every writes them; `bins` of log r by place among the edges."""
    about = {"step": 10, "update": update, "id": "x", "task": "t", "image": True, "advantage": 1.0, "tau": 1.0}
    measured = {"mu": 0.0, "var": var, "d": d, "bound": bound, "gate_mean": 1.0, "ratio_mean": 1.0}
    return about | measured | {"tokens": sum(bins.values()), "log_ratio_bins": {str(b): n for b, n in bins.items()}}


def write_sequences(folder: Path, lines: Sequence[Mapping[str, Any]]) -> None:
    (folder / "sequences").mkdir(parents=True, exist_ok=True)
    path = folder / "sequences" / "step_000010.rank0.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))


def jobs_of_runs(plan: Plan, wanted: Callable[[PlannedRun], bool]) -> list[Job]:
    return [planned.job for planned in plan.runs if planned.job is not None and wanted(planned)]
