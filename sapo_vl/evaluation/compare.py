"""Is one of two models better? The same items, answered by both: differences in pairs."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sapo_vl.evaluation.errors import EvaluationError
from sapo_vl.evaluation.harness_file import HARNESS_FILE, differences, read_harness
from sapo_vl.evaluation.records import RECORDS, check_whole, read_records
from sapo_vl.evaluation.statistics import mcnemar_exact, paired_difference, sign_flip_p


def benchmark_folders(path: Path) -> dict[str, Path]:
    """Name -> folder of the benchmarks in `path`: itself one, a folder of them, or the run folder around that.

    Raises EvaluationError if there is none.
    """
    candidates = [path, *sorted(path.glob("*")), *sorted(path.glob("benchmarks/*"))]
    found = [folder for folder in candidates if (folder / HARNESS_FILE).is_file() and (folder / RECORDS).is_file()]
    if found and found[0] == path:
        found = found[:1]
    if not found:
        raise EvaluationError(f"{path} holds no evaluation; give a folder that `sapo-vl eval` wrote (--out)")
    return {str(read_harness(folder)[0]["benchmark"]["name"]): folder for folder in found}


def compare(first: Path, second: Path) -> dict[str, dict[str, Any]]:
    """Name of every benchmark that both have -> `compare_benchmark`. Raises EvaluationError if there is none."""
    ours, theirs = benchmark_folders(first), benchmark_folders(second)
    both = [name for name in ours if name in theirs]
    if not both:
        raise EvaluationError(f"{first} has {', '.join(ours)}; {second} has {', '.join(theirs)}: nothing to compare")
    return {name: compare_benchmark(ours[name], theirs[name]) for name in both}


def compare_benchmark(first: Path, second: Path) -> dict[str, Any]:
    """Second minus first over the items that both were asked with the same prompt and have scores for.

    {"n", "first", "second": means over items, "difference": {"mean", "n", "ci95"}, "wins", "losses", "ties" of the
    second, "p", "test": "mcnemar" where every item mean is 0 or 1, else "sign flips", "left out": {reason: items},
    "differs": {key of the harness, the model's aside: [value in first, value in second]}}
    """
    for folder in (first, second):
        check_whole(folder, read_harness(folder)[0]["benchmark"]["name"])
    ours = {record.id: record for record in read_records(first / RECORDS)}
    theirs = {record.id: record for record in read_records(second / RECORDS)}
    common = [id for id in ours if id in theirs]
    same = [id for id in common if ours[id].prompt == theirs[id].prompt]
    scored = [id for id in same if ours[id].scores and theirs[id].scores]
    if not scored:
        raise EvaluationError(f"{first} and {second} have no item with the same prompt and a score in both")
    a = [sum(ours[id].scores) / len(ours[id].scores) for id in scored]
    b = [sum(theirs[id].scores) / len(theirs[id].scores) for id in scored]
    gains = [y - x for x, y in zip(a, b, strict=True)]
    wins, losses = sum(d > 0 for d in gains), sum(d < 0 for d in gains)
    yes_or_no = all(x in (0.0, 1.0) for x in (*a, *b))
    harnesses = differences(read_harness(first)[0], read_harness(second)[0])
    return {
        "n": len(scored),
        "first": sum(a) / len(a),
        "second": sum(b) / len(b),
        "difference": paired_difference(gains),
        "wins": wins,
        "losses": losses,
        "ties": len(scored) - wins - losses,
        "p": mcnemar_exact(losses, wins) if yes_or_no else sign_flip_p(gains),
        "test": "mcnemar" if yes_or_no else "sign flips",
        "left out": {
            "only in one": len(ours.keys() ^ theirs.keys()),
            "another prompt": len(common) - len(same),
            "without a score": len(same) - len(scored),
        },
        "differs": {key: list(pair) for key, pair in harnesses.items() if not key.startswith("model.")},
    }


def describe(name: str, result: Mapping[str, Any]) -> str:
    """The comparison in lines to read."""
    difference = result["difference"]
    interval = difference["ci95"]
    lines = [
        f"{name}: {result['first']:.4f} -> {result['second']:.4f} on {result['n']} items, difference "
        f"{difference['mean']:+.4f}" + (f" [{interval[0]:+.4f}, {interval[1]:+.4f}]" if interval else ""),
        f"  {result['wins']} better, {result['losses']} worse, {result['ties']} alike; p = {result['p']:.4g} "
        f"({result['test']})",
    ]
    if left_out := {reason: n for reason, n in result["left out"].items() if n}:
        lines.append("  left out: " + ", ".join(f"{n} {reason}" for reason, n in left_out.items()))
    if result["differs"]:
        lines.append("  WARNING: not only the models differ: " + ", ".join(result["differs"]))
    return "\n".join(lines)
