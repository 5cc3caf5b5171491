"""The sections of the report, one a figure: a picture, a table, and what the runs say of the paper's claim."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sapo_vl.experiments import figures, texts
from sapo_vl.experiments.arms import Arm
from sapo_vl.experiments.claims import (
    MEASURES,
    ArmSummary,
    Judged,
    collapse_verdict,
    conditions,
    summarise,
)
from sapo_vl.experiments.collect import Results
from sapo_vl.experiments.config import ExperimentConfig, Figure
from sapo_vl.experiments.sequences import NEAR_ONE, Scatter, histogram_line, read_scatter
from sapo_vl.experiments.stats import Difference, Estimate, Verdict
from sapo_vl.experiments.surrogates import EVERY, JUMP, RATIOS, STEP, LossCurve, facts, loss_curves

NOTHING = "-"
PICTURES, DATA = "figures", "data"  # folders beside the report


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """A row of the table of verdicts at the top."""

    figure: str
    claim: str
    verdict: str
    why: str  # n, seeds, interval and test


@dataclass(frozen=True, slots=True, kw_only=True)
class Section:
    """Markdown, what goes to the top, and mistakes that make the whole report one of an error."""

    text: str
    lines: tuple[Line, ...] = ()
    errors: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Context:
    """What every section is written from."""

    experiment: ExperimentConfig
    results: Results
    judged: Sequence[Judged]
    out: Path


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """In Markdown."""
    cells = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in cells)


def interval(e: Estimate | Difference | None, sign: str = "") -> str:
    """0.612 [0.580, 0.644]"""
    if e is None:
        return NOTHING
    ends = "" if e.ci95 is None else f" [{e.ci95[0]:{sign}.3f}, {e.ci95[1]:{sign}.3f}]"
    return f"{e.mean:{sign}.3f}{ends}"


def number(value: float | None, form: str = ".3f") -> str:
    return NOTHING if value is None else format(value, form)


def p_value(p: float | None) -> str:
    if p is None:
        return NOTHING
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def losses_section(c: Context) -> Section:
    """Figure 1."""
    curves, others = loss_curves()
    write_lines(c.out / DATA / "losses.jsonl", map(_curve_line, curves))
    picture = figures.save(figures.draw_losses(curves), c.out / PICTURES, "figure_1")
    numbers = facts(curves)
    rows = [[name, *(f"{f[key]:.3f}" for key in next(iter(numbers.values())))] for name, f in numbers.items()]
    sapo, grpo = numbers["sapo, A > 0"], numbers["grpo, A > 0"]
    smooth = sapo["largest jump"] < JUMP < grpo["largest jump"] and abs(sapo["r=1"] - 1) < 1e-5
    lines = (
        Line(
            figure="1",
            claim="SAPO's gradient weight is 1 at r = 1 and falls off smoothly; a clip's jumps to 0",
            verdict=Verdict.SEEN if smooth else Verdict.CONTRADICTED,
            why=f"by calculation, no chance: where r changes by {STEP}, the weight of SAPO changes by at most "
            f"{sapo['largest jump']:.4f}, that of GRPO by {grpo['largest jump']:.4f}",
        ),
    )
    text = [
        "## Figure 1: surrogate and gradient weight against the ratio",
        f"![Figure 1]({PICTURES}/{picture})",
        texts.FIGURE_1,
        table(["loss", *next(iter(numbers.values()))], rows),
        f"Left out, as no function of the ratio alone: {', '.join(others)}." if others else "",
    ]
    return Section(text="\n\n".join(text), lines=lines)


def sequences_section(c: Context, arms: Sequence[Arm]) -> Section:
    """Figures 2 and 3."""
    head = "## Figures 2 and 3: how far ratios scatter within a response"
    scatters = [
        s for arm in arms if (s := read_scatter(arm.model, [row.folder for row in c.results.of(arm)])) is not None
    ]
    if not scatters:
        line = Line(figure="2-3", claim="Var_i is mostly below 0.02", verdict=Verdict.MISSING, why="no records")
        return Section(text=f"{head}\n\nNo run has written records of its sequences.", lines=(line,))
    write_lines(c.out / DATA / "sequences.jsonl", map(histogram_line, scatters))
    picture = figures.save(figures.draw_scatters(scatters), c.out / PICTURES, "figures_2_3")
    counted = sum(row.violations or 0 for row in c.results.rows)
    violations = sum(s.violations for s in scatters) + counted
    errors = (f"{violations} responses violate D_i <= tau^2/4 Var_i, which is a theorem",) if violations else ()
    text = [
        head,
        f"![Figures 2 and 3]({PICTURES}/{picture})",
        texts.FIGURE_2.format(every=c.experiment.sequences_every),
        table(
            ["model", "seeds", "responses", "tokens", f"tokens with |log r| < {NEAR_ONE:g}", "Var_i < 0.02",
             "Var_i mean", "median", "D_i mean", "D_i above its bound"],
            [_scatter_row(s) for s in scatters],
        ),
    ]  # fmt: skip
    return Section(text="\n\n".join(text), lines=tuple(_scatter_lines(scatters)), errors=errors)


def _scatter_row(s: Scatter) -> list[str]:
    shares = [f"{s.near_one_share:.1%}", f"{s.small_share:.1%}", f"{s.var.mean():.2e}"]
    counts = [str(s.seeds), f"{s.responses:,}", f"{s.tokens:,}"]
    median = f"{sorted(s.var)[len(s.var) // 2]:.2e}"
    return [s.model, *counts, *shares, median, f"{s.d.mean():.2e}", str(s.violations)]


def _scatter_lines(scatters: Sequence[Scatter]) -> Iterable[Line]:
    for s in scatters:
        n = f"{s.responses:,} responses of {s.seeds} seeds, a count without a test"
        yield Line(
            figure="2-3",
            claim=f"Var_i is mostly below 0.02 ({s.model})",
            verdict=Verdict.SEEN if s.small_share > 0.5 else Verdict.CONTRADICTED,
            why=f"{s.small_share:.1%} are; {n}",
        )
        yield Line(
            figure="2-3",
            claim=f"D_i <= tau^2/4 Var_i ({s.model})",
            verdict="ERROR" if s.violations else Verdict.SEEN,
            why=f"{s.violations} violations; {n}",
        )
    if len(scatters) > 1:
        moe, dense = scatters[0], scatters[1]
        yield Line(
            figure="2-3",
            claim=f"Var_i is larger for {moe.model} than for {dense.model}",
            verdict=Verdict.NOT_APART,
            why=f"means {moe.var.mean():.2e} and {dense.var.mean():.2e}: two models with starts of their own, so that "
            "no number of seeds of the training tells what is due to the experts",
        )


def training_section(c: Context, figure: Figure, title: str, intro: str, groups: Sequence[Sequence[Arm]]) -> Section:
    """Figures 4, 5 and 6: every group of arms has a picture and a table of its own."""
    text = [f"## Figure {figure}: {title}", intro]
    lines: list[Line] = []
    for group in groups:
        summaries = {arm: summarise(arm, c.results, c.experiment.collapse_drop) for arm in group}
        there = [s for s in summaries.values() if s is not None]
        where = conditions(group[0])
        if not there:
            text.append(f"No run of {where} is finished.")
            continue
        name = f"figure_{figure}" + (f"_{group[0].model}" if len(groups) > 1 else "")
        picture = figures.save(figures.draw_training(group, c.results), c.out / PICTURES, name)
        text += [f"![Figure {figure}, {where}]({PICTURES}/{picture})", summary_table(c, there)]
        if figure == "4":
            lines += _collapse_lines(summaries, group)
    judged = [j for j in c.judged if j.claim.figure == figure]
    text += ["What differs, in pairs by seed:", judged_table(judged)]
    return Section(text="\n\n".join(text), lines=(*map(verdict_line, judged), *lines))


def _collapse_lines(summaries: dict[Arm, ArmSummary | None], group: Sequence[Arm]) -> Iterable[Line]:
    first = summaries[group[0]]
    for arm in group[1:]:
        found, p = collapse_verdict(first, summaries[arm])
        counts = [f"{s.collapsed} of {s.n}" if s else "no" for s in (summaries[arm], first)]
        yield Line(
            figure="4",
            claim=f"{arm.method} collapses and {group[0].method} does not ({conditions(arm)})",
            verdict=found,
            why=f"{counts[0]} and {counts[1]} seeds collapsed; Fisher's exact test p = {p_value(p)}",
        )


def stress_section(c: Context, arms: Sequence[Arm]) -> Section:
    """What the paper does not show."""
    summaries = [s for arm in arms if (s := summarise(arm, c.results, c.experiment.collapse_drop)) is not None]
    head = "## Stress: more updates, larger steps, every loss, replay, stale rollouts"
    if not summaries:
        return Section(text=f"{head}\n\nNo run is finished.")
    picture = figures.save(figures.draw_stress(arms, c.results), c.out / PICTURES, "stress")
    judged = [j for j in c.judged if j.claim.figure == "stress"]
    told = [j for j in judged if j.verdict in (Verdict.SEEN, Verdict.CONTRADICTED)]
    measured = sum(j.verdict is not Verdict.MISSING for j in judged)
    text = [
        head,
        f"![Stress]({PICTURES}/{picture})",
        texts.STRESS,
        summary_table(c, summaries),
        f"Comparisons in pairs by seed ({measured} were measured, {len(told)} of them can be told apart):",
        judged_table(judged),
    ]
    return Section(text="\n\n".join(text), lines=tuple(map(verdict_line, told)))


def summary_table(c: Context, summaries: Sequence[ArmSummary]) -> str:
    """A row an arm."""
    flips = any(s.flip is not None for s in summaries)
    header = [
        "arm", "run as", "seeds", "reward, last fifth", "Pass@1", "collapsed", "fell from its best", "mean gate",
        "mean |r - 1|", "largest r", *(["flip rate"] if flips else []),
    ]  # fmt: skip
    rows = []
    for s in summaries:
        row = [s.arm.method, f"{conditions(s.arm)}", str(s.n), interval(s.reward), interval(s.pass_at_1)]
        row += [f"{s.collapsed} of {s.n}", number(s.fell), number(s.gate, ".4f"), number(s.ratio_dev, ".4f")]
        rows.append([*row, number(s.ratio_max, ".3g"), *([number(s.flip, ".4f")] if flips else [])])
    starts = sorted({row.start for s in summaries for row in c.results.of(s.arm)})
    told = ", ".join(f"{name.removeprefix('start ')} {number(c.results.start_reward(name))}" for name in starts)
    return table(header, rows) + f"\n\nReward of the first rollout batches, which the start sampled: {told}."


def judged_table(judged: Sequence[Judged]) -> str:
    """A row a claim and measure."""
    rows = []
    measured = [j for j in judged if j.verdict is not Verdict.MISSING]
    for j in measured:
        d, items = j.difference, j.items
        over_items = f"{interval(items[0], '+')}, n = {items[0].n}, p = {p_value(items[1])}" if items else NOTHING
        row = [j.claim.question, j.claim.text, j.measure, str(d.n) if d else "0", interval(d, "+")]
        ps = [p_value(p) for p in (d.p if d else None, j.adjusted_p, d.p_sign if d else None)]
        rows.append([*row, *ps, str(j.verdict), over_items])
    header = ["question", "claim", "measure", "seeds", "difference", "p (paired t)", "p (Holm)", "p (sign flips)",
              "verdict", "over items, these models only"]  # fmt: skip
    left_out = len(judged) - len(measured)
    missing = f"{left_out} comparisons were not measured." if left_out else ""
    return "\n\n".join(filter(None, [table(header, rows) if rows else "", _power(measured), missing]))


def _power(judged: Sequence[Judged]) -> str:
    """How large a difference had to be."""
    told = []
    for measure in MEASURES:
        intervals = [j.difference.ci95 for j in judged if j.measure == measure and j.difference is not None]
        halves = sorted((high - low) / 2 for low, high in filter(None, intervals))
        if halves:
            told.append(f"{halves[len(halves) // 2]:.3f} of {measure}")
    if not told:
        return ""
    return f"Half the width of these intervals is {' and '.join(told)} in the median: smaller differences do not show."


def verdict_line(j: Judged) -> Line:
    """For the top of the report."""
    d = j.difference
    why = "no pair of finished runs"
    if d is not None:
        why = f"n = {d.n} seeds, difference {interval(d, '+')}, paired t-test, p after Holm {p_value(j.adjusted_p)}"
        if d.n == 1:
            why = f"one seed, difference {d.mean:+.3f}: no test is possible"
    claim = f"{j.claim.text}: {MEASURES[j.measure]}" + ("" if j.claim.of_paper else " (not a claim of the paper's)")
    return Line(figure=j.claim.figure, claim=claim, verdict=str(j.verdict), why=why)


def write_lines(path: Path, lines: Iterable[dict[str, Any]]) -> None:
    """A JSON object a line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")


def _curve_line(curve: LossCurve) -> dict[str, Any]:
    numbers = {"r": RATIOS, "surrogate": curve.surrogate, "weight": curve.weight}
    return {"loss": curve.loss, "sign": curve.sign} | {name: _short(v[::EVERY]) for name, v in numbers.items()}


def _short(values: Iterable[float]) -> list[float]:
    return [float(f"{v:.6g}") for v in values]
