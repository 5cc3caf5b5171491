"""What the folders are that were named: runs, evaluations, or runs with evaluations in them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

METRICS, ROLLOUTS, RECORDS, HARNESS = "metrics.jsonl", "rollouts", "records.jsonl", "harness.json"
HELD_OUT = "eval.json"  # figures of an evaluation on a held-out split, or of benchmarks beside their folders
_STEP_FILE = re.compile(r"step_(?P<step>[0-9]{1,12})\.rank(?P<rank>[0-9]{1,6})\.jsonl")


class NothingToView(ValueError):
    """A folder with nothing in it that a run or an evaluation writes. The message has its path."""


@dataclass(frozen=True, slots=True)
class RunFolder:
    path: Path
    name: str  # short, and told apart from the others that are viewed


@dataclass(frozen=True, slots=True)
class EvaluationFolder:
    """The folder of one benchmark, with records.jsonl."""

    path: Path
    name: str


def find_folders(given: Sequence[Path]) -> tuple[list[RunFolder], list[EvaluationFolder]]:
    """The runs and evaluations in the folders that were named. Raises NothingToView for one that holds neither."""
    runs: list[RunFolder] = []
    evaluations: list[EvaluationFolder] = []
    for path, name in zip(given, short_names(given), strict=True):
        if not path.is_dir():
            raise NothingToView(f"{path} is no folder; give the folder of a run, or --out of an evaluation")
        found = [EvaluationFolder(folder, _name(folder, path, name)) for folder in _evaluations(path)]
        is_run = (path / METRICS).is_file() or (path / ROLLOUTS).is_dir()
        if not is_run and not found and (path / HELD_OUT).is_file():
            raise NothingToView(
                f"{path} has an evaluation on a held-out split, of which figures alone are kept: {path / HELD_OUT}. "
                "A page is made of evaluations on benchmarks, which keep the responses"
            )
        if not is_run and not found:
            raise NothingToView(
                f"{path} has no {METRICS}, no {ROLLOUTS}/ and no evaluation ({RECORDS}); "
                "give the folder of a run, or --out of an evaluation"
            )
        evaluations += found
        if is_run:
            runs.append(RunFolder(path, name))
    return runs, evaluations


def short_names(paths: Sequence[Path]) -> list[str]:
    """The last part of each path, with as many parts before it as tell all of them apart."""
    parts = [path.resolve().parts for path in paths]
    depth = 1
    while depth < max(map(len, parts), default=1) and len({p[-depth:] for p in parts}) < len({*parts}):
        depth += 1
    return ["/".join(p[-depth:]) for p in parts]


def step_files(run: Path) -> dict[int, list[Path]]:
    """step -> files of its saved rollouts in the order of ranks, steps ascending."""
    found: list[tuple[int, int, Path]] = []
    for path in (run / ROLLOUTS).glob("step_*.jsonl"):
        if match := _STEP_FILE.fullmatch(path.name):
            found.append((int(match["step"]), int(match["rank"]), path))
    files: dict[int, list[Path]] = {}
    for step, _, path in sorted(found):
        files.setdefault(step, []).append(path)
    return files


def _name(folder: Path, within: Path, name: str) -> str:
    return name if folder == within else f"{name}/{str(folder.relative_to(within)).removeprefix('benchmarks/')}"


def _evaluations(path: Path) -> list[Path]:
    candidates = [
        path,
        *sorted(path.glob("*")),
        *sorted(path.glob("benchmarks/*")),
        *sorted(path.glob("benchmarks/*/*")),
    ]
    found = [folder for folder in candidates if (folder / RECORDS).is_file() and (folder / HARNESS).is_file()]
    return [path] if path in found else found
