"""The figures of benchmarks as a table to read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from sapo_vl.record.report import NOTHING, table


def figures_table(summaries: Mapping[str, Mapping[str, Any]]) -> str:
    """A row a benchmark, and one for each figure of its own."""
    counts = ["truncated", "no answer", "no score"]
    header = ["benchmark", "items", "k", "pass@1", "95%", "pass@k", "maj@k", "blank", *counts]
    rows = []
    for name, summary in summaries.items():
        head, responses, k = summary["pass@1"], summary["responses"], summary["k"]
        interval = head["ci95"]
        several = [_number(summary["pass@k"][str(k)]["mean"]), _number(summary["maj@k"])] if k > 1 else [NOTHING] * 2
        scored = responses.get("scored", 0)
        rows.append(
            [
                name,
                str(head["n"]),
                str(k),
                _number(head["mean"]),
                f"{interval[0]:.3f}..{interval[1]:.3f}" if interval else NOTHING,
                *several,
                _number(summary["blank"]["mean"] if summary["blank"] else None),
                *(str(n) for n in (responses["truncated"], responses["no answer"], responses["n"] - scored)),
            ]
        )
        rows += [[f"  {key}", "", "", _number(value), *[""] * 7] for key, value in summary["metrics"].items()]
    return table(header, rows)


def _number(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.3f}"
