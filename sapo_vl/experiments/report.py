"""report.md: what was run, what it says of the paper's claims, and how sure that is."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from sapo_vl.config import RunConfig
from sapo_vl.experiments import texts
from sapo_vl.experiments.arms import Arm
from sapo_vl.experiments.claims import claims_of, judge
from sapo_vl.experiments.collect import LAST_SHARE, Results, write_data
from sapo_vl.experiments.config import ExperimentConfig, Figure
from sapo_vl.experiments.sections import (
    DATA,
    Context,
    Line,
    Section,
    losses_section,
    number,
    sequences_section,
    stress_section,
    table,
    training_section,
)
from sapo_vl.experiments.stats import LEVEL, Verdict

REPORT = "report.md"


def write_report(
    experiment: ExperimentConfig,
    arms: Mapping[Figure, Sequence[Arm]],
    results: Results,
    configs: Mapping[str, RunConfig],
    out: Path,
) -> tuple[Path, list[str]]:
    """Writes report.md, data/ and figures/ into `out`; returns the report and the errors that it begins with.

    configs: name of a model -> the config of its start.
    """
    write_data(results, out / DATA)
    context = Context(
        experiment=experiment, results=results, judged=judge(claims_of(experiment), results), out=out
    )  # fmt: skip
    sections = [_section(context, figure, arms[figure]) for figure in experiment.figures]
    errors = [error for section in sections for error in section.errors]
    lines = [line for section in sections for line in section.lines]
    text = [
        "# The paper's experiments",
        *(f"**ERROR: {error}**" for error in errors),
        _summary(lines),
        _what_was_run(experiment, results, configs),
        _how_to_read(experiment),
        *(section.text for section in sections),
        _missing(results),
        f"The numbers behind tables and figures are in {DATA}/ as JSON lines; docs/experiments.md has their fields.",
    ]
    path = out / REPORT
    path.write_text("\n\n".join(part for part in text if part) + "\n", encoding="utf-8")
    return path, errors


def _section(c: Context, figure: Figure, arms: Sequence[Arm]) -> Section:
    if figure == "1":
        return losses_section(c)
    if figure == "2":
        return sequences_section(c, arms)
    if figure == "stress":
        return stress_section(c, arms)
    groups = [[arm for arm in arms if arm.model == name] for name in dict.fromkeys(arm.model for arm in arms)]
    title, intro = texts.TRAINING[figure]
    section = training_section(c, figure, title, intro, groups)
    return Section(text=section.text + (_quotas(c, arms) if figure == "6" else ""), lines=section.lines)


def _quotas(c: Context, arms: Sequence[Arm]) -> str:
    rows = [row for arm in arms for row in c.results.of(arm)]
    counts = Counter(tuple(row.tasks.items()) for row in rows)
    told = ["; ".join(f"{t} {low}" if low == high else f"{t} {low} to {high}" for t, (low, high) in k) for k in counts]
    return f"\n\nScored responses of a step, by task, least to most over all steps and runs: {' / '.join(told)}."


def _summary(lines: Sequence[Line]) -> str:
    counts = Counter(line.verdict for line in lines)
    told = ", ".join(f"{n} {name}" for name, n in counts.most_common()) or "none"
    order = [str(v) for v in (Verdict.SEEN, Verdict.CONTRADICTED, Verdict.NOT_APART, Verdict.MISSING)]
    measured = [line for line in lines if line.verdict != Verdict.MISSING]
    ranked = sorted(measured, key=lambda x: (x.figure, order.index(x.verdict) if x.verdict in order else -1))
    rows = [[line.figure, line.claim, line.verdict, line.why] for line in ranked]
    head = ["figure", "claim", "verdict", "on what ground"]
    return "\n\n".join(["## What is seen", texts.SUMMARY.format(told=told), table(head, rows)])


def _what_was_run(experiment: ExperimentConfig, results: Results, configs: Mapping[str, RunConfig]) -> str:
    header = ["model", "what", "data", "prompts x responses", "optimizer, lr", "new tokens", "Pass@1 at the start"]
    runs = results.rows
    hours = sum(row.seconds for row in runs) / 3600
    steps = " or ".join(sorted({str(row.steps) for row in runs}, key=int)) or "no"
    ks = " or ".join(sorted({str(row.k) for row in runs if row.k}, key=int)) or "the"
    seeds = ", ".join(map(str, experiment.seeds))
    start = texts.OWN_START if experiment.cold_start_per_seed else texts.SHARED_START
    return "\n\n".join(
        [
            "## What was run",
            table(header, [_model_row(name, config, results) for name, config in configs.items()]),
            f"{len(runs)} runs are finished, seeds {seeds}, {steps} steps each, {hours:.1f} hours together (side by "
            f"side on {os.cpu_count()} cores). {start}",
            f"Pass@1: the mean over held-out items of the mean score of {ks} sampled responses each.",
            _versions(results),
        ]
    )


def _model_row(name: str, config: RunConfig, results: Results) -> list[str]:
    starts = [s for s in results.starts if s.name.startswith((f"start {name}.", f"start {name}-mixed."))]
    what = f"tiny {config.model.tiny}, made from config" if config.model.tiny else config.model.path
    sizes = f"{config.rollout.prompts_per_step} x {config.rollout.group_size}"
    optimizer = f"{config.optim.name}, {config.optim.lr:g}"
    measured = "; ".join(f"{s.name.removeprefix('start ')}: {number(s.pass_at_1)}" for s in starts) or "-"
    data = config.recipe.name or config.data.path
    return [name, what, data, sizes, optimizer, str(config.rollout.max_new_tokens), measured]


def _versions(results: Results) -> str:
    packages = ("python", "torch", "transformers", "deepspeed")
    versions = sorted({f"{key} {row.versions.get(key)}" for row in results.rows for key in packages})
    commits = Counter(row.versions.get("commit", "")[:12] or "unknown" for row in results.rows)
    told = ", ".join(f"{commit} ({n} runs)" for commit, n in commits.most_common()) or "-"
    several = " **The runs are of several commits.**" if len(commits) > 1 else ""
    where = "Whatever a run was made with is in its folder (job.json, config.yaml)."
    return f"Versions: {', '.join(versions) or '-'}. Commit: {told}.{several} {where}"


def _how_to_read(experiment: ExperimentConfig) -> str:
    n = len(experiment.seeds)
    least = 2 / 2**n
    return texts.HOW_TO_READ.format(
        end=f"{LAST_SHARE:.0%}",
        level=LEVEL,
        seeds=n,
        least=least,
        never=": it can tell nothing apart here" if least >= LEVEL else "",
        drop=experiment.collapse_drop,
    )


def _missing(results: Results) -> str:
    if not results.absent:
        return ""
    by_arm: dict[tuple[str, str, str], list[str]] = {}
    for a in results.absent:
        by_arm.setdefault((a.label, a.status, a.reason[:300]), []).append(str(a.seed))
    rows = [[label, ", ".join(seeds), status, reason] for (label, status, reason), seeds in by_arm.items()]
    return f"## What is missing\n\n{table(['arm', 'seeds', 'status', 'reason'], rows)}"
