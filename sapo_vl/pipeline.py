"""`sapo-vl run`: data, tiny model, cold start, training, report. A finished stage is not run again."""

from __future__ import annotations

import contextlib
import logging
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel

from data_recipes import find_recipe
from data_recipes.arguments import build_recipe, recipe_arguments
from sapo_vl.config import END, WHOLE, ColdStartConfig, ConfigError, RunConfig, save_config
from sapo_vl.data.folder import DataError, split_names
from sapo_vl.data.problem_set import BadRow, ProblemSet
from sapo_vl.launching import launch
from sapo_vl.learning.checkpoint import CHECKPOINTS
from sapo_vl.lengths import fitted
from sapo_vl.model.tiny import init_tiny
from sapo_vl.planning.plan import summary_here
from sapo_vl.record.files import delete, sweep
from sapo_vl.record.identity import BOUND, CONFIG_FILES, differing_settings
from sapo_vl.record.report import write_report
from sapo_vl.record.run_lock import hold_folder
from sapo_vl.record.run_log import write_json
from sapo_vl.room import check_room
from sapo_vl.session import quiet_libraries
from sapo_vl.sft import COLD_START_MODEL
from sapo_vl.stages import COLD_START_RESULT, check_run_folder, preflight
from sapo_vl.strict import Unreadable, read_mapping
from sapo_vl.types import Problem
from sapo_vl.viewing.collecting import default_page, write_page

log = logging.getLogger(__name__)
RUN_CONFIG = "run.yaml"  # as it was asked for
PREPARED_CONFIG = "prepared.yaml"
TOKENIZER_ROWS = 2000  # rows of each split whose texts train a tiny tokenizer
MADE = ("data", "init", RUN_CONFIG, PREPARED_CONFIG, CHECKPOINTS["sft"])  # what is written here, other than by stages
# What is made here once -> the settings that it is made of. All others may change between two calls on one run folder:
# they are of what is still to come, and identity.json says which of them the results of that are bound to.
MADE_OF: dict[str, tuple[str, ...]] = {
    "data/dataset_dict.json": ("seed", "recipe"),
    "init": ("seed", "recipe", "data.path", "model.tiny"),
    COLD_START_RESULT: (*BOUND["sft"], "recipe", "model.tiny", "model.revision", "cold_start"),
    CHECKPOINTS["train"]: ("cold_start",),  # one that is made now would come too late
}


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
    asked, config = config, _prepare(config, out, seconds)
    check_run_folder(config, "train", out)
    save_config(asked, out / RUN_CONFIG)  # not before: a folder that is refused keeps what it was made with
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
        asked, config = config, _prepare(config, out, {})
        save_config(asked, out / RUN_CONFIG)
        save_config(config, out / PREPARED_CONFIG)
    return out / PREPARED_CONFIG


def _prepare(config: RunConfig, out: Path, seconds: dict[str, float]) -> RunConfig:
    """Puts the seconds of each stage into `seconds`; returns the config of the training."""
    quiet_libraries()
    out.mkdir(parents=True, exist_ok=True)
    sweep(out, MADE)
    _same_settings(config, out)
    if not (out / CHECKPOINTS["train"]).exists():  # what is made from here on is made with these
        save_config(config, out / RUN_CONFIG)
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
    """A run folder belongs to one run: what was made in it of other settings would pass for that of these.

    Raises ConfigError that names what differs."""
    path = out / RUN_CONFIG
    bound = dict.fromkeys(key for name, keys in MADE_OF.items() if (out / name).exists() for key in keys)
    if path.exists() and bound:
        ours, theirs = config.model_dump(mode="json"), _with_defaults(config, _asked_before(path))
        differ = differing_settings(*({key: _at(settings, key) for key in bound} for settings in (ours, theirs)))
        if told := "; ".join(dict.fromkeys(differ)):
            there = ", ".join(name for name in MADE_OF if (out / name).exists())
            raise ConfigError(
                f"{out} has what was made with other settings ({there}): {told}. Give another run "
                f"folder (OUT_DIR){_alone(out)}"
            )


def _asked_before(path: Path) -> dict[str, Any]:
    try:
        settings = read_mapping(path)
        text = path.read_text(encoding="utf-8")
        if text.startswith(WHOLE) and not text.endswith(END):
            raise Unreadable(f"{path} is cut off")
        return settings
    except Unreadable as error:
        raise ConfigError(
            f"{error}: what this folder was made with is not known. Give another run folder (OUT_DIR)"
            f"{_alone(path.parent)}"
        ) from error


def _alone(out: Path) -> str:
    """Another way out, if the run has come to its training."""
    resolved = out / CONFIG_FILES["train"]
    way = f"sapo-vl train --config {resolved} --out {out}"
    return f", or go on with the training of this one alone: {way}" if resolved.exists() else ""


def _with_defaults(config: BaseModel, before: Mapping[str, Any]) -> dict[str, Any]:
    """`before`, an earlier config as plain JSON, with the defaults of settings that its version did not have; without
    those that there are no longer."""
    found = type(config).model_construct().model_dump(mode="json")
    for name in type(config).model_fields:
        if name not in before:
            continue
        section, value = getattr(config, name), before[name]
        nested = isinstance(section, BaseModel) and isinstance(value, Mapping)
        found[name] = _with_defaults(section, value) if nested else value
    return found


def _at(settings: Any, key: str) -> Any:
    """The value under a dotted key; None if there is none."""
    for name in key.split("."):
        settings = settings.get(name) if isinstance(settings, Mapping) else None
    return settings
