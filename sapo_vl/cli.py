"""The `sapo-vl` command. Every sub-command is a thin call into the package."""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import yaml

from data_recipes.arguments import UsageError, build_recipe, recipe_arguments
from sapo_vl.data_commands import add_parsers


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one sub-command; 0 if it succeeded, 1 if a check found something, 2 for bad input (one message, no
    traceback)."""
    words = list(sys.argv[1:] if argv is None else argv)
    if words[:2] == ["recipe", "check"]:  # whoever has just built a set looks for it there
        words[0] = "data"
    parser = _parser()
    args, rest = parser.parse_known_args(words)
    # key=value words may stand anywhere, which argparse's own "*" positionals do not allow.
    if wrong := [text for text in rest if text.startswith("-") or "=" not in text or not args.takes_pairs]:
        parser.error(f"unexpected {' '.join(wrong)}")
    args.pairs = rest
    try:
        return args.run(args) or 0
    except _bad_input() as error:
        print(f"sapo-vl {args.command}: {type(error).__name__}: {error}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="sapo-vl", description=__doc__)
    sub = parser.add_subparsers(dest="command", required=True)

    add = _adder(sub)
    recipe = add("recipe", _recipe, "Build a data set folder, or check one (recipe check DIR).", pairs=True)
    recipe.add_argument("name", help="a recipe, or one of yours: path/to/my_recipe.py:build")
    recipe.add_argument("--out", type=Path, required=True)

    data = sub.add_parser("data", help="Check data set folders; fetch images.", description="Check data set folders.")
    add_parsers(_adder(data.add_subparsers(dest="action", required=True), "data "))

    tiny = add("init-tiny", _init_tiny, "Build a tiny Qwen3-VL model with tokenizer and processor.")
    tiny.add_argument("--kind", choices=["dense", "moe"], default="moe")
    tiny.add_argument("--data", type=Path, required=True, help="data set folder whose texts train the tokenizer")
    tiny.add_argument("--out", type=Path, required=True)
    tiny.add_argument("--seed", type=int, default=0)

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
        if name == "eval":
            p.add_argument("--benchmark", metavar="NAME[,NAME...]", help="short for eval.benchmarks=[NAME, ...]")

    rescore = add("rescore", _rescore, "Score the saved responses of an evaluation again.", pairs=True)
    rescore.add_argument("folder", type=Path, help="--out of an evaluation, or the folder of one benchmark in it")
    rescore.add_argument("--benchmark", default="", metavar="FILE.py:NAME[,...]", help="benchmarks of yours in it")

    compare = add("compare", _compare, "Is the second of two evaluations better? The same items in pairs.")
    compare.add_argument("first", type=Path, help="--out of an evaluation, or the folder of one benchmark in it")
    compare.add_argument("second", type=Path)
    compare.add_argument("--json", action="store_true", help="print one JSON object")

    reward = add("reward", _reward, "Score responses from a file, or try a reward on golds.", pairs=True)
    reward.add_argument("action", choices=["score", "test"])
    reward.add_argument("name", help="a reward of rewards.REWARDS, or my_reward.py:function")
    reward.add_argument("file", nargs="?", default="", help='lines {"id", "response", "answer", "meta"}')
    reward.add_argument("--out", type=Path, help="file for the results (default: the standard output)")
    reward.add_argument("--timeout", type=float, default=10.0, help="seconds a response may take")
    reward.add_argument("--workers", type=int, default=2)

    doctor = add("doctor", _doctor, "Prove on tiny models that this installation fits together.")
    doctor.add_argument("--model", default="", help="a model folder: runs the checks that need no weights on it")
    doctor.add_argument("--only", nargs="+", default=[], metavar="CHECK", help="run these checks only")
    doctor.add_argument("--json", action="store_true", help="print one JSON object")

    serve = add("serve", _serve, "Become a vLLM server for rollout.engine=vllm_server of the same config.", pairs=True)
    serve.add_argument("--config", type=Path)
    serve.add_argument("--host", default="127.0.0.1")
    serve.add_argument("--port", type=int, default=8000)

    report = add("report", _report, "Print the table of a run folder and draw its curves.")
    report.add_argument("run_dir", type=Path)
    return parser


def _adder(sub: Any, prefix: str = "") -> Callable[..., argparse.ArgumentParser]:
    """A function that adds a sub-command and says what it runs: what that returns is the exit status, None for 0."""

    def add(
        name: str, run: Callable[[argparse.Namespace], int | None], text: str, pairs: bool = False
    ) -> argparse.ArgumentParser:
        usage = f"sapo-vl {prefix}{name} [options] [key=value ...]" if pairs else None
        p = sub.add_parser(name, help=text, description=text, usage=usage)
        p.set_defaults(run=run, takes_pairs=pairs)
        return p

    return add


def _bad_input() -> tuple[type[Exception], ...]:
    """Errors that are the input's, not ours: shown as one message."""
    from rewards.pool import WorkersStuck
    from sapo_vl.chat import PromptError
    from sapo_vl.checkpoint import CheckpointError
    from sapo_vl.config import ConfigError
    from sapo_vl.data import DataError, TooManyBadRows
    from sapo_vl.evaluation.errors import EvaluationError
    from sapo_vl.failure_watch import ScoringStopped
    from sapo_vl.models import ModelError
    from sapo_vl.nonfinite import NonFiniteUpdate
    from sapo_vl.parity import ParityError
    from sapo_vl.reward_lines import RewardLinesError
    from sapo_vl.rollout.failures import RolloutStopped
    from sapo_vl.rollout.vllm.contract import VllmMissing
    from sapo_vl.rollout.vllm.engine import EngineFailed
    from sapo_vl.rollout.vllm.serve import ServeError
    from sapo_vl.rollout.vllm.server import ServersUnusable
    from sapo_vl.sampler import QuotaError
    from sapo_vl.scoring import ScoringError
    from sapo_vl.stages import StageFailed
    from sapo_vl.weights import ManifestError

    return (
        UsageError, ConfigError, DataError, ModelError, QuotaError, PromptError, TooManyBadRows, ScoringError,
        ScoringStopped, CheckpointError, NonFiniteUpdate, StageFailed,
        WorkersStuck, RewardLinesError, ParityError, RolloutStopped, VllmMissing, EngineFailed, ManifestError,
        ServeError, ServersUnusable, EvaluationError,
    )  # fmt: skip


def _recipe(args: argparse.Namespace) -> None:
    from data_recipes import find_recipe
    from data_recipes.building import summary

    build = find_recipe(args.name)
    build_recipe(build, args.out, recipe_arguments(build, args.pairs, args.name), args.name)
    manifest = args.out / "manifest.json"
    if not manifest.is_file():
        raise UsageError(f"recipe {args.name} wrote no data set to {args.out}; it must end with write_splits(...)")
    print(summary(json.loads(manifest.read_text(encoding="utf-8"))))
    print(f"wrote {args.out}")


def _init_tiny(args: argparse.Namespace) -> None:
    from sapo_vl.pipeline import build_tiny_model

    if args.out.exists():
        raise UsageError(f"--out {args.out} exists already; choose another folder or delete this one")
    build_tiny_model(args.kind, args.data, args.out, args.seed)
    print(f"wrote {args.out}")


def _config(args: argparse.Namespace) -> Any:
    from sapo_vl.config import load_config

    config = load_config(args.config, args.pairs)
    if args.print_config:
        print(yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False), end="")
        raise SystemExit(0)
    if args.out is None:
        raise UsageError("no run folder: pass --out DIR or set OUT_DIR")
    return config


def _stage(args: argparse.Namespace) -> None:
    """One stage: in this process if a launcher started it, else through torchrun with the configured ranks."""
    from sapo_vl import stages

    if names := getattr(args, "benchmark", None):
        args.pairs = [f"eval.benchmarks={json.dumps(names.split(','))}", *args.pairs]
    config = _config(args)
    if "RANK" in os.environ:
        stages.run_stage(args.command, config, Path(args.out))
        return
    stages.preflight(config, args.command)
    stages.launch(args.command, config, Path(args.out))


def _run(args: argparse.Namespace) -> None:
    from sapo_vl.pipeline import run

    print(run(_config(args), Path(args.out)))


def _rescore(args: argparse.Namespace) -> None:
    from sapo_vl.config import load_config
    from sapo_vl.evaluation.compare import benchmark_folders
    from sapo_vl.evaluation.registry import find_benchmark
    from sapo_vl.evaluation.rescore import describe, rescore

    if wrong := [pair for pair in args.pairs if not pair.startswith("rewards.")]:
        raise UsageError(f"{wrong[0]}: responses are there already; only rewards.... can be set")
    scoring = load_config(None, args.pairs).rewards
    yours = [find_benchmark(spec) for spec in args.benchmark.split(",") if spec]
    for folder in benchmark_folders(args.folder).values():
        print(describe(rescore(folder, scoring, yours)), flush=True)


def _compare(args: argparse.Namespace) -> None:
    from sapo_vl.evaluation.compare import compare, describe

    results = compare(args.first, args.second)
    print(json.dumps(results) if args.json else "\n".join(describe(name, r) for name, r in results.items()))


def _reward(args: argparse.Namespace) -> int:
    from sapo_vl.reward_lines import score_lines, write_scores
    from sapo_vl.reward_trial import read_samples, try_reward

    file, pairs = args.file, list(args.pairs)
    if "=" in file and not Path(file).exists():  # argparse takes the first word after the name for the file
        file, pairs = "", [file, *pairs]
    params = {key: yaml.safe_load(value) for key, _, value in (pair.partition("=") for pair in pairs)}
    if not file and args.action == "score":
        raise UsageError("sapo-vl reward score NAME FILE.jsonl: the file is missing")
    try:
        with Path(file).open(encoding="utf-8") if file else nullcontext() as lines:
            if lines and args.action == "score":
                write_scores(score_lines(args.name, lines, params, args.timeout, args.workers), args.out)
                return 0
            table, fine = try_reward(args.name, params, read_samples(lines) if lines else None, args.timeout)
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{file} cannot be read: {error}") from error
    print(table)
    return 0 if fine else 1


def _doctor(args: argparse.Namespace) -> None:
    from sapo_vl.doctor import CHECKS, ON_A_MODEL, Outcome, as_json, as_text, examine
    from sapo_vl.session import quiet_libraries

    if unknown := set(args.only) - set(CHECKS):
        raise UsageError(f"no check {min(unknown)!r}; there are {', '.join(CHECKS)}")
    quiet_libraries()
    findings = examine(args.only or (ON_A_MODEL if args.model else tuple(CHECKS)), args.model)
    print(as_json(findings) if args.json else as_text(findings))
    if any(f.outcome is Outcome.FAIL for f in findings):
        raise SystemExit(1)


def _serve(args: argparse.Namespace) -> None:
    """Replaces this process, so that signals and the exit status are the server's own."""
    import torch

    from sapo_vl.config import load_config
    from sapo_vl.models import check_weights, read_config
    from sapo_vl.rollout.vllm.contract import load_contract
    from sapo_vl.rollout.vllm.serve import serve_command

    config = load_config(args.config, args.pairs)
    if not config.model.path:
        raise UsageError("model.path is empty; give the folder of the model that the run trains")
    read_config(config.model.path, config.model.revision)
    check_weights(config.model.path)
    load_contract()
    command, environment = serve_command(
        config.model, config.rollout, args.host, args.port, on_cpu=not torch.cuda.is_available()
    )
    print(*(f"{name}={value}" for name, value in environment.items()), shlex.join(command), flush=True)
    os.execve(command[0], command, environment | os.environ)  # what the user set stays


def _report(args: argparse.Namespace) -> None:
    from sapo_vl.report import write_report

    try:
        print(write_report(args.run_dir))
    except (FileNotFoundError, ValueError) as error:
        raise UsageError(str(error)) from error


if __name__ == "__main__":
    raise SystemExit(main())
