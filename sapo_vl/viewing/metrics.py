"""metrics.jsonl as columns, which is how curves are drawn."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sapo_vl.strict import Unreadable, parse_json
from sapo_vl.viewing.folders import METRICS
from sapo_vl.viewing.numbers import finite

MAX_POINTS = 2000  # of a curve; longer ones keep every second, third, ... step
OWN = ("step", "phase", "time", "nonfinite", "notices")


def read_columns(run: Path) -> dict[str, Any]:
    """{"phases": {phase: columns}, "notices_by_step": {name: steps in which the run raised it}, "unread": lines}.

    Columns are {"steps", "every": of how many steps one is kept, "series": {name: values}, "intervals": {name: [low,
    high] a step}, "counts": {name: a list a step}}. Where a step occurs twice, later lines complete and override
    earlier ones. A last line that is still being written is left out and counted. Raises Unreadable, naming file and
    line, for any other line that is no JSON object.
    """
    path = run / METRICS
    merged: dict[str, dict[int, dict[str, Any]]] = {}
    notices: dict[str, list[int]] = {}
    unread = 0
    for row in _rows(path) if path.is_file() else []:
        if row is None:
            unread += 1
            continue
        merged.setdefault(row["phase"], {}).setdefault(row["step"], {}).update(row)
        for name in row.get("notices") or []:
            steps = notices.setdefault(str(name), [])
            if not steps or steps[-1] != row["step"]:
                steps.append(row["step"])
    return {
        "phases": {phase: _columns(lines) for phase, lines in sorted(merged.items())},
        "notices_by_step": notices,
        "unread": unread,
    }


def _columns(lines: Mapping[int, Mapping[str, Any]]) -> dict[str, Any]:
    steps = sorted(lines)
    every = -(-len(steps) // MAX_POINTS)
    kept = [step for i, step in enumerate(steps) if i % every == 0 or i == len(steps) - 1]
    names = dict.fromkeys(name for step in kept for name in lines[step] if name not in OWN)
    series, intervals, counts = {}, {}, {}
    for name in names:
        values = [lines[step].get(name) for step in kept]
        if not any(isinstance(value, list) for value in values):
            series[name] = [finite(value) for value in values]
        elif name.endswith("/ci95"):
            intervals[name.removesuffix("/ci95")] = [_numbers(value, 2) for value in values]
        else:
            counts[name] = [_numbers(value) for value in values]
    return {"steps": kept, "every": every, "series": series, "intervals": intervals, "counts": counts}


def _numbers(value: Any, length: int | None = None) -> list[float | int | None] | None:
    if not isinstance(value, list) or (length is not None and len(value) != length):
        return None
    return [finite(item) for item in value]


def _rows(path: Path) -> Iterator[dict[str, Any] | None]:
    """The lines; None for a last one that has not been written to its end."""
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            try:
                row = parse_json(line)
                if not isinstance(row, dict) or not isinstance(row.get("phase"), str):
                    raise ValueError("it is no line of a run")
                if type(row.get("step")) is not int:
                    raise ValueError(f"its step is {row.get('step')!r}")
            except ValueError as error:
                if not line.endswith(b"\n"):
                    yield None
                    return
                raise Unreadable(f"{path}:{number} cannot be read ({error}); delete the line") from error
            yield row
