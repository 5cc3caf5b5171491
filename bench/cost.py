"""What a step costs, as the group size, the pictures, the responses and the number of groups grow: one at a time.

CPU seconds, one thread, of the parts of a step: the vision tower, the prompts, the tokens sampled after them, and the
updates. Vision and prompts are to be flat in the group size, the rest linear in the unique tokens.

At the first point the log-probs of the flat row must be those of padded copies.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from common import paired
from load import Load, load, random_groups
from vs_trl_cases import CASES, Case

from sapo_vl.model.loading import base_model

BASE = dataclasses.replace(CASES["dense256"], name="base", prompts=4)
SWEEPS: dict[str, tuple[int, ...]] = {
    "group": (4, 8, 16, 32),
    "side": (64, 128, 256, 512),
    "tokens": (8, 16, 32, 64),
    "prompts": (2, 4, 8, 16),
}
PARTS = ("vision", "prompts", "sampling", "updates")
TOLERANCE = 1e-4  # nats


def point(sweep: str, value: int, base: Case = BASE) -> Case:
    """The base case with one thing changed."""
    return dataclasses.replace(base, **{"sides": (value,)} if sweep == "side" else {sweep: value})


def unique_tokens(it: Load) -> int:
    """Prompts once, and every token of the responses."""
    return sum(len(p.ids) for p in it.prompts) + it.case.prompts * it.case.group * it.case.tokens


def measure(case: Case, repeats: int) -> dict[str, Any]:
    it = load(case)
    batches = it.micro_batches(random_groups(it))
    model: Any = base_model(it.policy.hf).model
    pixels = torch.cat([p.pixel_values for p in it.prompts if p.pixel_values is not None])
    grids = torch.cat([p.image_grid_thw for p in it.prompts if p.image_grid_thw is not None])

    def see() -> None:
        with torch.no_grad():
            model.get_image_features(pixels, grids)

    ways = {
        "vision": see,
        "first token": lambda: it.engine.generate(it.prompts, it.params(1)),
        "all tokens": it.sample,
        "updates": lambda: it.backward(batches),
    }
    s = paired(ways, repeats)
    seconds = {
        "vision": s["vision"],
        "prompts": s["first token"] - s["vision"],
        "sampling": s["all tokens"] - s["first token"],
        "updates": s["updates"],
    }
    return {"tokens": unique_tokens(it), "seconds": seconds}


def apart(case: Case) -> float:
    """How far the log-probs of the flat row and of padded copies are apart, in nats."""
    it = load(case)
    groups = random_groups(it)
    flat, padded = (it.logprobs(it.micro_batches(groups, shared)) for shared in (True, False))
    return float((flat - padded).abs().max())


def draw(found: dict[str, list[dict[str, Any]]], path: Path) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(found), figsize=(4 * len(found), 3.2), layout="constrained")
    for axis, (sweep, points) in zip(axes, found.items(), strict=True):
        for part in PARTS:
            axis.plot([p["value"] for p in points], [p["seconds"][part] for p in points], marker="o", label=part)
        axis.set(xlabel={"side": "side of a picture"}.get(sweep, sweep), xscale="log", yscale="log")
        axis.set_xticks([p["value"] for p in points], [str(p["value"]) for p in points], minor=False)
        axis.minorticks_off()
    axes[0].set_ylabel("CPU seconds")
    axes[0].legend()
    figure.savefig(path, dpi=110)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--short", action="store_true", help="two small points of each sweep, once")
    parser.add_argument("--out", type=Path, help="a folder for cost.json and cost.png")
    args = parser.parse_args(arguments)
    base, sweeps = BASE, SWEEPS
    if args.short:
        base = dataclasses.replace(BASE, sides=(32,), tokens=4, prompts=2, group=2)
        sweeps = {"group": (2, 4), "side": (32, 64), "tokens": (4, 8), "prompts": (2, 4)}
    found: dict[str, list[dict[str, Any]]] = {}
    print("                  tokens  " + "  ".join(f"{part:>8}" for part in PARTS))
    for sweep, values in sweeps.items():
        found[sweep] = []
        for value in values:
            one = {"value": value} | measure(point(sweep, value, base), 1 if args.short else args.repeats)
            found[sweep].append(one)
            row = "  ".join(f"{one['seconds'][part]:8.3f}" for part in PARTS)
            print(f"{sweep:8} {value:6d}  {one['tokens']:8d}  {row}", flush=True)
    if args.out:
        args.out.mkdir(parents=True, exist_ok=True)
        (args.out / "cost.json").write_text(json.dumps(found) + "\n")
        draw(found, args.out / "cost.png")
    difference = apart(base)
    if not difference < TOLERANCE:
        print(f"log-probs of flat row and padded copies differ by {difference:.1e}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
