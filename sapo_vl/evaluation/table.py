"""The figures of benchmarks as a table to read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sapo_vl.record.report import NOTHING, table

RULE_NAMES = {"ours": "our rule", "official": "the official rule"}
HELD_OUT_MODES = ("sampled", "greedy")
SHOWN_FROM = 0.005  # difference of pass@1 by our rule and by the official one above which both are shown


def differing(other: Mapping[str, Any] | None) -> Mapping[str, Any] | None:
    """The "other rule" of a summary if it says clearly other things, else None."""
    return other if other and abs(other["difference"]["mean"]) > SHOWN_FROM else None


def figures_table(summaries: Mapping[str, Mapping[str, Any]]) -> str:
    """A row a benchmark, one for the other rule where it says other things, one for each figure of its own."""
    counts = ["truncated", "no answer", "no score"]
    header = ["benchmark", "items", "k", "pass@1", "95%", "pass@k", "maj@k", "blank", *counts]
    rows = []
    for name, summary in summaries.items():
        head, responses, k = summary["pass@1"], summary["responses"], summary["k"]
        several = [_number(summary["pass@k"][str(k)]["mean"]), _number(summary["maj@k"])] if k > 1 else [NOTHING] * 2
        scored = responses.get("scored", 0)
        rows.append(
            [
                name if summary["rule"] == "ours" else f"{name}, official rule",
                str(head["n"]),
                str(k),
                *_with_interval(head),
                *several,
                _number(summary["blank"]["mean"] if summary["blank"] else None),
                *(str(n) for n in (responses["truncated"], responses["no answer"], responses["n"] - scored)),
            ]
        )
        own = dict(summary["metrics"])
        if judged := summary["judge"]:
            own |= {"by the rule": judged["rule"], "judge agrees with it": judged["agree"]}
        rows += [[f"  {key}", "", "", _number(value), *[""] * 7] for key, value in own.items()]
        if k > 1 and summary["rule"] != "ours" and (silent := summary["votes"]["right without one"]):
            rows.append(["  right, but no vote in maj@k", str(silent), *[""] * 9])
        if other := differing(summary["other rule"]):
            own, by = other["pass@1"], f"  by {RULE_NAMES[other['rule']]}"
            rows.append([by, str(own["n"]), str(k), *_with_interval(own), *[""] * 6])
            rows += [[f"    {key}", "", "", _number(value), *[""] * 7] for key, value in other["metrics"].items()]
    return table(header, rows)


def held_out_table(result: Mapping[str, Any]) -> str:
    """What `evaluate_held_out` measured: a row a mode and task."""
    rows = []
    for mode in (*HELD_OUT_MODES, "blank_image"):
        if found := result.get(mode):
            parts = {"all": found, **(tasks if len(tasks := found["by_task"]) > 1 else {})}
            name = mode.replace("_", " ")
            rows += [[f"{name}, {task}", str(part["n"]), *_with_interval(part)] for task, part in parts.items()]
    return table(["accuracy", "problems", "mean", "95%"], rows)


def _with_interval(figure: Mapping[str, Any]) -> list[str]:
    interval = figure["ci95"]
    return [_number(figure["mean"]), f"{interval[0]:.3f}..{interval[1]:.3f}" if interval else NOTHING]


def _number(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.3f}"
