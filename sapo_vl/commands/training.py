"""The stages of a run from the command line: run, sft, train, eval, serve, report."""

from __future__ import annotations

import argparse
import json
import os
import shlex
from pathlib import Path
from typing import Any

import yaml

from data_recipes.arguments import UsageError
from sapo_vl.commands.adding import Add
from sapo_vl.commands.output import check_folder
from sapo_vl.lifeline import die_with_launcher


def add_parsers(add: Add) -> None:
    for name, text in (
        ("sft", "Cold start: fine-tune model.path on the solutions of data.path."),
        ("train", "Reinforcement learning of model.path on data.path."),
        ("eval", "Measure model.path on benchmarks, or on the held-out split of data.path."),
        ("run", "All stages: data, tiny model (if configured), cold start, training, report."),
    ):
        p = add(name, _run if name == "run" else _stage, text, pairs=True)
        p.add_argument("--config", type=Path)
        p.add_argument("--out", type=Path, default=os.environ.get("OUT_DIR") or None, help="run folder (or OUT_DIR)")
        p.add_argument("--print-config", action="store_true", help="print the resolved config and stop")
        if name == "run":
            p.add_argument("--prepare", action="store_true", help="stop before training, print its config")
        if name == "eval":
            p.add_argument("--benchmark", metavar="NAME[,NAME...]", help="short for eval.benchmarks=[NAME, ...]")

    serve = add("serve", _serve, "Become a vLLM server for rollout.engine=vllm_server of the same config.", pairs=True)
    serve.add_argument("--config", type=Path)
    serve.add_argument("--host", default="127.0.0.1")
    serve.add_argument("--port", type=int, default=8000)

    report = add("report", _report, "Print the table of a run folder and draw its curves.")
    report.add_argument("run_dir", type=Path)


def _config(args: argparse.Namespace) -> Any:
    from sapo_vl.config import load_config

    config = load_config(args.config, args.pairs)
    if args.print_config:
        print(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False), end="")
        raise SystemExit(0)
    if args.out is None:
        raise UsageError("no run folder: pass --out DIR or set OUT_DIR")
    check_folder(Path(args.out))
    return config


def _stage(args: argparse.Namespace) -> None:
    """One stage: in this process if a launcher started it, else through torchrun with the configured ranks."""
    if "RANK" in os.environ:
        die_with_launcher()  # before anything that takes time
    from sapo_vl import stages
    from sapo_vl.launching import launch
    from sapo_vl.lengths import fitted
    from sapo_vl.planning.plan import summary_here

    if names := getattr(args, "benchmark", None):
        args.pairs = [f"eval.benchmarks={json.dumps(names.split(','))}", *args.pairs]
    config = _config(args)
    if "RANK" in os.environ:
        stages.run_stage(args.command, config, Path(args.out))
        return
    config = fitted(config)
    stages.preflight(config, args.command)
    stages.check_run_folder(config, args.command, Path(args.out))
    if args.command == "train":
        print(summary_here(config), flush=True)
    launch(args.command, config, Path(args.out))
    if args.command == "train":
        print(f"trained; to look at it: sapo-vl report {args.out}, or sapo-vl view {args.out}")


def _run(args: argparse.Namespace) -> None:
    from sapo_vl.pipeline import prepare, run

    print((prepare if args.prepare else run)(_config(args), Path(args.out)))


def _serve(args: argparse.Namespace) -> None:
    """Replaces this process, so that signals and the exit status are the server's own."""
    import torch

    from sapo_vl.config import load_config
    from sapo_vl.lengths import check_lengths, fitted
    from sapo_vl.model.folder import check_layout_for_vllm, examine
    from sapo_vl.rollout.vllm.contract import load_contract
    from sapo_vl.rollout.vllm.serve import serve_command

    config = load_config(args.config, args.pairs)
    if not config.model.path:
        raise UsageError("model.path is empty; give the folder of the model that the run trains")
    check_layout_for_vllm(examine(config.model.path, config.model.revision))
    config = fitted(config)
    check_lengths(config)
    load_contract()
    on_cpu = not torch.cuda.is_available()
    routes = config.replay == "r3"
    command, environment = serve_command(
        config.model, config.rollout, args.host, args.port, on_cpu=on_cpu, routes=routes
    )
    print(*(f"{name}={value}" for name, value in environment.items()), shlex.join(command), flush=True)
    os.execve(command[0], command, environment | os.environ)  # what the user set stays


def _report(args: argparse.Namespace) -> None:
    from sapo_vl.record.report import write_report

    try:
        print(write_report(args.run_dir))
    except (FileNotFoundError, ValueError) as error:
        raise UsageError(str(error)) from error
