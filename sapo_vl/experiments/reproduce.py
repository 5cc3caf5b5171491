"""The whole of it: plan, run, collect, write."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path

import torch

from sapo_vl.config import ConfigError
from sapo_vl.experiments.arms import Arm, arms_of
from sapo_vl.experiments.collect import collect
from sapo_vl.experiments.config import ExperimentConfig, start_config
from sapo_vl.experiments.jobs import Job
from sapo_vl.experiments.plan import Plan, make_plan
from sapo_vl.experiments.report import write_report
from sapo_vl.experiments.schedule import Status, only_one, outcome_before, run_jobs
from sapo_vl.session import versions

LARGE = ("checkpoints", "final")  # of a run's folder


def reproduce(
    experiment: ExperimentConfig,
    out: Path,
    globs: Sequence[str],
    pairs: list[str],
    *,
    budget_s: float | None = None,
    run: bool = True,
) -> int:
    """Runs what is missing (`run`) and writes the report. Returns 1 if a run failed, else 0.

    Raises ConfigError for a config that cannot be used, or names of arms that there are not.
    """
    chosen = chosen_arms(experiment, globs)
    plan = make_plan(experiment, chosen, out, pairs)
    jobs = jobs_of(plan)
    failed = 0
    with only_one(out) as lock:
        if run:
            outcomes = run_jobs(
                jobs,
                slots=slots(experiment, jobs),
                budget_s=budget_s,
                threads=experiment.threads,
                lock=lock,
                versions=versions(),
                say=lambda text: print(text, flush=True),
                done=lambda job: None if experiment.keep_models else _delete_large(job),
            )
            failed = sum(o.status is Status.FAILED for o in outcomes.values())
        report, errors = write_report(
            experiment,
            {figure: [arm for arm in arms if arm in chosen] for figure, arms in arms_of(experiment).items()},
            collect(plan),
            {
                name: start_config(model, False, pairs, experiment.start_seed)
                for name, model in experiment.models.items()
            },
            out,
        )
    print(report)
    for error in errors:
        print(f"ERROR: {error}")
    return 1 if failed or errors else 0


def chosen_arms(experiment: ExperimentConfig, globs: Sequence[str]) -> list[Arm]:
    """The arms of all figures, each once, whose label fits one of `globs`."""
    arms = list(dict.fromkeys(arm for arms in arms_of(experiment).values() for arm in arms))
    chosen = [arm for arm in arms if any(fnmatchcase(arm.label, glob) for glob in globs)]
    if arms and not chosen:
        raise ConfigError(f"no arm is named {' or '.join(globs)}; there are {', '.join(arm.label for arm in arms)}")
    return chosen


def jobs_of(plan: Plan) -> list[Job]:
    """What has a job: starts first."""
    return [*plan.starts, *(run.job for run in plan.runs if run.job is not None)]


def slots(experiment: ExperimentConfig, jobs: Sequence[Job]) -> int:
    """How many jobs go side by side."""
    if experiment.jobs:
        return experiment.jobs
    alone = torch.cuda.is_available() or any(job.ranks != 1 for job in jobs)
    return 1 if alone else max(1, os.cpu_count() or 1)


def listing(experiment: ExperimentConfig, out: Path, globs: Sequence[str], pairs: list[str]) -> str:
    """The arms, and how far each of their runs is."""
    plan = make_plan(experiment, chosen_arms(experiment, globs), out, pairs)
    lines = []
    for planned in plan.runs:
        before = outcome_before(planned.job) if planned.job else None
        how = f"not available: {planned.refused}" if planned.refused else str(before.status if before else "to do")
        lines.append(f"{planned.arm.label} seed {planned.seed}: {how}")
    return "\n".join(lines)


def _delete_large(job: Job) -> None:
    """The models of a run, and the records of all evaluations but the last."""
    if job.about["kind"] == "run":
        earlier = sorted((job.folder / "benchmarks").glob("step_*"))[:-1]
        for folder in [*(job.folder / name for name in LARGE), *earlier]:
            shutil.rmtree(folder, ignore_errors=True)
