"""Curves of a run as PNG files, from the lines of metrics.jsonl."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

FEW_POINTS = 40  # up to so many, each point gets a marker


@dataclass(frozen=True, slots=True)
class Plot:
    """One picture: every metric of a phase whose name fits a pattern becomes a curve over steps."""

    name: str  # of the file, without .png
    phase: str
    label: str  # of the y axis
    patterns: tuple[str, ...]


# A list "<metric>/ci95" = [low, high] beside a metric is drawn as its interval.
PLOTS = (
    Plot("cold_start", "sft", "cold start: loss, pass rate", ("loss", "pass_rate")),
    Plot("reward", "train", "mean reward", ("reward/mean", "reward/task/*")),
    Plot("accuracy", "train", "mean accuracy of rollouts", ("accuracy/*",)),
    Plot("gate", "train", "mean gate f'(r)", ("gate/mean", "gate/pos/mean", "gate/neg/mean")),
    Plot("ratio", "train", "mean |r - 1|", ("ratio/mean_abs_dev",)),
    Plot(
        "variance",
        "train",
        "mean Var_i of log r",
        ("sequence/var/mean", "sequence/pos/var/mean", "sequence/neg/var/mean"),
    ),
    Plot("entropy", "train", "mean entropy (nats per token)", ("entropy/mean",)),
    Plot("grad_norm", "train", "gradient norm before clipping", ("grad_norm", "grad_norm/max")),
    Plot("length", "train", "response length (tokens)", ("length/mean", "length/q50", "length/q95")),
    Plot("seconds", "train", "seconds per step", ("seconds/*",)),
    Plot("eval_overall", "eval", "accuracy, all tasks", ("eval/*/all",)),
    Plot("eval_sampled", "eval", "accuracy, sampled", ("eval/sampled/*",)),
    Plot("eval_greedy", "eval", "accuracy, greedy", ("eval/greedy/*",)),
)


def write_plots(rows: Sequence[Mapping[str, Any]], folder: Path) -> tuple[list[Path], list[str]]:
    """(files written, one sentence for each picture that no line has a metric for).

    rows: lines of metrics.jsonl.
    """
    by_phase = merge_lines(rows)
    written, left_out = [], []
    folder.mkdir(parents=True, exist_ok=True)
    for plot in PLOTS:
        figure = draw(plot, by_phase.get(plot.phase, {}))
        if figure is None:
            left_out.append(f"{plot.name}: no {plot.phase} line has {' or '.join(plot.patterns)}")
            continue
        path = folder / f"{plot.name}.png"
        figure.savefig(path)
        written.append(path)
    return written, left_out


def merge_lines(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[int, dict[str, Any]]]:
    """phase -> step -> metrics. Where both occur again, later lines complete and override earlier ones."""
    merged: dict[str, dict[int, dict[str, Any]]] = defaultdict(lambda: defaultdict(dict))
    for row in rows:
        merged[row["phase"]][row["step"]].update(row)
    return {phase: dict(lines) for phase, lines in merged.items()}


def draw(plot: Plot, lines: Mapping[int, Mapping[str, Any]]) -> Figure | None:
    """The picture of `lines` (step -> metrics); None if none of its metrics occurs."""
    names = _matching(plot.patterns, lines)
    if not names:
        return None
    figure = Figure(figsize=(8, 4), dpi=110, layout="constrained")  # not pyplot: no window, no state
    axes = figure.subplots()
    for name in names:
        steps = sorted(step for step, line in lines.items() if name in line)
        values = np.array([_number(lines[step][name]) for step in steps])
        marker = "o" if len(steps) <= FEW_POINTS else None
        (curve,) = axes.plot(steps, values, label=name, marker=marker, markersize=3, linewidth=1.2)
        intervals = [lines[step].get(f"{name}/ci95") for step in steps]
        if any(intervals):
            low, high = zip(*(i or (np.nan, np.nan) for i in intervals), strict=True)
            axes.vlines(steps, low, high, color=curve.get_color(), alpha=0.5)
    axes.set(xlabel="step", ylabel=plot.label)
    axes.grid(alpha=0.3)
    if len(names) > 1:
        figure.legend(loc="outside right upper", fontsize="small")
    return figure


def _matching(patterns: Sequence[str], lines: Mapping[int, Mapping[str, Any]]) -> list[str]:
    """Names of the scalars of `lines` that fit, in the order of the patterns, then of the alphabet."""
    scalars = {name for line in lines.values() for name, value in line.items() if not isinstance(value, list)}
    found = [name for pattern in patterns for name in sorted(scalars) if fnmatchcase(name, pattern)]
    return list(dict.fromkeys(found))


def _number(value: float | None) -> float:
    return np.nan if value is None else float(value)
