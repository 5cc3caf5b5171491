"""The pictures, each as PNG and SVG."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from sapo_vl.experiments.arms import Arm
from sapo_vl.experiments.claims import conditions
from sapo_vl.experiments.collect import Results, RunRow
from sapo_vl.experiments.sequences import LOG_RATIO_EDGES, Scatter
from sapo_vl.experiments.stats import Estimate, estimate
from sapo_vl.experiments.surrogates import EVERY, RATIOS, LossCurve
from sapo_vl.learning.sequence_stats import SMALL_VAR

SMOOTH = 10  # steps of the running mean of a training curve of 100 steps or more
SCATTER_POINTS = 2000  # responses drawn in Var-D; all are counted
matplotlib.rcParams["svg.hashsalt"] = "sapo_vl"  # the same data, the same file
DASHES = ("-", "--", ":", "-.")


def save(figure: Figure, folder: Path, name: str) -> str:
    """Writes NAME.png and NAME.svg; returns the name of the first."""
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / f"{name}.png", dpi=110)
    figure.savefig(folder / f"{name}.svg", metadata={"Date": None})
    return f"{name}.png"


def _figure(width: float, height: float) -> Figure:
    return Figure(figsize=(width, height), layout="constrained")  # not pyplot: no window, no state


def draw_losses(curves: Sequence[LossCurve]) -> Figure:
    """Figure 1: surrogate and weight against r, for both signs of A. Losses with the same weights are one curve."""
    figure = _figure(10, 7)
    axes = figure.subplots(2, 2, sharex=True)
    alike: dict[tuple[bytes, ...], list[str]] = {}
    weights = {(c.loss, c.sign): c for c in curves}
    for name in dict.fromkeys(c.loss for c in curves):
        both = tuple(weights[name, sign].weight.round(3).tobytes() for sign in (1, -1))
        alike.setdefault(both, []).append(name)
    for row, sign in enumerate((1, -1)):
        for place, names in enumerate(alike.values()):
            c = weights[names[0], sign]
            style = {"color": f"C{place % 10}", "linestyle": DASHES[place % len(DASHES)], "linewidth": 1.5}
            r, label = RATIOS[::EVERY], ", ".join(names) if row == 0 else None
            axes[row, 0].plot(r, c.surrogate[::EVERY], label=label, **style)
            axes[row, 1].plot(r, c.weight[::EVERY], **style)
        word = "A > 0" if sign > 0 else "A < 0"
        axes[row, 0].set(ylabel=f"{word}: f(r) - f(1)", ylim=(-1.5, 2.5))
        axes[row, 1].set(ylabel=f"{word}: gradient weight f'(r)", ylim=(-0.05, 1.3))
        for ax in axes[row]:
            ax.axvline(1, color="grey", linewidth=0.6)
            ax.grid(alpha=0.3)
    for ax in axes[1]:
        ax.set(xlabel="token ratio r", xlim=(0, 3))
    figure.legend(loc="outside upper center", ncols=4, fontsize="small")
    return figure


def draw_scatters(scatters: Sequence[Scatter]) -> Figure:
    """Figures 2 and 3: a row a model: log r, Var, and Var against D with the bound."""
    figure = _figure(12, 3.6 * len(scatters))
    grid = figure.subplots(len(scatters), 3, squeeze=False)
    for axes, s in zip(grid, scatters, strict=True):
        places = np.arange(len(s.log_ratio_counts))
        axes[0].bar(places, s.log_ratio_counts / max(1, s.log_ratio_counts.sum()), width=1.0)
        ticks = [i for i, edge in enumerate(LOG_RATIO_EDGES) if round(np.log10(abs(edge)), 6).is_integer()]
        axes[0].set_xticks([i + 0.5 for i in ticks], [f"{LOG_RATIO_EDGES[i]:.2g}" for i in ticks], rotation=60)
        axes[0].set(xlabel="log r (edges of bins)", ylabel=f"{s.model}: share of tokens", yscale="log")
        positive = s.var[s.var > 0]
        if len(positive):
            axes[1].hist(np.log10(positive), bins=40)
        axes[1].axvline(np.log10(SMALL_VAR), color="C3", linewidth=0.8, label=f"{SMALL_VAR}")
        axes[1].set(xlabel="log10 Var_i", ylabel="responses")
        axes[1].legend(fontsize="small")
        some = np.linspace(0, len(s.var) - 1, min(SCATTER_POINTS, len(s.var))).astype(int)
        shown = some[(s.var[some] > 0) & (s.d[some] > 0)]
        axes[2].loglog(s.var[shown], s.d[shown], ".", markersize=2, alpha=0.5, label="responses", rasterized=True)
        bound = {"markersize": 1, "color": "C3", "label": "bound tau^2/4 Var_i", "rasterized": True}
        axes[2].loglog(s.var[shown], s.bound[shown], ".", **bound)
        axes[2].set(xlabel="Var_i", ylabel="D_i")
        axes[2].legend(fontsize="small", loc="upper left")
    return figure


def draw_training(arms: Sequence[Arm], results: Results) -> Figure:
    """Figures 4 to 6: training reward and held-out Pass@1, mean over seeds with 95% intervals."""
    figure = _figure(11, 4)
    left, right = figure.subplots(1, 2)
    for place, arm in enumerate(arms):
        rows = results.of(arm)
        if not rows:
            continue
        style = {"color": f"C{place}", "label": f"{arm.method} (n={len(rows)})"}
        width = _width(rows)
        _band(left, _smoothed(rows, width), width, style)
        steps = sorted(set.intersection(*(set(row.held_out) for row in rows)))
        if steps:
            estimates = [estimate([row.held_out[step] for row in rows]) for step in steps]
            _points(right, steps, estimates, place, len(arms), style)
    left.set(xlabel="step", ylabel="training reward (running mean)")
    right.set(xlabel="step", ylabel="held-out Pass@1")
    for ax in (left, right):
        ax.grid(alpha=0.3)
    right.legend(fontsize="small")
    return figure


def _width(rows: Sequence[RunRow]) -> int:
    """Steps of the running mean: fewer for short runs."""
    return max(1, min(SMOOTH, min(row.steps for row in rows) // SMOOTH))


def _smoothed(rows: Sequence[RunRow], width: int) -> list[Estimate]:
    """Over seeds, at the steps that all of them have; a reward that was not measured counts as the run's mean."""
    shortest = min(row.steps for row in rows)
    curves = []
    for row in rows:
        values = np.array([np.nan if v is None else v for v in row.curves["reward"][:shortest]], np.float64)
        known = np.where(np.isnan(values), np.nanmean(values), values)
        curves.append(np.convolve(known, np.ones(width), "valid") / width)
    return [estimate([float(v) for v in column]) for column in np.stack(curves).T]


def _band(ax: Axes, estimates: Sequence[Estimate], width: int, style: dict[str, Any]) -> None:
    steps = np.arange(len(estimates)) + width
    ax.plot(steps, [e.mean for e in estimates], linewidth=1.3, **style)
    if all(e.ci95 is not None for e in estimates):
        low, high = zip(*(e.ci95 for e in estimates if e.ci95 is not None), strict=True)
        ax.fill_between(steps, low, high, color=style["color"], alpha=0.12, linewidth=0)


def _points(ax: Axes, steps: list[int], estimates: list[Estimate], place: int, of: int, style: dict[str, Any]) -> None:
    shift = (place - (of - 1) / 2) * 0.012 * max(steps)  # beside each other
    x = [step + shift for step in steps]
    ax.plot(x, [e.mean for e in estimates], marker="o", markersize=4, linewidth=1, **style)
    for at, e in zip(x, estimates, strict=True):
        if e.ci95 is not None:
            ax.vlines(at, *e.ci95, color=style["color"], alpha=0.6)


def draw_stress(arms: Sequence[Arm], results: Results) -> Figure:
    """Every arm of the stress: reward at the end, all seeds as points, grouped by how hard it was pressed."""
    groups: dict[str, list[Arm]] = {}
    for arm in arms:
        if results.of(arm):
            groups.setdefault(conditions(arm), []).append(arm)
    names = list(dict.fromkeys(arm.method for group in groups.values() for arm in group))
    height = 0.6 + sum(0.24 * len(group) + 0.35 for group in groups.values())
    figure = _figure(10, max(3.0, height))
    ax = figure.subplots()
    at, ticks, labels = 0.0, [], []
    for where, group in groups.items():
        ax.text(0.005, at, where, transform=ax.get_yaxis_transform(), fontsize="small", weight="bold", va="center")
        for arm in group:
            at += 1
            rows = results.of(arm)
            ends = [end for row in rows if (end := row.end_mean("reward")) is not None]
            e = estimate(ends)
            colour = f"C{names.index(arm.method) % 10}"
            ax.plot(ends, [at] * len(ends), "o", markersize=3, color=colour, alpha=0.6)
            ax.plot([e.mean], [at], "|", markersize=12, color=colour)
            ticks.append(at)
            labels.append(arm.method)
        at += 1.5
    starts = {row.start for arm in arms for row in results.of(arm)}
    for value in filter(None, map(results.start_reward, sorted(starts))):
        ax.axvline(value, color="grey", linestyle=":", linewidth=1)
    ax.set_yticks(ticks, labels, fontsize="small")
    ax.set_ylim(at - 0.5, -1.0)  # downwards
    ax.set(xlabel="training reward, last fifth of the steps (dotted: at the start)")
    ax.grid(alpha=0.3, axis="x")
    return figure
