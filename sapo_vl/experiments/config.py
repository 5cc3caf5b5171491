"""What an experiment is: which models, how long, how often, and how wide the stress grid is."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, ValidationError

from sapo_vl.config import ConfigError, RunConfig, load_config
from sapo_vl.strict import Strict

Figure = Literal["1", "2", "4", "5", "6", "stress"]
FIGURES: tuple[Figure, ...] = ("1", "2", "4", "5", "6", "stress")
# Settings that make what all runs start from. A run gets their results by path.
_OF_THE_START = ("recipe", "cold_start", "model.tiny", "model.path", "data.path")
DATA = "{data}"  # in an override of a run: the folder of its data set


class ModelBase(Strict):
    """One model, and what its runs have in common."""

    config: str  # of `sapo-vl run`; relative to the experiment's file
    moe: bool = False  # whether there is a routing to replay
    overrides: tuple[str, ...] = ()  # "key=value", for the start and the runs
    mixed: tuple[str, ...] = ()  # further ones for the mixed text and image runs; none = there are no such runs
    arms: tuple[str, ...] = ()  # further ones for the runs alone; {data} stands for the folder of the data set


class LossChoice(Strict):
    """A loss with settings of its own."""

    loss: str = "sapo"
    params: dict[str, float | str] = Field(default_factory=dict)
    replay: Literal["none", "r2", "r3"] = "none"


class StressConfig(Strict):
    """The grid that the paper lacks."""

    mini_batches: tuple[int, ...] = (1, 2, 4, 8, 16)  # updates per rollout batch
    lr_factors: tuple[float, ...] = (1.0, 2.0, 4.0)  # times the learning rate of the model's config
    hard_lr_factor: float = Field(default=2.0, gt=0)  # where all losses and all replays meet, at most mini-batches
    stale: bool = True  # also with rollouts of the step before
    also: tuple[LossChoice, ...] = ()  # further ones to meet there


class ExperimentConfig(Strict):
    """The file that `sapo-vl reproduce --config` reads."""

    models: dict[str, ModelBase] = Field(min_length=1)  # the first one stands for the paper's mixture of experts
    figures: tuple[Figure, ...] = FIGURES
    seeds: tuple[int, ...] = Field(default=(0, 1, 2), min_length=1)  # of the training: order of rows, responses
    start_seed: int = Field(default=0, ge=0)  # of data, model and cold start
    cold_start_per_seed: bool = False  # True: they are made anew for every seed, with that one
    steps: int = Field(default=300, ge=1)  # rollout batches of every run
    jobs: int = Field(default=0, ge=0)  # runs side by side; 0 = one per core if each takes one rank on a CPU, else 1
    threads: int = Field(default=0, ge=0)  # OMP_NUM_THREADS of a run; 0 = left alone
    sequences_every: int = Field(default=10, ge=1)  # steps between records of all sequences, for figures 2 and 3
    collapse_drop: float = Field(default=0.05, gt=0)  # see docs/experiments.md
    keep_models: bool = True  # False: final/ and checkpoints/ of finished runs are deleted
    stress: StressConfig = StressConfig()


def load_experiment(path: Path, changes: dict[str, Any]) -> ExperimentConfig:
    """Reads the YAML file `path`; `changes` go before it. Paths of configs become absolute.

    Raises ConfigError naming file and key.
    """
    try:
        raw = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise ConfigError(f"{path} cannot be read as YAML: {error}") from None
    if not isinstance(raw, dict):
        raise ConfigError(f"{path}: an experiment is a mapping, this is a {type(raw).__name__}")
    if "models" not in raw:
        raise ConfigError(
            f"{path} has no `models`, so it is no experiment but perhaps a run's config; see configs/experiments/"
        )
    try:
        experiment = ExperimentConfig.model_validate(raw | changes)
    except ValidationError as error:
        lines = [f"  {'.'.join(map(str, e['loc']))}: {e['msg']} (got {str(e['input'])[:120]})" for e in error.errors()]
        raise ConfigError(f"{path}: this experiment cannot be used\n" + "\n".join(lines)) from None
    models = {
        name: m.model_copy(update={"config": str((path.parent / m.config).resolve())})
        for name, m in experiment.models.items()
    }
    return experiment.model_copy(update={"models": models})


def start_pairs(model: ModelBase, mixed: bool, pairs: list[str], seed: int) -> list[str]:
    """Overrides of what the runs start from."""
    return [*model.overrides, *(model.mixed if mixed else ()), *pairs, f"seed={seed}"]


def run_pairs(model: ModelBase, pairs: list[str]) -> list[str]:
    """Overrides that a run has on top of the prepared config, before those of its arm."""
    return [*model.arms, *(p for p in pairs if not p.partition("=")[0].startswith(_OF_THE_START))]


def start_config(model: ModelBase, mixed: bool, pairs: list[str], seed: int) -> RunConfig:
    """Raises ConfigError."""
    return load_config(model.config, start_pairs(model, mixed, pairs, seed))
