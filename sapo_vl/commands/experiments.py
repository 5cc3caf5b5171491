"""The paper's experiments: reproduce."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from pathlib import Path
from typing import Any

from data_recipes.arguments import UsageError
from sapo_vl.commands.adding import Add
from sapo_vl.commands.output import check_folder


def add_parsers(add: Add) -> None:
    p = add("reproduce", _reproduce, "Run the paper's experiments and write a report.", pairs=True)
    p.add_argument("--config", type=Path, required=True, help="of the experiment, as configs/experiments/tiny.yaml")
    p.add_argument("--out", type=Path, default=os.environ.get("OUT_DIR") or None, help="folder (or OUT_DIR)")
    p.add_argument("--figures", help="of 1,2,4,5,6,stress; default: the config's")
    p.add_argument("--arms", metavar="GLOB[,GLOB...]", help="only arms whose name fits, as 'moe.sapo.*'")
    p.add_argument("--seeds", help="as 0,1,2")
    p.add_argument("--steps", type=int, help="rollout batches of every run")
    p.add_argument("--jobs", type=int, help="runs side by side")
    p.add_argument("--budget-minutes", type=float, help="start no run after so long; the report says what is missing")
    p.add_argument("--list", action="store_true", help="print the arms and how far they are; run nothing")
    p.add_argument("--report", action="store_true", help="write the report of what is there; run nothing")


def _reproduce(args: argparse.Namespace) -> int:
    from sapo_vl.experiments.config import load_experiment
    from sapo_vl.experiments.reproduce import listing, reproduce

    if args.out is None:
        raise UsageError("no folder for the results: pass --out DIR or set OUT_DIR")
    check_folder(args.out)
    experiment = load_experiment(args.config, _changes(args))
    globs = args.arms.split(",") if args.arms else ["*"]
    if args.list:
        print(listing(experiment, args.out, globs, args.pairs))
        return 0
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that the runs it has started end with it
    budget = None if args.budget_minutes is None else 60 * args.budget_minutes
    return reproduce(experiment, args.out, globs, args.pairs, budget_s=budget, run=not args.report)


def _changes(args: argparse.Namespace) -> dict[str, Any]:
    """What the options change in the experiment's file."""
    changes: dict[str, Any] = {}
    if args.figures:
        changes["figures"] = args.figures.split(",")
    if args.seeds:
        try:
            changes["seeds"] = [int(s) for s in args.seeds.split(",")]
        except ValueError:
            raise UsageError(f"--seeds {args.seeds}: write whole numbers with commas, as 0,1,2") from None
    return changes | {key: v for key in ("steps", "jobs") if (v := getattr(args, key)) is not None}
