"""The stages that run on all ranks (sft, train, eval), their launch, and what is checked before it."""

from __future__ import annotations

import contextlib
import logging
import os
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch

from sapo_vl.config import ConfigError, RunConfig, save_config
from sapo_vl.data.problem_set import DataError, ProblemSet
from sapo_vl.data.sampler import QuotaSampler
from sapo_vl.distributed import World, init_world, shutdown_world
from sapo_vl.evaluation.held_out import evaluate_held_out
from sapo_vl.evaluation.run import check_benchmarks, engine_rollout, evaluate_benchmarks
from sapo_vl.evaluation.table import figures_table, held_out_table
from sapo_vl.launching import STOPPED_FILE, num_processes
from sapo_vl.learning.checkpoint import CHECKPOINTS, MANIFEST, complete_checkpoints, set_aside_from
from sapo_vl.learning.tuning import use_cores
from sapo_vl.lengths import check_lengths, fitted, single_rows_over_budget
from sapo_vl.lifeline import LAUNCHER, Stopped, StoppedRanks, StopRequest, joined_in_time
from sapo_vl.machines.watch import machines_watched
from sapo_vl.model.chat import check_tokenizer, load_processor
from sapo_vl.model.export import carried_files
from sapo_vl.model.folder import ModelError, ModelFolder, check_layout_for_vllm, examine, is_moe
from sapo_vl.model.identity import model_digest
from sapo_vl.model.loading import ModelConfig
from sapo_vl.model.lora import check_lora
from sapo_vl.record.files import delete, set_aside, sweep
from sapo_vl.record.identity import (
    CONFIG_FILES,
    FINISHED,
    IDENTITY_FILE,
    RESULTS,
    Identity,
    changed_settings,
    differences,
    identity_of,
    read_identity,
    write_identity,
)
from sapo_vl.record.model_card import write_model_card
from sapo_vl.record.run_lock import hold_folder
from sapo_vl.record.run_log import METRICS_FILE, RunLog, check_trackers, read_metrics, write_json
from sapo_vl.restarts import life, resume_of
from sapo_vl.rollout.vllm.contract import check_transfer, load_contract
from sapo_vl.room import check_room
from sapo_vl.scoring.scorer import Scorer
from sapo_vl.session import check_replay, open_sampling, open_session, peak_memory, setup_logging, versions
from sapo_vl.sft import cold_start, cold_start_sampler
from sapo_vl.strict import Unreadable, read_mapping
from sapo_vl.train import train

COLD_START_RESULT = "cold_start.json"
log = logging.getLogger(__name__)


def preflight(config: RunConfig, stage: str, ranks: int = 0) -> None:
    """Everything about a stage that can be known without loading weights. Raises the error of what is wrong.

    `ranks` is how many there are, if a launcher has decided that; 0 = as many as `launch` would start.
    """
    if not config.model.path:
        raise ModelError("model.path is empty; give a Hugging Face model folder, or build one with `sapo-vl init-tiny`")
    folder = examine(config.model.path, config.model.revision)
    if config.model.lora is not None:
        check_lora(folder.config, config.model.lora)
    check_lengths(config)
    check_tokenizer(load_processor(config.model.path, config.model.revision), folder)
    if stage != "eval":
        device = "cuda" if torch.cuda.is_available() else "cpu"
        check_replay(config.replay, folder, config.rollout, device)
        carried_files(folder, config.model.dtype)  # a dry export: what the end would refuse is known now
    if config.rollout.engine == "vllm_server":
        check_transfer(config.rollout.server.transfer, on_cpu=not torch.cuda.is_available())
    if config.rollout.engine != "transformers":
        check_layout_for_vllm(folder)
    if stage != "eval":
        _check_trackers(config)
        _check_learning(config.model, folder)
    ranks = ranks or num_processes(config)
    if stage == "sft":
        if config.cold_start is None:
            raise ModelError("this config has no cold_start section; add one (cold_start.steps=...)")
        rows = _whole_rows(config.data.path, config.cold_start.split)
        cold_start_sampler(config, config.cold_start, rows.tasks)
        if config.cold_start.batch_size % ranks:
            raise DataError(
                f"cold_start.batch_size={config.cold_start.batch_size} must be a multiple of the {ranks} ranks"
            )
        if config.cold_start.target_pass_rate:
            _check_rewards(config, config.data.train_split)
    if stage == "train":
        rows = ProblemSet(config.data.path, config.data.train_split)
        QuotaSampler(rows.tasks, config.data.quotas, config.rollout.prompts_per_step, config.seed)
        if config.rollout.prompts_per_step % (ranks * config.batch.mini_batches):
            raise DataError(
                f"rollout.prompts_per_step={config.rollout.prompts_per_step} must be a multiple of "
                f"ranks x mini-batches = {ranks} x {config.batch.mini_batches}"
            )
        if config.resume not in ("auto", "no") and not (Path(config.resume) / MANIFEST).exists():
            raise ConfigError(
                f"resume={config.resume!r} is no complete checkpoint folder; give one (runs/NAME/checkpoints/step_N), "
                "auto, or no"
            )
        _check_rewards(config, config.data.train_split, config.data.eval_split)
        if told := single_rows_over_budget(config, folder):
            log.warning("%s", told)
    if stage in ("train", "eval"):
        check_benchmarks(config)
        if config.rollout.engine == "vllm":
            _check_engines(config, ranks)
    if stage == "eval" and not config.eval.benchmarks:
        _check_rewards(config, config.data.eval_split)


def _check_learning(model: ModelConfig, folder: ModelFolder) -> None:
    """What model.freeze would leave of this model."""
    frozen = set(model.freeze)
    if "router" in frozen and not is_moe(folder.config):
        raise ModelError("model.freeze names 'router', but this model has no such parameters; remove it")
    if model.lora is None and {"vision", "merger", "language"} <= frozen and folder.tied:
        raise ConfigError(
            f"model.freeze={list(model.freeze)} leaves nothing to learn: the head of the model at {model.path} is its "
            "embedding matrix (tie_word_embeddings), a part of 'language'; take a part out, or set model.lora"
        )


def check_run_folder(config: RunConfig, stage: str, out: Path) -> None:
    """Raises ConfigError if the stage's results in `out`, or the checkpoint to go on from, are of another model, other
    data or other settings that must not change (record/identity.py), or if the disk has no room for its results. With
    resume=no the folder starts anew."""
    _compared(config, stage, out)
    if stage != "eval":
        check_room(config, stage, out)


def _compared(config: RunConfig, stage: str, out: Path) -> tuple[Identity | None, bool]:
    """(the identity of what is about to run, if it was looked at; whether what lies in `out` is to be set aside)."""
    here: Identity | None = None
    aside = False
    for folder in dict.fromkeys([out.resolve(), *_origin(config, stage)]):
        there = _recorded(folder, stage)
        if there is None:
            continue
        here = here or _identity(config, stage)
        differ = differences(here, there)
        if not differ:
            continue
        if folder != out.resolve():
            raise ConfigError(
                f"resume={config.resume} is of another run than this one ({'; '.join(differ)}); resume with the same, "
                "or start from its weights: model.path=.../final"
            )
        if _has_results(out, stage) and config.resume != "no":
            raise ConfigError(
                f"{out} has results of a stage {stage} with other settings ({'; '.join(differ)}); give another --out, "
                "or resume=no to start anew in this one: what it has is then kept as superseded_..."
            )
        _check_not_read(config, stage, out)
        aside = True
    return here, aside


def _origin(config: RunConfig, stage: str) -> list[Path]:
    """The run folder of a checkpoint that resume names."""
    return [] if stage != "train" or config.resume in ("auto", "no") else [Path(config.resume).resolve().parents[1]]


def _recorded(folder: Path, stage: str) -> Identity | None:
    """What the folder says of its results. Raises ConfigError if a file that a run goes on with cannot be read."""
    try:
        if (folder / METRICS_FILE).exists():
            read_metrics(folder / METRICS_FILE)
        return read_identity(folder, stage)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def _has_results(out: Path, stage: str) -> bool:
    finished = any((out / name).exists() for name in FINISHED[stage])
    return finished or (stage in CHECKPOINTS and bool(complete_checkpoints(out / CHECKPOINTS[stage])))


def _check_not_read(config: RunConfig, stage: str, out: Path) -> None:
    """Nothing that is about to be set aside may be what the stage reads."""
    for key, path in (("model.path", config.model.path), ("data.path", config.data.path)):
        for name in RESULTS[stage]:
            if path and Path(path).resolve().is_relative_to((out / name).resolve()):
                raise ConfigError(f"{key}={path} would be set aside by starting anew in {out}; give another --out")


def _identity(config: RunConfig, stage: str) -> Identity:
    splits = [config.data.train_split, config.data.eval_split]
    if stage == "sft":
        splits = [config.cold_start.split] if config.cold_start else []
    if stage == "eval":
        splits = [] if config.eval.benchmarks else [config.data.eval_split]
    content = {"model.path": model_digest(config.model.path, config.model.revision)}
    if splits:
        content["data.path"] = " ".join(ProblemSet(config.data.path, split).digest() for split in splits)
    return identity_of(stage, config.model_dump(mode="json"), content)


def _take_run_folder(config: RunConfig, stage: str, out: Path) -> None:
    """Makes `out` the folder of this stage and of nothing else."""
    here, aside = _compared(config, stage, out)
    out.mkdir(parents=True, exist_ok=True)
    for name in RESULTS[stage] if aside else ():
        if (out / name).exists():
            set_aside(out / name)
    if aside and stage in CHECKPOINTS:  # before the folder is named after this run: they must not pass for its own
        set_aside_from(out / CHECKPOINTS[stage], 0, World.alone())
    write_identity(out, stage, here or _identity(config, stage))


def _say_what_changed(config: RunConfig, stage: str, out: Path) -> None:
    """A run may go on with other settings, but not without a word: a new version may have other defaults."""
    if stage not in CHECKPOINTS or config.resume == "no":
        return
    for folder in _origin(config, stage) or [out]:
        path = folder / CONFIG_FILES[stage]
        if not path.exists() or not complete_checkpoints(folder / CHECKPOINTS[stage]):
            continue
        try:
            changed = changed_settings(config, read_mapping(path))
        except Unreadable as error:
            log.warning("going on with the run of %s, whose settings are not known: %s", folder, error)
            continue
        if changed:
            log.warning("going on with the run of %s with other settings: %s", folder, "; ".join(changed))


def _check_rewards(config: RunConfig, *splits: str) -> None:
    with Scorer(config.rewards) as scorer:
        for split in splits:
            scorer.check(_whole_rows(config.data.path, split).rewards, dataset=config.data.path)


def _whole_rows(path: str, split: str) -> ProblemSet:
    """Raises DataError if they are not the rows that were written, where the folder tells."""
    rows = ProblemSet(path, split)
    rows.digest()
    return rows


def _check_engines(config: RunConfig, ranks: int) -> None:
    load_contract()  # vLLM is there, in a version that is known
    try:
        config.rollout.vllm.check_ranks(ranks)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def _check_trackers(config: RunConfig) -> None:
    try:
        check_trackers(config.log)
    except ModuleNotFoundError as error:
        raise ConfigError(str(error)) from error


def run_stage(stage: str, config: RunConfig, out: Path) -> None:
    """A stage on this rank. Results go into the run folder.

    Raises Stopped if the stage was told to stop, FolderTaken if another run is at work in `out`.
    """
    config = fitted(config)
    with joined_in_time():
        world = init_world()
    setup_logging(world)
    use_cores(config.zero, world)
    if (resume := world.gather(resume_of(config.resume, out, stage))[0]) != config.resume:
        log.warning("started again by its launcher: resume=%s becomes %s", config.resume, resume)
        config = config.model_copy(update={"resume": resume})
    if world.is_main:
        # Under a launcher of the user's own nobody has done so; after `launch` it costs a second.
        preflight(config, stage, world.size)
    watched = machines_watched(world, config.checkpoint.silent_s)
    asked = StopRequest(config.checkpoint.grace_s, partial(_leave, out))
    with asked as stop, _watched(config), watched, _held(out, stage, world):
        if world.is_main:
            _swept(out, stage)
            _take_run_folder(config, stage, out)
            _say_what_changed(config, stage, out)
            save_config(config, out / CONFIG_FILES[stage])
        world.barrier()
        with Scorer(config.rewards, world) as scorer:
            try:
                {"sft": _sft, "train": _train, "eval": _eval}[stage](config, out, world, scorer, stop)
            except Stopped as stopped:
                if world.is_main:
                    _leave(out, stopped)
                world.barrier()
                said = LAUNCHER in os.environ or not world.is_main  # by another process
                raise Stopped("" if said else str(stopped), stopped.status) from None
        world.barrier()
    shutdown_world()


def _leave(out: Path, stopped: Stopped) -> None:
    """For the launcher to say."""
    write_json(out / STOPPED_FILE, {"message": str(stopped), "status": stopped.status})


def _held(out: Path, stage: str, world: World) -> contextlib.AbstractContextManager[None]:
    return hold_folder(out, f"stage {stage}", life()) if world.is_main else contextlib.nullcontext()


def _watched(config: RunConfig) -> contextlib.AbstractContextManager[object]:
    """Our own launcher looks after its ranks; under another one they look after each other."""
    alone = LAUNCHER in os.environ or "TORCHELASTIC_RUN_ID" not in os.environ
    return contextlib.nullcontext() if alone else StoppedRanks(os.getppid(), config.checkpoint.stopped_s)


def _swept(out: Path, stage: str) -> None:
    """Deletes what killed processes have left in the folder of this stage."""
    names = {*RESULTS[stage], METRICS_FILE, IDENTITY_FILE, *CONFIG_FILES.values(), STOPPED_FILE}
    sweep(out, {*names, f".begun.{stage}", f".launch.{stage}.yaml"})
    owned = {"train": ("rollouts", "rollouts/images", "sequences")}.get(stage, ())
    for name in (*owned, *filter(None, [CHECKPOINTS.get(stage)])):
        sweep(out / name)


def _sft(config: RunConfig, out: Path, world: World, scorer: Scorer, stop: StopRequest) -> None:
    assert config.cold_start is not None  # preflight
    sft = config.cold_start
    # Its few measurements do not pay for the start of a second engine.
    rollout = config.rollout.model_copy(update={"engine": "transformers"})
    session = open_session(config.model, sft.optim, sft.zero, rollout, world, total_updates=sft.steps, seed=config.seed)
    run_log = RunLog(out, config.log, config.model_dump(mode="json"), world)
    result = cold_start(config, session, scorer, run_log, out, stop)
    run_log.close()
    if world.is_main:
        write_json(out / COLD_START_RESULT, result)
        if (root := out / CHECKPOINTS["sft"]).exists():
            delete(root)  # behind the result: without either the cold start would have to be done again


def _train(config: RunConfig, out: Path, world: World, scorer: Scorer, stop: StopRequest) -> None:
    result = train(config, out, world, scorer, stop)
    memory = peak_memory(world)
    if world.is_main:
        about: dict[str, Any] = {"seed": config.seed, "loss": config.loss.name, "ranks": world.size}
        summary = about | result | {"peak_memory": memory, "versions": versions()}
        try:
            write_model_card(out / "final", config.model_dump(mode="json"), summary)
        except OSError as error:  # the model is there, and proved
            log.warning("the card of the model could not be written: %s", error)
        write_json(out / "summary.json", summary)


def _eval(config: RunConfig, out: Path, world: World, scorer: Scorer, stop: StopRequest) -> None:
    started = time.monotonic()
    session = open_sampling(
        config.model, config.zero, engine_rollout(config), world,
        seed=config.seed, gpu_share=config.eval.gpu_memory_utilization, out=out,
    )  # fmt: skip
    result: dict[str, Any]
    if config.eval.benchmarks:
        result = {"benchmarks": evaluate_benchmarks(config, session, out / "benchmarks")}
    else:
        result = evaluate_held_out(config, session, scorer)
    session.rollouts.close()
    if world.is_main:
        write_json(out / "eval.json", result | {"seconds": time.monotonic() - started, "versions": versions()})
        told = figures_table(result["benchmarks"]) if config.eval.benchmarks else held_out_table(result)
        print(f"{told}\n\nin full: {out / 'eval.json'}", flush=True)
