"""From arms to jobs: which processes make a start or a run, in which folder, and what they are a result of."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from sapo_vl.config import ConfigError, RunConfig, load_config
from sapo_vl.experiments.arms import Arm
from sapo_vl.experiments.config import DATA, ExperimentConfig, run_pairs, start_config, start_pairs
from sapo_vl.experiments.jobs import Job

SAPO_VL = ("-m", "sapo_vl")
PREPARED = "prepared.yaml"  # of sapo_vl.pipeline.prepare
# Sections that say how closely a run is watched, not what it does.
_NOT_RESULTS = ("log", "checkpoint", "resume")
# Settings whose default has become another one: what was run with the old one has another hash.
CHANGED_DEFAULTS = ("advantage.keep_dead_groups",)


@dataclass(frozen=True, slots=True, kw_only=True)
class PlannedRun:
    """One run of an arm, or why there cannot be one."""

    arm: Arm
    seed: int
    job: Job | None
    refused: str = ""  # what the config said: a setting that this version does not have


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Everything that is to be there in the end."""

    starts: tuple[Job, ...]
    runs: tuple[PlannedRun, ...]  # in the order in which they are worth having


def make_plan(experiment: ExperimentConfig, arms: Sequence[Arm], out: Path, pairs: list[str]) -> Plan:
    """`pairs`: overrides of the user's for all starts and runs.

    Raises ConfigError if a start's config cannot be used; an arm whose own settings are refused is told in the plan.
    """
    out = out.resolve()
    starts: dict[str, Job] = {}
    runs: list[PlannedRun] = []
    for arm in arms:
        for seed in experiment.seeds:
            start_seed = seed if experiment.cold_start_per_seed else experiment.start_seed
            start = _start(experiment, arm, start_seed, out, pairs)
            starts[start.name] = start
            runs.append(_run(experiment, arm, seed, start, start_seed, out, pairs))
    return Plan(starts=tuple(starts.values()), runs=tuple(runs))


def _start(experiment: ExperimentConfig, arm: Arm, seed: int, out: Path, pairs: list[str]) -> Job:
    model = experiment.models[arm.model]
    name = f"{arm.model}{'-mixed' if arm.mixed else ''}.seed{seed}"
    folder = out / "starts" / name
    config = start_config(model, arm.mixed, pairs, seed)
    given = start_pairs(model, arm.mixed, pairs, seed)
    return Job(
        name=f"start {name}",
        folder=folder,
        commands=((*SAPO_VL, "run", "--prepare", "--config", model.config, "--out", str(folder), *given),),
        result=folder / PREPARED,
        hash=_hash(config, [], but=("eval",)),
        ranks=config.processes,
        about={"kind": "start", "model": arm.model, "mixed": arm.mixed, "seed": seed},
    )


def _run(
    experiment: ExperimentConfig, arm: Arm, seed: int, start: Job, start_seed: int, out: Path, pairs: list[str]
) -> PlannedRun:
    model = experiment.models[arm.model]
    base = start_config(model, arm.mixed, pairs, start_seed)
    own = [*arm.overrides(base, experiment.sequences_every), f"seed={seed}", f"steps={experiment.steps}"]
    # As the run will see it, but for the paths of what is not made yet.
    common = [*start_pairs(model, arm.mixed, pairs, start_seed), *run_pairs(model, pairs)]
    load_config(model.config, common)  # what is wrong with it is nothing of the arm's
    try:
        config = load_config(model.config, [*common, *own])
    except ConfigError as error:
        return PlannedRun(arm=arm, seed=seed, job=None, refused=_plain(error, own))
    folder = out / "runs" / arm.label / f"seed_{seed}"
    shared = _placed(run_pairs(model, pairs), start.folder, base)
    job = Job(
        name=f"{arm.label} seed {seed}",
        folder=folder,
        commands=((*SAPO_VL, "train", "--config", str(start.folder / PREPARED), "--out", str(folder), *shared, *own),),
        result=folder / "summary.json",
        hash=_hash(config, [start.hash, *CHANGED_DEFAULTS]),
        ranks=config.processes,
        about={"kind": "run", "label": arm.label, "seed": seed, "start": start.name},
        after=start.name,
    )
    return PlannedRun(arm=arm, seed=seed, job=job)


def _plain(error: ConfigError, own: list[str]) -> str:
    """The fault alone, without the list of all overrides before it."""
    return " ".join(str(error).rpartition(f" {own[-1]}: ")[2].split())


def _placed(pairs: list[str], start: Path, config: RunConfig) -> list[str]:
    """The overrides with the folder of the data set in them: made by the start, or given."""
    data = str(start / "data") if config.recipe.name else config.data.path
    return [pair.replace(DATA, data) for pair in pairs]


def _hash(config: RunConfig, more: Sequence[str], but: Sequence[str] = ()) -> str:
    """Of what differs from the defaults, so that a version with a new setting does not make old results another's;
    `but`: sections that do not count."""
    values = config.model_dump(mode="json", exclude_defaults=True)
    kept = {key: value for key, value in values.items() if key not in (*_NOT_RESULTS, *but)}
    return hashlib.sha256(json.dumps([kept, *more], sort_keys=True).encode()).hexdigest()[:16]
