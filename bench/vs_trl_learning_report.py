"""What bench/vs_trl_learning.py makes of its results: curves, ratios, differences with intervals, table and plot.

A record is one training of one side: {"side": "ours" or "trl", "seed", "steps", "seconds", "cpu", "peak_mb", "live",
"first_reward", "curve", "sampled", "greedy"}, the last two {"mean", "n", "ci95"} as `sapo-vl eval` writes them.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from vs_trl import ratios

from sapo_vl.evaluation.statistics import paired_difference

MODES = ("sampled", "greedy")
NAMES = {"ours": "sapo_vl", "trl": "TRL"}
COLOURS = {"ours": "tab:blue", "trl": "tab:orange"}
Record = Mapping[str, Any]


def curve(rewards: Sequence[float], window: int) -> list[dict[str, float]]:
    """Mean reward of `window` rollout batches at a time, the last ones perhaps of fewer, and the last batch of each."""
    ends = range(window, len(rewards) + window, window)
    return [{"step": min(end, len(rewards)), "reward": statistics.mean(rewards[end - window : end])} for end in ends]


def difference(a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, Any]:
    """{"difference", "ci95"} of two means, a - b, from their own intervals (of shares: Newcombe 1998, method 10).

    The items are taken as independent; both sides answer the same ones, so it is wider than a paired interval.
    """
    (low_a, high_a), (low_b, high_b) = a["ci95"], b["ci95"]
    d = a["mean"] - b["mean"]
    low = d - math.hypot(a["mean"] - low_a, high_b - b["mean"])
    high = d + math.hypot(high_a - a["mean"], b["mean"] - low_b)
    return {"difference": d, "ci95": [low, high]}


def within(interval: Sequence[float]) -> bool:
    """Whether a difference cannot be told from none: 0 is in its interval."""
    return interval[0] <= 0 <= interval[1]


def compared(pairs: Sequence[tuple[Record, Record]], mode: str) -> dict[str, Any]:
    """Accuracy of pairs (ours, TRL's), one a seed, in one mode: means over seeds, and their difference.

    Its interval is by the differences of the seeds, mean +- t(S - 1) * s / sqrt(S), which hold the chance of training
    as well as that of the items; of a single seed, or of equal differences, that of the items alone.
    """
    each = [difference(a[mode], b[mode]) | {"seed": a["seed"]} for a, b in pairs]
    over = paired_difference([e["difference"] for e in each])
    interval = over["ci95"] or each[0]["ci95"]
    return {
        "ours": statistics.mean(a[mode]["mean"] for a, _ in pairs),
        "trl": statistics.mean(b[mode]["mean"] for _, b in pairs),
        "difference": over["mean"],
        "ci95": interval,
        "interval_of": "seeds" if over["ci95"] else "items",
        "within": within(interval),
        "by_seed": [e | {"within": within(e["ci95"])} for e in each],
    }


def pairs_of(records: Sequence[Record]) -> list[tuple[Record, Record]]:
    """(ours, TRL's) of each seed that both have finished."""
    found = {(r["side"], r["seed"]): r for r in records}
    seeds = sorted({seed for _, seed in found})
    return [(found["ours", s], found["trl", s]) for s in seeds if ("ours", s) in found and ("trl", s) in found]


def comparison(records: Sequence[Record]) -> dict[str, Any] | None:
    """How many times as long TRL takes, and accuracies; None before both sides have finished a seed."""
    pairs = pairs_of(records)
    if not pairs:
        return None
    by = {kind: ratios([a[kind] for a, _ in pairs], [b[kind] for _, b in pairs]) for kind in ("seconds", "cpu")}
    return {
        "seeds": [a["seed"] for a, _ in pairs],
        "ratio": by["seconds"],
        "ratio_cpu": by["cpu"],
        "accuracy": {mode: compared(pairs, mode) for mode in MODES},
    }


def table(records: Sequence[Record]) -> str:
    """A line for each training and what they come to, for people."""
    lines = ["side     seed  seconds   peak MB  reward first, last  " + "  ".join(f"{m:22}" for m in MODES)]
    for r in sorted(records, key=lambda r: (r["seed"], r["side"])):
        rewards = r["curve"][0]["reward"], r["curve"][-1]["reward"]
        lines.append(
            f"{NAMES[r['side']]:8} {r['seed']:4d}  {r['seconds']:7.1f}  {r['peak_mb']:8.0f}  "
            f"{rewards[0]:11.3f}, {rewards[1]:.3f}  " + "  ".join(f"{_share(r[mode]):22}" for mode in MODES)
        )
    found = comparison(records)
    if found is None:
        return "\n".join(lines)
    for name, ratio in (("seconds", found["ratio"]), ("CPU seconds", found["ratio_cpu"])):
        lines.append(
            f"TRL takes {ratio['median']:.2f} times our {name} (median of {len(found['seeds'])} seeds; "
            f"min {ratio['min']:.2f}, max {ratio['max']:.2f})"
        )
    for mode, a in found["accuracy"].items():
        (low, high), verdict = a["ci95"], "within" if a["within"] else "NOT WITHIN"
        lines.append(
            f"{mode}: ours {a['ours']:.3f}, TRL {a['trl']:.3f}, difference {a['difference']:+.3f} "
            f"[{low:+.3f}, {high:+.3f}] over {a['interval_of']}: {verdict} the interval"
        )
    return "\n".join(lines)


def _share(result: Mapping[str, Any]) -> str:
    low, high = result["ci95"]
    return f"{result['mean']:.3f} [{low:.3f}, {high:.3f}]"


def draw(records: Sequence[Record], start: Mapping[str, Any], folder: Path) -> None:
    """learning.png and learning.svg. `start`: the accuracies of the cold start."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
    seeds = sorted({r["seed"] for r in records})
    for r in records:
        label = NAMES[r["side"]] if r["seed"] == seeds[0] else None
        style: dict[str, Any] = {"color": COLOURS[r["side"]], "marker": "o", "markersize": 3}
        left.plot([p["step"] for p in r["curve"]], [p["reward"] for p in r["curve"]], label=label, lw=1, **style)
        for i, mode in enumerate(MODES):
            # Seeds beside each other, our side left of TRL's.
            x = i + (-0.2 if r["side"] == "ours" else 0.2) + 0.3 * (seeds.index(r["seed"]) / len(seeds) - 0.35)
            mean, (low, high) = r[mode]["mean"], r[mode]["ci95"]
            right.errorbar(x, mean, yerr=[[mean - low], [high - mean]], capsize=2, lw=1, **style)
    for i, mode in enumerate(MODES):
        label = "cold start" if i == 0 else None
        right.hlines(start[mode]["mean"], i - 0.4, i + 0.4, color="grey", ls="--", label=label)
    left.set(xlabel="rollout batches", ylabel="mean reward")
    right.set(ylabel="held-out accuracy, 95% intervals")
    right.set_xticks(range(len(MODES)), MODES)
    left.legend()
    right.legend()
    for suffix in ("png", "svg"):
        figure.savefig(folder / f"learning.{suffix}", dpi=130)
    plt.close(figure)
