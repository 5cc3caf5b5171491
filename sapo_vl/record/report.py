"""What a run achieved, as text and pictures, from its summary.json and metrics.jsonl alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sapo_vl.record.report_plots import write_plots
from sapo_vl.record.run_log import METRICS_FILE, read_metrics
from sapo_vl.strict import read_mapping

Level = Mapping[str, Any]  # {"mean", "n", "ci95", "by_task": {task: {"mean", "n", "ci95"}}}
SECTIONS = {  # key of summary.json -> title
    "sampled": "Accuracy, sampled",
    "greedy": "Accuracy, greedy",
    "blank_image": "Control: the same problems with blank images",
}
NOTHING = "-"


def write_report(run_dir: Path) -> str:
    """Writes curves to <run_dir>/plots and returns a text: accuracy before and after, controls, times.

    A run that has not finished has no summary.json: it gets curves only, and the text says so. Raises
    FileNotFoundError if there is no metrics.jsonl either, ValueError naming a file that is not what a run writes.
    """
    run_dir = Path(run_dir)
    metrics, summary_path = run_dir / METRICS_FILE, run_dir / "summary.json"
    if not metrics.exists() and not summary_path.exists():
        raise FileNotFoundError(f"{run_dir} has no {METRICS_FILE} and no summary.json; give a run folder")
    blocks = [f"Run {run_dir}"]
    if summary_path.exists():
        try:
            blocks += describe_summary(read_mapping(summary_path))
        except (TypeError, AttributeError, LookupError) as error:
            raise ValueError(f"{summary_path} is no summary of a run ({error}); repair or delete it") from error
    else:
        blocks.append("No summary.json: the run has not finished, so there is no table of accuracy.")
    rows = read_metrics(metrics) if metrics.exists() else []
    written, left_out = write_plots(rows, run_dir / "plots")
    lines = [f"{len(written)} plots in {run_dir / 'plots'}"]
    blocks.append("\n".join(lines + [f"  left out {reason}" for reason in left_out]))
    return "\n\n".join(blocks) + "\n"


def describe_summary(summary: Mapping[str, Any]) -> list[str]:
    """The blocks of text for a summary: facts, accuracy tables, seconds by phase."""
    facts = [f"{key} {summary[key]}" for key in ("loss", "seed", "steps") if key in summary]
    blocks = [", ".join(facts)] if facts else []
    accuracy = summary.get("accuracy") or {}
    before, after = accuracy.get("cold_start") or {}, accuracy.get("final") or {}
    shown = [key for key in SECTIONS if before.get(key) or after.get(key)]
    if not (before or after):
        blocks.append("summary.json holds no accuracy.")
    elif not {"sampled", "greedy"} & {*shown}:
        blocks.append(_accuracy_table("Accuracy", before, after))
    for key in shown:
        blocks.append(_accuracy_table(SECTIONS[key], before.get(key) or {}, after.get(key) or {}))
    if notices := summary.get("notices"):
        rows = [[name, f"{n['first']}", f"{n['last']}", f"{n['rows']}"] for name, n in notices.items()]
        blocks.append(
            "Signs of trouble (docs/metrics.md says what to do)\n" + table(["name", "from", "to", "rows"], rows)
        )
    if wall := summary.get("wall_s"):
        rows = [[phase, f"{seconds:.1f}"] for phase, seconds in wall.items()]
        blocks.append("Seconds by phase\n" + table(["phase", "seconds"], rows))
    return blocks


def _accuracy_table(title: str, before: Level, after: Level) -> str:
    old: Mapping[str, Level] = before.get("by_task") or {}
    new: Mapping[str, Level] = after.get("by_task") or {}
    rows = [_accuracy_row("all", before, after)]
    rows += [_accuracy_row(t, old.get(t) or {}, new.get(t) or {}) for t in sorted(old.keys() | new.keys())]
    header = ["task", "n", "cold start", "final", "change"]
    return f"{title} (mean over n problems, 95% interval)\n" + table(header, rows)


def _accuracy_row(name: str, before: Level, after: Level) -> list[str]:
    counts = list(dict.fromkeys(str(level["n"]) for level in (before, after) if level.get("n") is not None))
    old, new = before.get("mean"), after.get("mean")
    change = NOTHING if old is None or new is None else f"{new - old:+.3f}"
    return [name, "/".join(counts) or NOTHING, _mean_and_interval(before), _mean_and_interval(after), change]


def _mean_and_interval(level: Level) -> str:
    if level.get("mean") is None:
        return NOTHING
    interval = level.get("ci95")
    return f"{level['mean']:.3f}" + (f" [{interval[0]:.3f}, {interval[1]:.3f}]" if interval else "")


def table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns padded to their widest cell, the first to the left and the others to the right."""
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    lines = []
    for row in [header, ["-" * width for width in widths], *rows]:
        cells = [cell.rjust(width) for cell, width in zip(row, widths, strict=True)]
        lines.append("  ".join([row[0].ljust(widths[0]), *cells[1:]]))
    return "\n".join(lines)
