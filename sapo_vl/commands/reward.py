"""Rewards without a model: reward score, reward test."""

from __future__ import annotations

import argparse
from contextlib import nullcontext
from pathlib import Path

import yaml

from data_recipes.arguments import UsageError
from sapo_vl.commands.adding import Add
from sapo_vl.commands.output import check_file
from sapo_vl.model.thinking import OPEN, opened_text


def add_parsers(add: Add) -> None:
    reward = add("reward", _reward, "Score responses from a file, or try a reward on golds.", pairs=True)
    reward.add_argument("action", choices=["score", "test"])
    reward.add_argument("name", help="a reward of rewards.REWARDS, or my_reward.py:function")
    reward.add_argument("file", nargs="?", default="", help='lines {"id", "response", "answer", "meta"}')
    reward.add_argument("--out", type=Path, help="file for the results (default: the standard output)")
    reward.add_argument("--timeout", type=float, default=10.0, help="seconds a response may take")
    reward.add_argument("--workers", type=int, default=2)
    reward.add_argument(
        "--thinking-open",
        action="store_true",
        help="the chat template wrote <think>: responses start inside the thinking",
    )
    reward.add_argument("--model", help="a model folder: its chat template says whether it writes <think>")


def _reward(args: argparse.Namespace) -> int:
    from sapo_vl.scoring.lines import score_lines, write_scores
    from sapo_vl.scoring.trial import read_samples, try_reward

    check_file(args.out)
    file, pairs = args.file, list(args.pairs)
    if "=" in file and not Path(file).exists():  # argparse takes the first word after the name for the file
        file, pairs = "", [file, *pairs]
    params = {key: yaml.safe_load(value) for key, _, value in (pair.partition("=") for pair in pairs)}
    if not file and args.action == "score":
        raise UsageError("sapo-vl reward score NAME FILE.jsonl: the file is missing")
    if args.action != "score" and (args.thinking_open or args.model):
        raise UsageError("--thinking-open and --model say where the responses of `sapo-vl reward score` come from")
    try:
        with Path(file).open(encoding="utf-8-sig") if file else nullcontext() as lines:
            if lines and args.action == "score":
                opened = _opened(args)
                write_scores(score_lines(args.name, lines, params, args.timeout, args.workers, opened), args.out)
                return 0
            table, fine = try_reward(args.name, params, read_samples(lines) if lines else None, args.timeout)
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{file} cannot be read: {error}") from error
    print(table)
    return 0 if fine else 1


def _opened(args: argparse.Namespace) -> str:
    """What the chat template behind the responses has opened for them. Nothing of the weights is read."""
    if not args.model:
        return OPEN + "\n" if args.thinking_open else ""
    from sapo_vl.model.chat import load_processor  # torch and transformers, which the other rewards do without

    opened = opened_text(load_processor(args.model))
    if args.thinking_open and not opened:
        raise UsageError(f"--thinking-open: the chat template of {args.model} does not open <think>; leave one out")
    return opened
