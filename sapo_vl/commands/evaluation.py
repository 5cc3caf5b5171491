"""Saved evaluations: rescore, compare."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from data_recipes.arguments import UsageError
from sapo_vl.commands.adding import Add


def add_parsers(add: Add) -> None:
    rescore = add("rescore", _rescore, "Score the saved responses of an evaluation again.", pairs=True)
    rescore.add_argument("folder", type=Path, help="--out of an evaluation, or the folder of one benchmark in it")
    rescore.add_argument("--benchmark", default="", metavar="FILE.py:NAME[,...]", help="benchmarks of yours in it")

    compare = add("compare", _compare, "Is the second of two evaluations better? The same items in pairs.")
    compare.add_argument("first", type=Path, help="--out of an evaluation, or the folder of one benchmark in it")
    compare.add_argument("second", type=Path)
    compare.add_argument("--json", action="store_true", help="print one JSON object")


def _rescore(args: argparse.Namespace) -> None:
    from sapo_vl.config import load_config
    from sapo_vl.evaluation.compare import benchmark_folders
    from sapo_vl.evaluation.registry import find_benchmark
    from sapo_vl.evaluation.rescore import describe, rescore

    if wrong := [pair for pair in args.pairs if not pair.startswith(("rewards.", "eval.rule="))]:
        raise UsageError(f"{wrong[0]}: responses are there already; only rewards.... and eval.rule can be set")
    config = load_config(None, args.pairs)
    rule = config.eval.rule if any(pair.startswith("eval.rule=") for pair in args.pairs) else None
    yours = [find_benchmark(spec) for spec in args.benchmark.split(",") if spec]
    for folder in benchmark_folders(args.folder).values():
        print(describe(rescore(folder, config.rewards, yours, rule)), flush=True)


def _compare(args: argparse.Namespace) -> None:
    from sapo_vl.evaluation.compare import compare, describe

    results = compare(args.first, args.second)
    print(json.dumps(results) if args.json else "\n".join(describe(name, r) for name, r in results.items()))
