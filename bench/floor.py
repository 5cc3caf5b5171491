"""What a step takes against what its products alone would take: every token and every picture once a pass.

The floor of a phase is the FLOPs of the unique tokens (prompt and picture once a group, each response token once) at
the rate at which this machine multiplies large matrices, on one thread. A pass with gradient counts three times.
"outside" is what a step of the whole program takes beside sampling and updates of the model: prompts and pictures made
ready, rewards, statistics, the optimizer, metrics.

The log-probs of a pass over the sampled responses must be those recorded while they were sampled.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from load import Load, load
from stepwise import Side
from torch.utils.flop_counter import FlopCounterMode
from vs_trl import ours_command, prepare_ours
from vs_trl_cases import CASES, MINI, Case

from sapo_vl.model.loading import ModelConfig, base_model
from sapo_vl.planning.sizes import model_sizes
from sapo_vl.types import Prompt

DEFAULT = ("dense64", "dense512", "50M")
TOLERANCE = 1e-4  # nats


def rate() -> float:
    """FLOP/s of this thread: the best of products of a few sizes."""
    best = 0.0
    for size in (256, 512, 1024):
        a, b = torch.randn(size, size), torch.randn(size, size)
        seconds = cpu_seconds(lambda a=a, b=b: a @ b, repeats=5)
        best = max(best, 2.0 * size**3 / seconds)
    return best


def cpu_seconds(work: Callable[[], object], repeats: int = 3) -> float:
    """The median of some, after one to warm up."""
    work()
    taken = []
    for _ in range(repeats):
        started = time.process_time()
        work()
        taken.append(time.process_time() - started)
    return statistics.median(taken)


def pass_flops(it: Load) -> dict[str, float]:
    """Of one pass over every unique token: "vision"; and "text", exact attention and the head at responses alone."""
    hf: Any = base_model(it.policy.hf)
    m = model_sizes(it.case.name, hf.config, ModelConfig())
    head = m.vocabulary * m.hidden_width
    weights = m.active - (1 if m.tied else 2) * head  # the embedding is looked up
    group, length = it.case.group, it.case.tokens
    text = 0.0
    for prompt in (len(p.ids) for p in it.prompts):
        text += 2.0 * weights * (prompt + group * length) + 2.0 * head * group * length
        pairs = prompt**2 / 2 + group * length * (prompt + length / 2)
        text += 4.0 * m.layers * m.query_width * pairs
    return {"vision": sum(_vision_flops(hf, p) for p in it.prompts), "text": text}


def _vision_flops(hf: Any, prompt: Prompt) -> float:
    if prompt.pixel_values is None:
        return 0.0
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        hf.model.get_image_features(prompt.pixel_values, prompt.image_grid_thw)
    return float(counter.get_total_flops())


def whole_step(case: Case, steps: int) -> float:
    """CPU seconds of a step of `sapo-vl train` on one rank: the median of some."""
    with tempfile.TemporaryDirectory(prefix="floor_") as name:
        folder = Path(name)
        prepare_ours(case, folder)
        environment = dict(os.environ) | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
        environment["PYTHONPATH"] = str(Path(__file__).resolve().parent.parent)
        side = Side("the trainer", ours_command(folder), environment, folder / "log")
        try:
            side.step()
            side.step()
            return statistics.median(side.step()["cpu"] for _ in range(steps))
        finally:
            side.close()


def measure(case: Case, flops_per_s: float, steps: int) -> dict[str, Any]:
    """Seconds and floors by phase; `steps` of the whole program, 0 = none."""
    it = load(case)
    groups = it.sample()
    batches = it.micro_batches(groups)
    recorded = torch.cat([mb.rollout_logprobs for mb in batches])
    flops = pass_flops(it)
    once = sum(flops.values()) / flops_per_s
    floors = {"sampling": once, "old log-probs": once, "updates": 3 * once}
    seconds = {
        "sampling": cpu_seconds(it.sample),
        "old log-probs": cpu_seconds(lambda: it.logprobs(batches)),
        "updates": cpu_seconds(lambda: it.backward(batches)),
    }
    found: dict[str, Any] = {
        "case": case.name,
        "apart": float((it.logprobs(batches) - recorded).abs().max()),
        "gflops": {k: v / 1e9 for k, v in flops.items()},
    }
    if steps:
        floors["step"] = floors["sampling"] + floors["updates"]
        seconds["step"] = whole_step(case, steps)
        found["outside"] = 1 - (seconds["sampling"] + seconds["updates"]) / seconds["step"]
    rows = {k: {"seconds": seconds[k], "floor": floors[k], "ratio": seconds[k] / floors[k]} for k in floors}
    return found | {"phases": rows}


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    known = CASES | {case.name: case for case in MINI.values()}
    parser.add_argument("cases", nargs="*", help=f"of {', '.join(known)}; default: {', '.join(DEFAULT)}")
    parser.add_argument("--steps", type=int, default=5, help="of the whole program; 0 = the model alone")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args(arguments)
    if unknown := set(args.cases) - set(known):
        parser.error(f"no case {sorted(unknown)[0]!r}; there are {', '.join(known)}")
    torch.set_num_threads(1)
    flops_per_s = rate()
    if not args.json:
        print(f"{flops_per_s / 1e9:.0f} GFLOP/s; CPU seconds, floor, and how many times the floor")
    apart = 0.0
    for name in args.cases or DEFAULT:
        found = measure(known[name], flops_per_s, args.steps)
        apart = max(apart, found["apart"])
        if args.json:
            print(json.dumps(found | {"flops_per_s": flops_per_s}), flush=True)
            continue
        rows = [f"{k} {v['seconds']:.3f} / {v['floor']:.3f} = {v['ratio']:.1f}x" for k, v in found["phases"].items()]
        outside = f"  outside the model {found['outside']:.0%}" if "outside" in found else ""
        print(f"{name:9} {'  '.join(rows)}{outside}", flush=True)
    if not apart < TOLERANCE:
        print(f"log-probs of sampling and of a pass differ by {apart:.1e}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
