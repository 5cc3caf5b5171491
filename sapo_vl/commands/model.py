"""Model folders and the installation: init-tiny, convert, export, doctor."""

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

    export = add("export", _export, "Write the model of a checkpoint as a Hugging Face folder; no GPU is needed.")
    export.add_argument("checkpoint", type=Path, help="a checkpoint, or a run folder: its newest whole one")
    export.add_argument("--out", type=Path, required=True)
    export.add_argument("--adapters", action="store_true", help="the adapters alone, as peft loads them; else merged")
    export.add_argument("--model", default="", help="the folder that the run started from, where it has moved")

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


def _export(args: argparse.Namespace) -> None:
    from sapo_vl.learning.exporting import export, find_checkpoint, model_of_run
    from sapo_vl.session import quiet_libraries

    check_folder(args.out, new=True)
    quiet_libraries()
    checkpoint = find_checkpoint(args.checkpoint)
    found = export(checkpoint, model_of_run(checkpoint, args.model), args.out, only_adapters=args.adapters)
    what = "weights of adapters" if args.adapters else "weights"
    print(
        f"wrote {args.out}: step {found.step} of {found.checkpoint}, {found.weights} {what}, "
        f"{found.bytes / 2**20:.1f} MiB" + (f", digest {found.digest}" if found.digest else "")
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
