"""`sapo-vl run`: data, tiny model, cold start, training, report. A finished stage is not run again."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import yaml

from data_recipes import find_recipe
from data_recipes.arguments import build_recipe, recipe_arguments
from sapo_vl.config import ColdStartConfig, ConfigError, RunConfig, save_config
from sapo_vl.data.folder import DataError, split_names
from sapo_vl.data.problem_set import BadRow, ProblemSet
from sapo_vl.launching import launch
from sapo_vl.learning.checkpoint import CHECKPOINTS
from sapo_vl.lengths import fitted
from sapo_vl.model.tiny import init_tiny
from sapo_vl.planning.plan import summary_here
from sapo_vl.record.files import delete, sweep, write_text
from sapo_vl.record.identity import differing_settings
from sapo_vl.record.report import write_report
from sapo_vl.record.run_lock import hold_folder
from sapo_vl.record.run_log import write_json
from sapo_vl.room import check_room
from sapo_vl.session import quiet_libraries
from sapo_vl.sft import COLD_START_MODEL
from sapo_vl.stages import COLD_START_RESULT, preflight
from sapo_vl.strict import Unreadable, read_mapping
from sapo_vl.types import Problem
from sapo_vl.viewing.collecting import default_page, write_page

log = logging.getLogger(__name__)
PREPARED_CONFIG = "prepared.yaml"
TOKENIZER_ROWS = 2000  # rows of each split whose texts train a tiny tokenizer
MADE = ("data", "init", "run.yaml", PREPARED_CONFIG, CHECKPOINTS["sft"])  # what is written here, other than by stages
# Settings that may change between two calls on one run folder.
FREE_KEYS = ("steps", "resume", "log", "eval", "checkpoint", "processes")


def build_tiny_model(kind: Literal["dense", "moe"], data: Path, out: Path, seed: int) -> Path:
    """A tiny model whose tokenizer knows the texts of the data set."""
    return init_tiny(kind, _texts(data), out, seed)


def _texts(data: Path) -> Iterator[str]:
    for split in split_names(data):
        problems = ProblemSet(data, split)
        for row in range(min(TOKENIZER_ROWS, len(problems))):
            with contextlib.suppress(BadRow):  # training counts and names it
                yield from _texts_of(problems.get(row))


def _texts_of(problem: Problem) -> Iterator[str]:
    for turn in problem.messages:
        parts = turn["content"] if isinstance(turn["content"], list) else [{"text": turn["content"]}]
        yield from (part["text"] for part in parts if "text" in part)
    if problem.solution:
        yield problem.solution


def run(config: RunConfig, out: Path) -> str:
    """All stages in order; returns the report. Each stage's seconds go to summary.json under wall_s.

    Raises FolderTaken if another run is at work in `out`, Stopped if this one was told to stop."""
    _check_given(config)
    with hold_folder(out, "sapo-vl run"):
        return _run(config, out)


def _run(config: RunConfig, out: Path) -> str:
    seconds: dict[str, float] = {}
    config = _prepare(config, out, seconds)
    print(summary_here(config), flush=True)
    _timed(seconds, "rl", lambda: launch("train", config, out))
    summary = read_mapping(out / "summary.json")
    summary["wall_s"] |= seconds | {"total": sum(seconds.values())}
    if (out / COLD_START_RESULT).exists():
        summary["cold_start"] = read_mapping(out / COLD_START_RESULT)
    write_json(out / "summary.json", summary)
    return write_report(out) + _page(out)


def _page(out: Path) -> str:
    """Writes the page to look at and returns the line that names it. A page that fails costs no run its end."""
    path = default_page(out)
    try:
        write_page([out], path, RunConfig(cold_start=ColdStartConfig()).model_dump(mode="json"))
    except Exception:  # hours of training are done and written; our own bugs show with their traceback
        log.warning("the page was not written; `sapo-vl view %s` tries again", out, exc_info=True)
        return ""
    return f"\nTo look at it, rollouts and all: {path}\n"


def prepare(config: RunConfig, out: Path) -> Path:
    """What comes before training, for several trainings to start from: data, tiny model, cold start.

    Returns the config of such a training, `out`/prepared.yaml: the given one with the paths of what was made."""
    _check_given(config)
    with hold_folder(out, "sapo-vl run --prepare"):
        config = _prepare(config, out, {})
        save_config(config, out / PREPARED_CONFIG)
    return out / PREPARED_CONFIG


def _prepare(config: RunConfig, out: Path, seconds: dict[str, float]) -> RunConfig:
    """Puts the seconds of each stage into `seconds`; returns the config of the training."""
    quiet_libraries()
    out.mkdir(parents=True, exist_ok=True)
    sweep(out, MADE)
    _same_settings(config, out)
    config = _timed(seconds, "data", lambda: _data(config, out))
    config = _timed(seconds, "init", lambda: _model(config, out))
    config = fitted(config)
    preflight(config, "train")  # before the cold start, which would take its time first
    check_room(config, "train", out)
    return _timed(seconds, "cold_start", lambda: _cold_start(config, out))


def _check_given(config: RunConfig) -> None:
    """What can be known before the first stage."""
    if not config.recipe.name and not config.data.path:
        raise ConfigError("neither data.path nor recipe.name says which problems to train on; set one")
    if not config.model.path and not config.model.tiny:
        raise ConfigError("neither model.path nor model.tiny says which model to train; set one")
    if config.recipe.name:
        _recipe_arguments(config)


def _recipe_arguments(config: RunConfig) -> dict[str, Any]:
    name, given = config.recipe.name, [f"{k}={v}" for k, v in config.recipe.args.items()]
    return {"seed": config.seed} | recipe_arguments(find_recipe(name), given, name)


def _timed(seconds: dict[str, float], name: str, stage: Any) -> Any:
    print(f"== {name}", flush=True)
    started = time.monotonic()
    result = stage()
    seconds[name] = time.monotonic() - started
    return result


def _data(config: RunConfig, out: Path) -> RunConfig:
    if not config.recipe.name:
        return config
    folder = out / "data"
    if not (folder / "dataset_dict.json").exists():
        if folder.exists():
            raise DataError(f"{folder} has no dataset_dict.json; delete the folder to have it built again")
        name = config.recipe.name
        build_recipe(find_recipe(name), folder, _recipe_arguments(config), name)
    data = config.data.model_copy(update={"path": str(folder)})
    return config.model_copy(update={"data": data, "recipe": type(config.recipe)()})


def _model(config: RunConfig, out: Path) -> RunConfig:
    if not config.model.tiny:
        return config
    folder = out / "init"
    if not folder.exists():
        build_tiny_model(config.model.tiny, Path(config.data.path), folder, config.seed)
    return _with_model(config, folder)


def _cold_start(config: RunConfig, out: Path) -> RunConfig:
    if config.cold_start is None:
        return config
    if not (out / COLD_START_RESULT).exists():
        preflight(config, "sft")
        launch("sft", config, out)
    read_mapping(out / COLD_START_RESULT)  # damaged, it would be told after the training
    if (out / CHECKPOINTS["sft"]).exists():  # the stage was killed when it had its result
        delete(out / CHECKPOINTS["sft"])
    return _with_model(config, out / COLD_START_MODEL)


def _with_model(config: RunConfig, folder: Path) -> RunConfig:
    return config.model_copy(update={"model": config.model.model_copy(update={"path": str(folder), "tiny": ""})})


def _same_settings(config: RunConfig, out: Path) -> None:
    """A run folder belongs to one configuration: mixing two would pass one's stages off as the other's."""
    path = out / "run.yaml"
    asked = config.model_dump(mode="json")
    # A folder in which no stage has left anything yet is free: the first attempt was refused.
    if path.exists() and any(p != path and not p.name.startswith(".") for p in out.iterdir()):
        try:
            made = read_mapping(path)
        except Unreadable as error:
            raise ConfigError(f"{error}; give another run folder (OUT_DIR), or delete this one") from error
        differ = [k for k in asked if k not in FREE_KEYS and asked[k] != made.get(k)]
        if differ:
            each = differing_settings({k: asked[k] for k in differ}, made)
            raise ConfigError(
                f"{out} was started with other settings ({', '.join(differ)}): {'; '.join(each)}. Give another run "
                "folder (OUT_DIR), or delete this one"
            )
    write_text(path, yaml.safe_dump(asked, sort_keys=False))
