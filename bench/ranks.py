"""Seconds of a step of `sapo-vl train` on one and two ranks, ZeRO 1, 2 and 3, one thread a rank.

Medians of the steps after the first two, as metrics.jsonl has them. Rewards are the numbers of a hash, prompts and
sampling do not depend on the ranks: the losses and gradient norms of all runs must agree, step by step.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vs_trl_cases import CASES, MINI, Case, write_data, write_model
from vs_trl_hooks import overrides

ROOT = Path(__file__).resolve().parent.parent
RUNS = ((1, 1), (2, 1), (1, 2), (2, 2), (1, 3), (2, 3))  # (ranks, ZeRO stage)
TOLERANCE = 1e-3  # relative; weights of later steps carry the rounding of earlier ones


def run(case: Case, folder: Path, ranks: int, stage: int, steps: int) -> list[dict[str, Any]]:
    """Metrics of the steps of a run. Raises RuntimeError with the end of its output if it fails."""
    out = folder / f"run_{ranks}_{stage}"
    pairs = [*overrides(case, folder / "model", folder / "data"), f"processes={ranks}", f"zero.stage={stage}"]
    pairs += [f"steps={steps}", "eval.max_per_task=1", "eval.modes=[greedy]"]
    environment = dict(os.environ) | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    environment |= {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-m", "sapo_vl", "train", "--out", str(out), *pairs]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{ranks} ranks, ZeRO {stage} failed:\n{done.stdout[-2000:]}{done.stderr[-2000:]}")
    lines = map(json.loads, (out / "metrics.jsonl").read_text().splitlines())
    return [line for line in lines if line["phase"] == "train"]


def difference(a: Sequence[dict[str, Any]], b: Sequence[dict[str, Any]]) -> float:
    """The largest of losses (relative to a term, 2) and gradient norms (relative)."""
    norms = [abs(x["grad_norm"] / y["grad_norm"] - 1) for x, y in zip(a, b, strict=True)]
    return max([abs(x["loss"] - y["loss"]) / 2 for x, y in zip(a, b, strict=True)] + norms)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    known = CASES | {case.name: case for case in MINI.values()}
    parser.add_argument("case", nargs="?", choices=list(known), default="dense256")
    parser.add_argument("--steps", type=int, default=12)
    parser.add_argument("--runs", nargs="+", default=[f"{r}x{z}" for r, z in RUNS], help="ranks x stage, as 2x1")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args(arguments)
    first: list[dict[str, Any]] | None = None
    seconds: dict[str, float] = {}
    apart = 0.0
    with tempfile.TemporaryDirectory(prefix="ranks_") as name:
        write_model(known[args.case], Path(name) / "model")
        write_data(known[args.case], Path(name) / "data")
        for text in args.runs:
            ranks, stage = map(int, text.split("x"))
            lines = run(known[args.case], Path(name), ranks, stage, args.steps)
            first = first or lines
            apart = max(apart, difference(lines, first))
            seconds[text] = statistics.median(line["seconds/step"] for line in lines[min(2, len(lines) - 1) :])
            alone = seconds.get(f"1x{stage}")
            gain = f", {alone / seconds[text]:.2f} times one" if alone and ranks > 1 else ""
            if not args.json:
                print(f"{ranks} ranks, ZeRO {stage}: {seconds[text]:.3f} s a step{gain}", flush=True)
    if args.json:
        print(json.dumps({"seconds": seconds, "apart": apart}))
    if not apart < TOLERANCE:
        print(f"losses or gradient norms differ by {apart:.1e}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
