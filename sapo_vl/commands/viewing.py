"""Runs and evaluations to look at: view."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data_recipes.arguments import UsageError
from sapo_vl.commands.adding import Add
from sapo_vl.commands.output import check_file
from sapo_vl.viewing.collecting import LIMIT_MB, default_page, write_page
from sapo_vl.viewing.folders import NothingToView


def add_parsers(add: Add) -> None:
    view = add("view", _view, "Runs and evaluations as a page: one HTML file, or a server on this machine.")
    view.add_argument("folders", type=Path, nargs="+", metavar="DIR", help="folder of a run, or --out of an evaluation")
    where = view.add_mutually_exclusive_group()
    where.add_argument("--out", type=Path, metavar="FILE.html", help="default: page.html in the first folder")
    where.add_argument("--serve", type=int, metavar="PORT", help="serve all on 127.0.0.1 instead; 0 = a free port")
    view.add_argument("--follow", action="store_true", help="with --serve: draw again what a run under way adds")
    view.add_argument("--limit", type=float, default=LIMIT_MB, metavar="MB", help=f"of data in a file ({LIMIT_MB:g})")


def _view(args: argparse.Namespace) -> None:
    if args.follow and args.serve is None:
        raise UsageError("--follow needs --serve PORT: a file cannot ask for what is new")
    if args.serve is not None and not 0 <= args.serve < 2**16:
        raise UsageError(f"--serve {args.serve}: give a port from 0 to 65535; 0 takes a free one")
    if not args.limit > 0:
        raise UsageError(f"--limit {args.limit:g}: give megabytes above 0")
    out = args.out or default_page(args.folders[0])
    if args.serve is None:
        check_file(out)
    try:
        if args.serve is not None:
            _serve(args)
            return
        written = write_page(args.folders, out, config_defaults(), args.limit)
    except NothingToView as error:
        raise UsageError(str(error)) from error
    print(f"{out}: {written['bytes'] / 1e6:.1f} MB in {written['seconds']:.1f} s, {what_it_holds(written)}")


def what_it_holds(written: Mapping[str, Any]) -> str:
    """What is in a page and what was left out, by the counts of `write_page`."""
    items = written["items"]
    found = {
        "saved responses": (written["responses"], written["responses_saved"]),
        "items of evaluations": (items, items + written["items_left_out"]),
    }
    told = [
        f"all {n} {what}" if n == m else f"{n} of {m} {what} (--serve has all)" for what, (n, m) in found.items() if m
    ]
    return ", ".join(told) or "no saved responses"


def config_defaults() -> dict[str, Any]:
    """The config with nothing set but that there is a cold start, whose settings are compared with its own defaults."""
    from sapo_vl.config import ColdStartConfig, RunConfig

    return RunConfig(cold_start=ColdStartConfig()).model_dump(mode="json")


def _serve(args: argparse.Namespace) -> None:
    from sapo_vl.viewing.serving import serve

    try:
        serve(args.folders, args.serve, config_defaults(), follow=args.follow)
    except OSError as error:
        raise UsageError(f"--serve {args.serve}: {error.strerror or error}; give another port, or 0") from error
