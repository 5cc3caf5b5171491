"""The stages that run on all ranks (sft, train, eval), their launch, and what is checked before it."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import torch
from torch.distributed import run as torchrun
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError

from sapo_vl.config import ConfigError, RunConfig, save_config
from sapo_vl.data.problem_set import DataError, ProblemSet
from sapo_vl.data.sampler import QuotaSampler
from sapo_vl.distributed import World, init_world, shutdown_world
from sapo_vl.evaluation.held_out import evaluate_held_out
from sapo_vl.evaluation.run import check_benchmarks, engine_rollout, evaluate_benchmarks
from sapo_vl.evaluation.table import figures_table
from sapo_vl.learning.checkpoint import MANIFEST
from sapo_vl.learning.optim import OptimConfig, ZeroConfig
from sapo_vl.model.chat import load_processor
from sapo_vl.model.loading import ModelError, check_weights, read_config
from sapo_vl.model.lora import check_lora
from sapo_vl.record.run_log import RunLog, check_trackers, write_json
from sapo_vl.rollout.vllm.contract import load_contract
from sapo_vl.scoring.scorer import Scorer
from sapo_vl.session import open_session, peak_memory, setup_logging, versions
from sapo_vl.sft import cold_start
from sapo_vl.train import train

COLD_START_RESULT = "cold_start.json"


def num_processes(config: RunConfig) -> int:
    """Ranks on this machine: as configured, or one per GPU, or 2 on a CPU."""
    return config.processes or torch.cuda.device_count() or min(2, os.cpu_count() or 1)


def preflight(config: RunConfig, stage: str, ranks: int = 0) -> None:
    """Everything about a stage that can be known without loading weights. Raises the error of what is wrong.

    `ranks` is how many there are, if a launcher has decided that; 0 = as many as `launch` would start.
    """
    if not config.model.path:
        raise ModelError("model.path is empty; give a Hugging Face model folder, or build one with `sapo-vl init-tiny`")
    hf_config = read_config(config.model.path, config.model.revision)
    check_weights(config.model.path)
    if config.model.lora is not None:
        check_lora(hf_config, config.model.lora)
    load_processor(config.model.path, config.model.revision)
    if stage != "eval":
        _check_trackers(config)
    ranks = ranks or num_processes(config)
    if stage == "sft":
        if config.cold_start is None:
            raise ModelError("this config has no cold_start section; add one (cold_start.steps=...)")
        rows = ProblemSet(config.data.path, config.cold_start.split)
        QuotaSampler(rows.tasks, config.data.quotas, config.cold_start.batch_size, config.seed)
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
    if stage in ("train", "eval"):
        check_benchmarks(config)
        if config.rollout.engine == "vllm":
            _check_engines(config, ranks)
    if stage == "eval" and not config.eval.benchmarks:
        _check_rewards(config, config.data.eval_split)


def _check_rewards(config: RunConfig, *splits: str) -> None:
    with Scorer(config.rewards) as scorer:
        for split in splits:
            scorer.check(ProblemSet(config.data.path, split).rewards, dataset=config.data.path)


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


class StageFailed(RuntimeError):
    """A rank of a stage ended with an error, which it has printed itself."""


def launch(stage: str, config: RunConfig, out: Path) -> None:
    """Runs a stage under torchrun on this machine and waits for it. Raises StageFailed if a rank fails.

    For several machines, start the same command on each with torchrun yourself: inside a launcher a stage runs at
    once on its rank.
    """
    ranks = num_processes(config)
    out.mkdir(parents=True, exist_ok=True)
    path = out / f".launch.{stage}.yaml"
    save_config(config, path)
    # Threads beyond the cores slow every rank down; a number that the user has set is meant.
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // ranks)))
    command = ["-m", "sapo_vl", stage, "--config", str(path), "--out", str(out)]
    try:
        torchrun.run(torchrun.parse_args(["--standalone", "--nproc_per_node", str(ranks), *command]))
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        raise StageFailed(f"stage {stage}: rank {rank} ended with status {failure.exitcode}") from None
    finally:
        path.unlink()


def run_stage(stage: str, config: RunConfig, out: Path) -> None:
    """A stage on this rank. Results go into the run folder."""
    world = init_world()
    setup_logging(world)
    if world.is_main:
        # Under a launcher of the user's own nobody has done so; after `launch` it costs a second.
        preflight(config, stage, world.size)
        out.mkdir(parents=True, exist_ok=True)
        save_config(config, out / ("config.yaml" if stage == "train" else f"config.{stage}.yaml"))
    world.barrier()
    with Scorer(config.rewards, world) as scorer:
        {"sft": _sft, "train": _train, "eval": _eval}[stage](config, out, world, scorer)
    world.barrier()
    shutdown_world()


def _sft(config: RunConfig, out: Path, world: World, scorer: Scorer) -> None:
    assert config.cold_start is not None  # preflight
    sft = config.cold_start
    # Its few measurements do not pay for the start of a second engine.
    rollout = config.rollout.model_copy(update={"engine": "transformers"})
    session = open_session(config.model, sft.optim, sft.zero, rollout, world, total_updates=sft.steps, seed=config.seed)
    run_log = RunLog(out, config.log, config.model_dump(mode="json"), world)
    result = cold_start(config, session, scorer, run_log, out)
    run_log.close()
    if world.is_main:
        write_json(out / COLD_START_RESULT, result)


def _train(config: RunConfig, out: Path, world: World, scorer: Scorer) -> None:
    result = train(config, out, world, scorer)
    memory = peak_memory(world)
    if world.is_main:
        about: dict[str, Any] = {"seed": config.seed, "loss": config.loss.name, "ranks": world.size}
        write_json(out / "summary.json", about | result | {"peak_memory": memory, "versions": versions()})


def _eval(config: RunConfig, out: Path, world: World, scorer: Scorer) -> None:
    started = time.monotonic()
    session = open_session(
        config.model, OptimConfig(), ZeroConfig(stage=config.zero.stage), engine_rollout(config), world,
        total_updates=1, seed=config.seed, out=out,
    )  # fmt: skip
    result: dict[str, Any]
    if config.eval.benchmarks:
        result = {"benchmarks": evaluate_benchmarks(config, session, out / "benchmarks")}
    else:
        result = evaluate_held_out(config, session, scorer)
    session.rollouts.close()
    if world.is_main:
        write_json(out / "eval.json", result | {"seconds": time.monotonic() - started, "versions": versions()})
        if config.eval.benchmarks:
            print(figures_table(result["benchmarks"]), flush=True)
