"""What the page shows, put together from the folders."""

from __future__ import annotations

import os
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sapo_vl.record.files import write_text
from sapo_vl.record.notices import SIGNS
from sapo_vl.viewing.evaluations import Pictures, pick_items, read_evaluation
from sapo_vl.viewing.facts import read_facts
from sapo_vl.viewing.folders import EvaluationFolder, RunFolder, find_folders, step_files
from sapo_vl.viewing.metrics import read_columns
from sapo_vl.viewing.page import render
from sapo_vl.viewing.rollouts import INDEX, index_row
from sapo_vl.viewing.sampling import sample_rollouts
from sapo_vl.viewing.vocabulary import find_tokenizer, ids_of, token_texts

LIMIT_MB = 24.0  # of rollouts, pictures and items in a file
ITEM_BYTES = 4_000  # of an item of an evaluation with its pictures, about


def write_page(
    given: Sequence[Path], out: Path, defaults: Mapping[str, Any] | None, limit_mb: float = LIMIT_MB
) -> dict[str, Any]:
    """Writes the page of the folders to `out`. Returns {"bytes", "seconds", "groups", "responses",
    "responses_saved", "items", "items_left_out"}, items being those of evaluations.

    defaults: the config with nothing set, for the differences. Raises NothingToView, Unreadable, OSError.
    """
    started = time.monotonic()
    runs, evaluations = find_folders(given)
    parts = sum(bool(step_files(run.path)) for run in runs) + bool(evaluations)
    budget = int(limit_mb * 1e6 / max(1, parts))
    data = overview(runs, defaults)
    for shown, run in zip(data["runs"], runs, strict=True):
        shown |= rollouts_in_file(run, shown["group_size"], budget)
    data["evaluations"], troubles = evaluations_in_file(evaluations, budget)
    data["troubles"] = troubles
    page = render(data, title(runs, evaluations), served=False)
    write_text(out, page)
    samples = [shown["sample"] for shown in data["runs"]]
    return {
        "bytes": out.stat().st_size,
        "seconds": time.monotonic() - started,
        "items": sum(len(evaluation["items"]) for evaluation in data["evaluations"]),
        "items_left_out": sum(evaluation["left_out"] for evaluation in data["evaluations"]),
        **{key: sum(s[key] for s in samples) for key in ("groups", "responses", "responses_saved")},
    }


def title(runs: Sequence[RunFolder], evaluations: Sequence[EvaluationFolder]) -> str:
    names = [folder.name for folder in [*runs, *([] if runs else evaluations)]]
    return f"sapo_vl: {', '.join(names[:4])}{', ...' if len(names) > 4 else ''}"


def overview(runs: Sequence[RunFolder], defaults: Mapping[str, Any] | None) -> dict[str, Any]:
    """Facts and curves of the runs, without rollouts."""
    shown = []
    for run in runs:
        facts = read_facts(run.path, defaults)
        columns = read_columns(run.path)
        shown.append({"name": run.name, **facts, **columns, "saved_steps": list(step_files(run.path))})
    return {
        "written": time.strftime("%Y-%m-%d %H:%M:%S"),
        "index_names": list(INDEX),
        "notice_texts": {sign.name: sign.advice for sign in SIGNS},
        "runs": shown,
        "evaluations": [],
        "troubles": [],
    }


def rollouts_in_file(run: RunFolder, group_size: int | None, budget: int) -> dict[str, Any]:
    """{"groups", "images", "index", "texts": {token id: text}, "sample", "troubles"} of a run, as much as fits."""
    found = sample_rollouts(run.path, group_size, budget)
    texts: dict[str, str] = {}
    if ids := ids_of(found["groups"]):
        try:
            tokenizer = find_tokenizer(run.path)
            texts = token_texts(tokenizer, ids) if tokenizer else {}
        except ValueError as error:
            found["troubles"].append(str(error))
    return {**found, "index": [index_row(group) for group in found["groups"]], "texts": texts}


def evaluations_in_file(
    folders: Sequence[EvaluationFolder], budget: int | None
) -> tuple[list[dict[str, Any]], list[str]]:
    """(the evaluations, each with "pictures": {item id: pictures}, "left_out": items; what cannot be shown).

    budget: bytes, about; None: all items, and no pictures, which a server gives one by one.
    """
    read = [read_evaluation(folder) for folder in folders]
    troubles: list[str] = []
    by_benchmark: dict[str, list[dict[str, Any]]] = defaultdict(list)
    places: dict[str, list[Path]] = defaultdict(list)
    for evaluation, folder in zip(read, folders, strict=True):
        by_benchmark[evaluation["benchmark"]].append(evaluation)
        places[evaluation["benchmark"]].append(folder.path)
    for benchmark, same in by_benchmark.items():
        if budget is None:
            continue
        first = same[0]["items"][:200]
        size = ITEM_BYTES + len(same) * sum(map(_size, first)) // max(1, len(first))
        kept = {*pick_items(same, max(20, budget // len(by_benchmark) // size))}
        for evaluation in same:
            items = evaluation["items"]
            evaluation["items"] = [item for item in items if item["id"] in kept]
            evaluation["left_out"] = len(items) - len(evaluation["items"])
        # One benchmark, the same pictures: those of the first folder that has them.
        sources = [Pictures(evaluation, place) for evaluation, place in zip(same, places[benchmark], strict=True)]
        troubles += [sources[0].trouble] if all(source.trouble for source in sources) else []
        same[0]["pictures"] = {
            item["id"]: found for item in _all_items(same) if (found := first_pictures(sources, item))
        }
    return read, troubles


def first_pictures(sources: Sequence[Pictures], item: Mapping[str, Any]) -> list[dict[str, Any] | None]:
    """The pictures of an item from the first source that has them."""
    return next((found for source in sources if (found := source.of(item))), [])


def _all_items(evaluations: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return list({item["id"]: item for evaluation in evaluations for item in evaluation["items"]}.values())


def _size(item: Mapping[str, Any]) -> int:
    return sum(len(r["text"] or "") + 200 for r in item["responses"]) + len(str(item["messages"]))


def default_page(run: Path) -> Path:
    """Where the page of a folder goes if nothing else is said."""
    return Path(os.path.normpath(run)) / "page.html"
