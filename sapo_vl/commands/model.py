"""Model folders and the installation: init-tiny, convert, doctor."""

from __future__ import annotations

import argparse
from pathlib import Path

from data_recipes.arguments import UsageError
from sapo_vl.commands.adding import Add
from sapo_vl.commands.output import check_folder


def add_parsers(add: Add) -> None:
    tiny = add("init-tiny", _init_tiny, "Build a tiny Qwen3-VL model with tokenizer and processor.")
    tiny.add_argument("--kind", choices=["dense", "moe"], default="moe")
    tiny.add_argument("--data", type=Path, required=True, help="data set folder whose texts train the tokenizer")
    tiny.add_argument("--out", type=Path, required=True)
    tiny.add_argument("--seed", type=int, default=0)

    conversion = add(
        "convert", _convert, "Rewrite a model folder in the hub's layout, which transformers and vLLM load."
    )
    conversion.add_argument("folder", help="a model folder, or a hub id where a hub can be reached")
    conversion.add_argument("--out", type=Path, required=True)

    doctor = add("doctor", _doctor, "Prove on tiny models that this installation fits together.")
    doctor.add_argument(
        "--model", default="", help="a model folder of yours: loads it, trains and writes a small copy, asks vLLM"
    )
    doctor.add_argument("--only", nargs="+", default=[], metavar="CHECK", help="run these checks only")
    doctor.add_argument("--json", action="store_true", help="print one JSON object")


def _init_tiny(args: argparse.Namespace) -> None:
    from sapo_vl.pipeline import build_tiny_model

    check_folder(args.out, new=True)
    build_tiny_model(args.kind, args.data, args.out, args.seed)
    print(f"wrote {args.out}")


def _convert(args: argparse.Namespace) -> None:
    from sapo_vl.model.convert import convert

    check_folder(args.out, new=True)
    counts = convert(args.folder, args.out)
    print(
        f"wrote {args.out}: {counts['weights']} weights, {counts['turned']} expert weights turned, {counts['joined']} "
        "single experts joined"
    )


def _doctor(args: argparse.Namespace) -> None:
    from sapo_vl.doctor import CHECKS, ON_A_MODEL, Outcome, as_json, as_text, examine
    from sapo_vl.session import quiet_libraries

    checks = ON_A_MODEL if args.model else CHECKS
    if unknown := set(args.only) - set(checks):
        raise UsageError(f"no check {min(unknown)!r}; there are {', '.join(checks)}")
    quiet_libraries()
    findings = examine(args.only or tuple(checks), args.model)
    print(as_json(findings) if args.json else as_text(findings))
    if any(f.outcome is Outcome.FAIL for f in findings):
        raise SystemExit(1)
